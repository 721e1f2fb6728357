"""Lines of the log: who asked what and at which cost, and never a word of it."""

import json
import logging
import subprocess
import sys

import pytest

from qianyan.server.asking import Asked, asking
from qianyan.server.logs import Lines, LogFormat, log_request

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
