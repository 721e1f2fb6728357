"""The server's log: lines of text or JSON on standard error, one for each request and event.

A line tells who asked (the beginning of the hash of the key), what for (the declared route), and
what it cost; never what was sent or answered. Errors that nobody foresaw are logged with their
traceback, whose own words are cut: a library may have put a piece of a request there.
"""

import json
import logging
import time
import traceback
from datetime import UTC, datetime
from typing import Literal

from qianyan.server.asking import Asked, asked_now
from qianyan.server.keys import NOBODY

LogFormat = Literal["text", "json"]
KEY_ID_CHARACTERS = 8
MOST_ERROR_CHARACTERS = 200
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


def write_log(log_format: LogFormat, level: str) -> None:
    """Send the log of this process to standard error; called by whoever owns the process."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(log_format))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("qianyan").setLevel(level.upper())
    # Its warnings of each retry hold addresses; what came of the retries is told by whoever asked.
    logging.getLogger("stamina").setLevel(logging.ERROR)
