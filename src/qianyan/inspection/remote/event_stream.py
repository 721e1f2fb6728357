"""A chat completion that arrives piece by piece: server-sent events in, deltas out.

Reads what servers make of such streams: an error object in the middle, reasoning under two names,
usage in a chunk without choices, no [DONE] at the end. An answer that neither [DONE] nor a finish
reason closes was cut off.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qianyan.errors import EndpointError, quote
from qianyan.inputs.event_lines import EventLines

_DONE = "[DONE]"


@dataclass(frozen=True, kw_only=True)
class Delta:
    """One piece of an answer; the counts and `finish_reason` come with the last ones.

    `logprobs` are the entries of its tokens as the endpoint sends them, where it does. Of an answer
    that is spoken, `transcript` is its text and `sound` a piece of its base64, cut anywhere.
    """

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    logprobs: tuple[Any, ...] = ()
    transcript: str = ""
    sound: str = ""


def read_deltas(pieces: Iterable[bytes], where: str) -> Iterator[Delta]:
    """Read the body of a streamed chat completion; `where` names the endpoint in errors.

    Raises EndpointError for an error that the endpoint sends, for what is no chat completion, and
    for an answer that stops before its end.
    """
    is_closed = False
    for data in _events(pieces, where):
        if data == _DONE:
            return
        delta = to_delta(_parse(data, where), where)
        is_closed = is_closed or delta.finish_reason is not None
        yield delta
    if not is_closed:
        raise EndpointError(
            f"{where} stopped in the middle of its answer. Look at the server's log."
        )


def to_delta(chunk: Mapping[str, Any], where: str) -> Delta:
    """Read one chunk, or a whole completion from a server that does not stream.

    Raises EndpointError when it holds an error or has another form.
    """
    if chunk.get("error"):
        raise EndpointError(f"{where} broke off its answer: {quote(_message(chunk['error']))}.")
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        raise EndpointError(f"{where} answers without choices; expected an OpenAI chat completion.")
    choice = choices[0] if choices and isinstance(choices[0], dict) else {}
    said = choice.get("delta") or choice.get("message")
    said = said if isinstance(said, dict) else {}
    reason = choice.get("finish_reason")
    usage = chunk.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    audio = said.get("audio")
    audio = audio if isinstance(audio, dict) else {}
    return Delta(
        text=_text(said.get("content")),
        reasoning=_text(said.get("reasoning_content")) or _text(said.get("reasoning")),
        finish_reason=reason if isinstance(reason, str) else None,
        completion_tokens=_count(counts.get("completion_tokens")),
        prompt_tokens=_count(counts.get("prompt_tokens")),
        logprobs=tuple(content) if isinstance(content, list) else (),
        transcript=_text(audio.get("transcript")),
        sound=_text(audio.get("data")),
    )


def _events(pieces: Iterable[bytes], where: str) -> Iterator[str]:
    """Yield the data of each event."""
    events = EventLines(where)
    for piece in pieces:
        yield from events.push(piece)
    yield from events.finish()


def _parse(data: str, where: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        chunk = None
    if not isinstance(chunk, dict):
        raise EndpointError(
            f"{where} sends {quote(data)} in the middle of its answer; expected JSON. "
            "Look at the server's log."
        )
    return chunk


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _text(value: Any) -> str:
    """Take a text; half of a surrogate pair could not be written to a file later."""
    if isinstance(value, list):
        value = "".join(one.get("text") or "" for one in value if isinstance(one, dict))
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""


def _message(error: Any) -> str:
    """Find the sentence in an error object."""
    said = error.get("message") or error.get("code") if isinstance(error, dict) else error
    return " ".join(str(said or "no reason given").split())
