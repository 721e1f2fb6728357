"""Lines of the log: who asked what and at which cost, and never a word of it."""

import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qianyan.server.asking import Asked, asking
from qianyan.server.logs import LineQueue, Lines, LogFormat, log_request

ASKED = Asked(request_id="req-1", owner_id="ab" * 32, model="judge", prompt_tokens=7)


def lines_of(log_format: LogFormat, caplog: pytest.LogCaptureFixture) -> list[str]:
    return [Lines(log_format).format(record) for record in caplog.records]


def test_a_request_is_one_json_object(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), asking(ASKED):
        log_request(ASKED, method="POST", route="/v1/files/{file_id}", status=200)
        (line,) = lines_of("json", caplog)
    told = json.loads(line)
    assert told["event"] == "request"
    assert told["request_id"] == "req-1"
    assert told["key"] == "abababab"
    assert told["route"] == "/v1/files/{file_id}"
    assert (told["status"], told["prompt_tokens"]) == (200, 7)
    assert told["duration_s"] >= 0


def test_whoever_has_no_key_is_called_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        log_request(Asked(), method="GET", route="none", status=401)
        (line,) = lines_of("json", caplog)
    assert json.loads(line)["key"] == "none"


def test_a_request_is_one_line_of_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), asking(ASKED):
        log_request(ASKED, method="POST", route="/v1/models", status=404)
        (line,) = lines_of("text", caplog)
    assert "\n" not in line
    assert " info qianyan.server request " in line
    assert "status=404" in line
    assert "request_id=req-1" in line


def test_whoever_watches_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        log_request(ASKED, method="GET", route="/ready", status=200)
        assert not caplog.records
        log_request(ASKED, method="GET", route="/ready", status=503)
        assert caplog.records


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_traceback_keeps_its_frames_and_cuts_its_words(
    log_format: LogFormat, caplog: pytest.LogCaptureFixture
) -> None:
    """A library may put a whole body into the words of its error."""
    try:
        try:
            {}["secret " * 1000]
        except KeyError as error:
            raise ValueError("wrong") from error
    except ValueError:
        logging.getLogger("qianyan.server").exception("failed")
    (line,) = lines_of(log_format, caplog)
    assert "ValueError: wrong" in line
    assert "test_logs.py" in line
    assert line.count("secret") < 40


def test_retries_of_other_packages_are_not_logged() -> None:
    code = (
        "import logging; from qianyan.server.logs import write_log; write_log('text', 'info');"
        "logging.getLogger('stamina').warning('stamina.retry_scheduled');"
        "logging.getLogger('httpx').warning('seen')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "httpx seen" in said.stderr
    assert "retry_scheduled" not in said.stderr


@contextmanager
def queue_into_a_pipe(*, most: int) -> Iterator[tuple[logging.Logger, LineQueue, io.FileIO]]:
    """A logger with a queue of its own, and the end of the pipe that is to be read."""
    reading, writing = os.pipe()
    handler = LineQueue(io.FileIO(writing, "w"), most=most)
    handler.setFormatter(Lines("text"))
    logger = logging.getLogger("qianyan.test")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with io.FileIO(reading) as reader:
            yield logger, handler, reader
    finally:
        logger.removeHandler(handler)


def read_until(reader: io.FileIO, mark: bytes) -> list[str]:
    said = b""
    while mark not in said:
        said += reader.read(2**16)
    return said.decode().splitlines()


def test_lines_come_out_in_order_with_what_was_known_where_they_were_logged() -> None:
    with queue_into_a_pipe(most=100) as (logger, handler, reader):
        with asking(ASKED):
            for number in range(50):
                logger.warning("line %d", number)
        handler.flush()
        lines = read_until(reader, b"line 49 ")
    assert [f"line {number} request_id=req-1" in line for number, line in enumerate(lines)] == (
        [True] * 50
    )


def test_lines_that_nobody_reads_hold_nobody_up_and_are_counted_once() -> None:
    with queue_into_a_pipe(most=20) as (logger, handler, reader):
        os.set_blocking(handler._out.fileno(), False)
        while handler._out.write(b"." * 4096):
            pass
        for number in range(2000):
            logger.warning("line %d", number)
        lines = read_until(reader, b"dropped")
        logger.warning("heard again")
        lines += read_until(reader, b"again")
    *kept, told, last = lines
    numbers = [int(line.rpartition(" ")[2]) for line in kept]
    assert numbers[:20] == [*range(20)]
    assert len(kept) in (20, 21)  # one may be under way
    assert f" warning qianyan.server {2000 - len(kept)} lines were dropped" in told
    assert last.endswith("heard again")


def test_an_end_waits_for_lines_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qianyan.server.logs.FLUSH_TIMEOUT_S", 0.2)
    with queue_into_a_pipe(most=2000) as (logger, handler, reader):
        for number in range(1000):
            logger.warning("line %d %s", number, "x" * 200)
        began_at = time.monotonic()
        handler.flush()
        assert 0.15 < time.monotonic() - began_at < 5
        read_until(reader, b"line 999 ")


def test_a_reader_who_has_gone_away_is_not_waited_for() -> None:
    with queue_into_a_pipe(most=20) as (logger, handler, reader):
        reader.close()
        logger.warning("lost")
        began_at = time.monotonic()
        handler.flush()
        assert time.monotonic() - began_at < 1


def test_a_pipe_that_does_not_block_gets_every_line() -> None:
    with queue_into_a_pipe(most=2000) as (logger, handler, reader):
        os.set_blocking(handler._out.fileno(), False)
        for number in range(1000):
            logger.warning("line %d %s", number, "x" * 200)
        assert len(read_until(reader, b"line 999 ")) == 1000


def test_a_line_that_cannot_be_written_is_named_in_the_log() -> None:
    wrong = {"name": "qianyan.test", "msg": "%d files", "args": ("many",)}
    with queue_into_a_pipe(most=20) as (_, handler, reader):
        handler.handle(logging.makeLogRecord(wrong))
        (line,) = read_until(reader, b"files")
    assert line.endswith("a line of qianyan.test cannot be written: %d files")
