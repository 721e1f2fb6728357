"""When something happens in a video: spans of seconds, from the forms in which models write time.

Qwen2.5-VL knows a video's absolute time and writes seconds (`12.5`, `12.5s`), `m:s` or `h:m:s.f`
(Qwen2.5-VL, section 2.1). An end past the video's end is moved to it; a span that starts after the
video has ended, or ends before it starts, is no moment of this video and is left out.
"""

import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qianyan.errors import ReplyError
from qianyan.inputs.loose_json import TooDeepError, Value, read_loose_json
from qianyan.reading.prompts import Lang, object_schema

log = logging.getLogger(__name__)

MAX_MOMENTS = 50
MAX_DESCRIPTION_CHARS = 100
_START_KEYS = ("start", "start_time", "start_s", "begin", "from")
_END_KEYS = ("end", "end_time", "end_s", "to")
_WORDS_KEYS = ("description", "label", "event", "text")
_CLOCK = re.compile(r"(?:(\d{1,3}):)?(\d{1,3}):(\d{1,2}(?:\.\d{1,6})?)")
_SECONDS = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)\s?(?:s|sec|secs|seconds?|秒)?", re.IGNORECASE)
# Minutes and seconds in two digits, so that nothing but a time of day can be written.
_WRITTEN = r"^([0-9]{1,2}:)?[0-5][0-9]:[0-5][0-9](\.[0-9])?$"

_PROMPT: dict[Lang, str] = {
    "zh": "视频中什么时候出现：{what}？列出每一段的开始和结束时间，写成 分:秒。只输出 JSON 数组，"
    '格式：[{{"start":"00:05.0","end":"00:09.5","description":"…"}}]。从未出现时输出 []',
    "en": "When does this happen in the video: {what}? List the start and end of every span as "
    'minutes:seconds. Output only a JSON array: [{{"start":"00:05.0","end":"00:09.5",'
    '"description":"…"}}]. If it never happens, output []',
}


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A span of a video, in seconds from its beginning, and what the model says of it."""

    start_s: float
    end_s: float
    description: str


def moments_prompt(what: str, *, lang: Lang) -> str:
    """Ask when something happens."""
    return _PROMPT[lang].format(what=what)


def moments_schema() -> dict[str, Any]:
    """Bound the answer: at most MAX_MOMENTS spans."""
    time = {"type": "string", "pattern": _WRITTEN}
    words = {"type": "string", "maxLength": MAX_DESCRIPTION_CHARS}
    item = object_schema({"start": time, "end": time, "description": words})
    return {"type": "array", "maxItems": MAX_MOMENTS, "items": item}


def parse_moments(reply: str, *, duration_s: float) -> tuple[Moment, ...]:
    """Read spans out of an answer, in its order.

    Raises ReplyError when the answer is cut or no list of spans, or none of its spans lies in the
    video. An empty list is a statement: it never happens.
    """
    try:
        read = read_loose_json(reply)
    except TooDeepError as error:
        raise ReplyError(f"The model's answer cannot be read: {error}.") from error
    if read.is_cut:
        raise ReplyError(f"The model's answer of {len(reply)} characters was cut off.")
    spans = [span for found in read.found for span in _walk(found.value)]
    if not spans and not (len(read.found) == 1 and read.found[0].value == []):
        raise ReplyError(
            f"The model's answer of {len(reply)} characters holds no times; expected a list of "
            "starts and ends."
        )
    moments = [moment for span in spans if (moment := _moment(span, duration_s)) is not None]
    if spans and not moments:
        raise ReplyError(
            f"None of the {len(spans)} spans in the model's answer lies in the video of "
            f"{duration_s:g} seconds."
        )
    if len(moments) < len(spans):
        log.warning("Spans outside the video were left out. left_out=%d", len(spans) - len(moments))
    return tuple(moments)


def find_seconds(value: object) -> float | None:
    """Read a time in seconds, from a number or a text; None when it is no time."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) and value >= 0 else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    seconds = _SECONDS.fullmatch(text)
    if seconds is not None:
        return float(seconds[1])
    clock = _CLOCK.fullmatch(text)
    if clock is None or float(clock[3]) >= 60 or (clock[1] and int(clock[2]) >= 60):
        return None
    return int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + float(clock[3])


def _walk(value: Value) -> Iterator[dict[str, Value]]:
    if isinstance(value, list):
        for element in value:
            yield from _walk(element)
    elif isinstance(value, dict):
        if _first(value, _START_KEYS) is not None:
            yield value
        else:
            for element in value.values():
                yield from _walk(element)


def _moment(span: dict[str, Value], duration_s: float) -> Moment | None:
    """Place a span in the video; None where it has no place there."""
    start, end = find_seconds(_first(span, _START_KEYS)), find_seconds(_first(span, _END_KEYS))
    if start is None or end is None or end < start or start >= duration_s:
        return None
    words = _first(span, _WORDS_KEYS)
    said = words.strip() if isinstance(words, str) else ""
    return Moment(start_s=start, end_s=min(end, duration_s), description=said)


def _first(value: dict[str, Value], keys: tuple[str, ...]) -> Value:
    return next((value[key] for key in keys if value.get(key) is not None), None)
