"""The server's log: lines of text or JSON on standard error, one for each request and event.

A line tells who asked (the beginning of the hash of the key), what for (the declared route), and
what it cost; never what was sent or answered. Errors that nobody foresaw are logged with their
traceback, whose own words are cut: a library may have put a piece of a request there.

Lines are written by a thread of their own: whoever reads standard error, and reads it too slowly or
not at all, holds up neither a request nor the end of the process.
"""

import io
import json
import logging
import os
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from logging.handlers import QueueHandler
from pathlib import Path
from queue import Full, Queue
from typing import Literal

from qianyan.server.asking import Asked, asked_now
from qianyan.server.keys import NOBODY

LogFormat = Literal["text", "json"]
KEY_ID_CHARACTERS = 8
MOST_ERROR_CHARACTERS = 200
MOST_WAITING_LINES = 10_000
"""Lines that are kept for a reader of the log who is slow; those after them are dropped."""
FLUSH_TIMEOUT_S = 2.0
"""How long the end of the process waits for that reader."""
RETRY_S = 0.05
QUIET_ROUTES = frozenset({"/health", "/ready", "/metrics"})
logger = logging.getLogger("qianyan.server")


def key_id(owner_id: str) -> str:
    """Name a key in the log by the beginning of its hash; none where there was none."""
    return "none" if owner_id == NOBODY else owner_id[:KEY_ID_CHARACTERS]


def log_request(asked: Asked, *, method: str, route: str, status: int) -> None:
    """Log a request when it is over; `route` as it is declared, without what stands in it.

    What watches the server asks every few seconds: good answers to it are logged for DEBUG only.
    """
    fields = {
        "method": method,
        "route": route,
        "status": status,
        "duration_s": round(time.monotonic() - asked.started_at, 4),
        "key": key_id(asked.owner_id),
        "model": asked.model,
        "error": asked.error_code,
        "prompt_tokens": asked.prompt_tokens,
        "cached_tokens": asked.cached_tokens,
        "completion_tokens": asked.completion_tokens,
    }
    is_quiet = route in QUIET_ROUTES and status == 200
    level = logging.DEBUG if is_quiet else logging.INFO
    logger.log(level, "request", extra={"fields": {k: v for k, v in fields.items() if v != ""}})


class Lines(logging.Formatter):
    """Writes a record as one line, with the id of the request at hand."""

    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._is_json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        """Write a record; a traceback follows in text and is a field in JSON."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        fields = dict(getattr(record, "fields", {}))
        if request_id := asked_now().request_id:
            fields["request_id"] = request_id
        trace = _trace(record.exc_info[1]) if record.exc_info and record.exc_info[1] else ""
        if self._is_json:
            traced = {"traceback": trace} if trace else {}
            return json.dumps({**told, **fields, **traced}, ensure_ascii=False, default=str)
        words = [*told.values(), *(f"{name}={value}" for name, value in fields.items())]
        return " ".join(words) + (f"\n{trace}" if trace else "")


def _trace(error: BaseException) -> str:
    """Write where an error was raised, and those it came from, each message cut."""
    parts = []
    seen: BaseException | None = error
    while seen is not None:
        message = str(seen)[:MOST_ERROR_CHARACTERS]
        frames = "".join(traceback.format_tb(seen.__traceback__))
        parts.append(f"{frames}{type(seen).__name__}: {message}")
        seen = seen.__cause__
    return "\ncaused by\n".join(parts)


class LineQueue(QueueHandler):
    """Keeps lines, formatted where they were logged, until a thread of its own has put them out.

    Whoever logs never waits. Lines that find no place are counted, and the log says how many there
    were as soon as all before them are out.
    """

    def __init__(self, out: io.RawIOBase, *, most: int = MOST_WAITING_LINES) -> None:
        self._lines: Queue[logging.LogRecord] = Queue(most)
        super().__init__(self._lines)
        self._out = out
        self._num_dropped = 0
        # Not the handler's lock, which is held where the end of the process waits for this thread.
        self._counting = threading.Lock()
        threading.Thread(target=self._put_out, name="log", daemon=True).start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Keep a line, or count it."""
        try:
            self._lines.put_nowait(record)
        except Full:
            with self._counting:
                self._num_dropped += 1

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's own name)
        """Say in the log itself which line could not be written."""
        said = str(record.msg)[:MOST_ERROR_CHARACTERS]
        self.enqueue(self._line(f"a line of {record.name} cannot be written: {said}"))

    def flush(self) -> None:
        """Wait until all lines are out, for FLUSH_TIMEOUT_S at most."""
        lines = self._lines
        with lines.all_tasks_done:
            lines.all_tasks_done.wait_for(lambda: not lines.unfinished_tasks, FLUSH_TIMEOUT_S)

    def _line(self, said: str) -> logging.LogRecord:
        told = {"name": logger.name, "levelname": "WARNING", "levelno": logging.WARNING}
        line: logging.LogRecord = self.prepare(logging.makeLogRecord({**told, "msg": said}))
        return line

    def _put_out(self) -> None:
        while True:
            self._write(self._lines.get())
            if self._lines.empty() and (number := self._take_dropped()):
                self._write(self._line(f"{number} lines were dropped: the log is read too slowly"))
            self._lines.task_done()

    def _take_dropped(self) -> int:
        with self._counting:
            number, self._num_dropped = self._num_dropped, 0
        return number

    def _write(self, record: logging.LogRecord) -> None:
        rest = f"{record.getMessage()}\n".encode(errors="backslashreplace")
        while rest:
            try:
                written = self._out.write(rest)
            except OSError:
                return  # nobody will ever read it
            if written is None:  # a pipe that others made non-blocking is full
                time.sleep(RETRY_S)
            rest = rest[written or 0 :]


def _standard_error() -> io.RawIOBase:
    """Open it without a buffer: no lock of Python's is held while its reader is waited for."""
    try:
        number = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # there is none, or it is no file
        return Path(os.devnull).open("wb", buffering=0)
    return io.FileIO(number, "w", closefd=False)


def write_log(log_format: LogFormat, level: str) -> None:
    """Send the log of this process to standard error; called by whoever owns the process."""
    handler = LineQueue(_standard_error())
    handler.setFormatter(Lines(log_format))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("qianyan").setLevel(level.upper())
    # Its warnings of each retry hold addresses; what came of the retries is told by whoever asked.
    logging.getLogger("stamina").setLevel(logging.ERROR)
