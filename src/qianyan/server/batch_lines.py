"""The lines of a batch's input: read one by one, checked, and refused with a word for each.

A line is OpenAI's: {"custom_id", "method": "POST", "url", "body"}. Lines are not kept twice: what
is kept of one is where it lies in the input.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from qianyan.errors import quote

ENDPOINTS = ("/v1/chat/completions",)
LONGEST_CUSTOM_ID = 256
LONGEST_MODEL = 255


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """What a batch may be.

    Args:
        max_lines: requests of a batch.
        max_line_bytes: largest request.
        max_errors: errors of an input that are told.
        min_window_s: shortest completion_window.
        max_window_s: longest completion_window.
        max_unfinished: batches of an owner that are not over.
        max_metadata: entries of metadata.
        max_metadata_key: characters of a key of metadata.
        max_metadata_value: characters of a value of metadata.
    """

    max_lines: int = 50_000
    max_line_bytes: int = 6_000_000
    max_errors: int = 100
    min_window_s: int = 86_400
    max_window_s: int = 14 * 86_400
    max_unfinished: int = 100
    max_metadata: int = 16
    max_metadata_key: int = 64
    max_metadata_value: int = 512


@dataclass(frozen=True)
class Line:
    """A good line: its number, counted from 1, where it lies, and what is kept beside it."""

    number: int
    offset_bytes: int
    size_bytes: int
    custom_id: str
    model: str


@dataclass(frozen=True)
class LineError:
    """What is wrong with a line, or with the whole input where `line` is None."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None

    def as_record(self) -> dict[str, Any]:
        """Write it as batches show it."""
        return {
            "code": self.code,
            "message": self.message,
            "line": self.line,
            "param": self.param,
        }


def read_lines(
    file: BinaryIO, endpoint: str, limits: BatchLimits
) -> tuple[list[Line], list[LineError]]:
    """Read an input to its end, or until there are too many lines or errors."""
    lines: list[Line] = []
    errors: list[LineError] = []
    seen: set[str] = set()
    for number, offset, raw in _split(file, limits.max_line_bytes):
        if len(errors) >= limits.max_errors:
            break
        if len(lines) >= limits.max_lines:
            errors.append(
                LineError("too_many_lines", f"Expected at most {limits.max_lines} lines.", number)
            )
            break
        found = _check(raw, number, offset, endpoint, limits)
        if isinstance(found, Line) and found.custom_id in seen:
            words = f"custom_id {quote(found.custom_id)} stands in an earlier line too."
            found = LineError("duplicate_custom_id", words, number, "custom_id")
        elif isinstance(found, Line) and lines and found.model != lines[0].model:
            words = f"The model is {quote(found.model)}; expected {quote(lines[0].model)} as above."
            found = LineError("mismatched_model", words, number, "body.model")
        if isinstance(found, LineError):
            errors.append(found)
        else:
            seen.add(found.custom_id)
            lines.append(found)
    if not lines and not errors:
        errors.append(LineError("empty_file", "The file holds no requests; expected one a line."))
    return lines, errors


def read_body(file: BinaryIO, offset_bytes: int, size_bytes: int) -> dict[str, Any]:
    """Read the body of a line that was found good."""
    file.seek(offset_bytes)
    body: dict[str, Any] = json.loads(file.read(size_bytes))["body"]
    return body


def _split(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, offset and bytes of each line that is not blank, one byte too long at most."""
    offset = number = 0
    while raw := file.readline(max_bytes + 1):
        number += 1
        size = len(raw)
        rest = raw
        while len(rest) > max_bytes and not rest.endswith(b"\n"):  # the rest of a line too long
            rest = file.readline(max_bytes + 1)
            size += len(rest)
        if raw.strip():
            yield number, offset, raw
        offset += size


def _check(
    raw: bytes, number: int, offset: int, endpoint: str, limits: BatchLimits
) -> Line | LineError:
    if len(raw.rstrip(b"\r\n")) > limits.max_line_bytes:
        words = f"The line is longer than {limits.max_line_bytes} bytes; expected at most that."
        return LineError("line_too_large", words, number)
    try:
        line = json.loads(raw, parse_constant=_no_constant)
        raw.decode("utf-8")
    except (ValueError, RecursionError):
        return LineError("invalid_json_line", "The line is not JSON in UTF-8.", number)
    if not isinstance(line, dict):
        return LineError("invalid_json_line", "The line is no JSON object.", number)
    wrong = _find_wrong(line, endpoint)
    if wrong:
        code, message, param = wrong
        return LineError(code, message, number, param)
    return Line(number, offset, len(raw), line["custom_id"], line["body"]["model"])


def _find_wrong(line: dict[str, Any], endpoint: str) -> tuple[str, str, str] | None:
    """Find the first field of a request that is wrong: code, sentence and the field's name."""
    body = line.get("body")
    model = body.get("model") if isinstance(body, dict) else None
    if not _is_name(line.get("custom_id"), LONGEST_CUSTOM_ID):
        words = f"expected a text of 1 to {LONGEST_CUSTOM_ID} characters."
        return "invalid_custom_id", f"custom_id is missing or none; {words}", "custom_id"
    if line.get("method") != "POST":
        words = f"method is {quote(line.get('method'))}; expected POST."
        return "invalid_method", words, "method"
    if line.get("url") != endpoint:
        words = f"url is {quote(line.get('url'))}; expected the batch's, {endpoint}."
        return "url_not_found", words, "url"
    if not isinstance(body, dict):
        return "invalid_request", "body is missing; expected the request as an object.", "body"
    if not _is_name(model, LONGEST_MODEL):
        return "invalid_request", "The body names no model.", "body.model"
    if body.get("stream"):
        return "invalid_request", "stream is set; answers of a batch come whole.", "body.stream"
    return None


def _is_name(value: object, longest: int) -> bool:
    """Tell whether a value is text of a fit length that UTF-8 can hold."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= longest
        and not any("\ud800" <= char <= "\udfff" for char in value)
    )


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
