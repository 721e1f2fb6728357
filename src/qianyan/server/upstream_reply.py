"""What an upstream server sends, made into the one form in which this server answers.

Servers differ: ids that change within a stream, a role in every chunk, names of calls that are
repeated, reasoning under two names, several calls under one index, no finish reason, no counts.
Whatever comes, what leaves is OpenAI's: one id, time and model; the role once; each call's id and
name once; one finish reason for each choice; the counts last.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qianyan.server.openai_reply import OpenAIReply, new_call_id
from qianyan.server.upstream import Upstream

REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
_OTHER_REASONS = {
    "eos": "stop",
    "max_tokens": "length",
    "abort": "length",
    "tool_call": "tool_calls",
}
_KEPT = ("audio", "annotations")
"""Parts of a message that are handed on as they come."""


@dataclass
class _Choice:
    """What has been sent of one choice."""

    reason: str | None = None
    calls: dict[int, "_Call"] = field(default_factory=dict)
    num_calls: int = 0


@dataclass
class _Call:
    """One call: our index, and what waits until its name is known."""

    index: int
    call_id: str = ""
    is_named: bool = False
    held: str = ""


class UpstreamReply:
    """Writes one reply in OpenAI's form; `usage` is None until the server has counted."""

    def __init__(self, upstream: Upstream, *, num_choices: int) -> None:
        self.usage: dict[str, Any] | None = None
        self._upstream = upstream
        self._choices = {index: _Choice() for index in range(num_choices)}
        self._reply = OpenAIReply(model=upstream.settings.name)

    @property
    def is_closed(self) -> bool:
        """Whether every choice has its finish reason."""
        return all(one.reason for one in self._choices.values())

    def whole(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Write a whole reply; raises RefusedError where it is none."""
        given = data.get("choices")
        if not isinstance(given, list) or not given:
            raise self._upstream.failed("answers without choices.")
        choices = [self._whole_choice(index, one) for index, one in enumerate(given)]
        self._count(data)
        whole = self._reply.envelope("chat.completion", choices, self.usage)
        return {**whole, **_found(data)}

    def open(self) -> Iterator[dict[str, Any]]:
        """Open every choice."""
        for index in self._choices:
            yield self._reply.first_chunk(index)

    def take(self, chunk: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Write what one chunk says, or nothing."""
        given = chunk.get("choices")
        if not isinstance(given, list):
            raise self._upstream.failed("sends chunks without choices.")
        self._count(chunk)
        for one in given:
            if isinstance(one, dict):
                for written in self._choice_chunks(one):
                    yield {**written, **_found(chunk)}

    def finish(self, *, is_cut: bool = False) -> Iterator[dict[str, Any]]:
        """Close the choices that are open; those that the time cut say so."""
        extra = {"stop_reason": "time_limit"} if is_cut else {}
        for index, choice in self._choices.items():
            if choice.reason is None:
                reason = "length" if is_cut else _reason("stop", has_calls=bool(choice.num_calls))
                choice.reason = reason
                yield self._reply.chunk(index, {"content": ""}, finish_reason=reason, extra=extra)

    def usage_chunk(self) -> dict[str, Any]:
        """Write the counts, as the chunk without choices that ends a stream."""
        return self._reply.envelope("chat.completion.chunk", [], self.usage or _usage({}))

    def _count(self, data: Mapping[str, Any]) -> None:
        if isinstance(data.get("usage"), dict):
            self.usage = _usage(data["usage"])

    def _whole_choice(self, index: int, given: Any) -> dict[str, Any]:
        message = given.get("message") if isinstance(given, dict) else None
        if not isinstance(message, dict):
            raise self._upstream.failed("answers without a message.")
        calls = [_whole_call(one) for one in _list(message.get("tool_calls"))]
        reasoning = _reasoning(message)
        content = _text(message.get("content"))
        return {
            "index": index,
            "message": {
                "role": "assistant",
                "content": content or (None if calls else ""),
                **({"reasoning_content": reasoning} if reasoning else {}),
                "refusal": _text(message.get("refusal")) or None,
                "function_call": None,
                "tool_calls": calls or None,
                **{name: message[name] for name in _KEPT if message.get(name)},
            },
            "logprobs": given.get("logprobs"),
            "finish_reason": _reason(given.get("finish_reason"), has_calls=bool(calls)),
        }

    def _choice_chunks(self, given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        index = given.get("index") or 0
        choice = self._choices.get(index) if isinstance(index, int) else None
        if choice is None or choice.reason is not None:
            return
        delta = given.get("delta") or given.get("message")
        delta = delta if isinstance(delta, dict) else {}
        for written, logprobs in self._deltas(choice, delta, given.get("logprobs")):
            yield self._reply.chunk(index, written, logprobs=logprobs)
        reason = given.get("finish_reason")
        if isinstance(reason, str) and reason not in ("", "null"):
            choice.reason = _reason(reason, has_calls=bool(choice.num_calls))
            yield self._reply.chunk(index, {"content": ""}, finish_reason=choice.reason)

    def _deltas(
        self, choice: _Choice, delta: Mapping[str, Any], logprobs: Any
    ) -> Iterator[tuple[dict[str, Any], Any]]:
        """Give the deltas of our chunks, at most one kind of thing in each."""
        if reasoning := _reasoning(delta):
            yield {"content": None, "reasoning_content": reasoning}, None
        text, refusal = _text(delta.get("content")), _text(delta.get("refusal"))
        if text or refusal or logprobs:
            yield {"content": text, **({"refusal": refusal} if refusal else {})}, logprobs
        for name in _KEPT:
            if delta.get(name):
                yield {name: delta[name]}, None
        for at, piece in enumerate(_list(delta.get("tool_calls"))):
            if (call := _piece(choice, piece, at)) is not None:
                yield {"tool_calls": [call]}, None


def _piece(choice: _Choice, piece: Mapping[str, Any], at: int) -> dict[str, Any] | None:
    """Write a piece of a call: id and name with the first alone, None where it says nothing."""
    place = piece.get("index")
    place = place if isinstance(place, int) else at
    given = piece.get("function")
    given = given if isinstance(given, dict) else {}
    call_id, name = _text(piece.get("id")), _text(given.get("name"))
    arguments = _text(given.get("arguments"))
    call = choice.calls.get(place)
    # Some servers give all calls the index 0; another id with a name is another call.
    if call is None or (call_id and name and call.is_named and call_id != call.call_id):
        call = choice.calls[place] = _Call(choice.num_calls)
        choice.num_calls += 1
    call.call_id = call.call_id or call_id
    if call.is_named:
        return {"index": call.index, "function": {"arguments": arguments}} if arguments else None
    call.held += arguments
    if not name:
        return None
    call.is_named = True
    call.call_id = call.call_id or new_call_id()
    function = {"name": name, "arguments": call.held}
    return {"index": call.index, "id": call.call_id, "type": "function", "function": function}


def _whole_call(given: Mapping[str, Any]) -> dict[str, Any]:
    function = given.get("function")
    function = function if isinstance(function, dict) else {}
    named = {"name": _text(function.get("name")), "arguments": _text(function.get("arguments"))}
    call_id = _text(given.get("id")) or new_call_id()
    return {"id": call_id, "type": "function", "function": named}


def _reason(given: Any, *, has_calls: bool) -> str:
    reason = given if isinstance(given, str) else "stop"
    known = reason if reason in REASONS else _OTHER_REASONS.get(reason, "stop")
    return "tool_calls" if has_calls and known in ("stop", "function_call") else known


def _usage(given: Mapping[str, Any]) -> dict[str, Any]:
    """Write counts that may be missing in part."""
    counts = {name: _number(given.get(name)) for name in ("prompt_tokens", "completion_tokens")}
    usage: dict[str, Any] = {**counts, "total_tokens": sum(counts.values())}
    empty: dict[str, dict[str, Any]] = {
        "completion_tokens_details": {"audio_tokens": None, "reasoning_tokens": 0},
        "prompt_tokens_details": {"audio_tokens": None, "cached_tokens": 0},
    }
    for name, nothing in empty.items():
        details = given.get(name)
        known = details if isinstance(details, dict) else {}
        usage[name] = nothing | {key: value for key, value in known.items() if _is_count(value)}
    return usage


def _found(data: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the sources of a search, which Bailian puts beside the choices."""
    info = data.get("search_info")
    return {"search_info": info} if isinstance(info, dict) else {}


def _reasoning(said: Mapping[str, Any]) -> str:
    return _text(said.get("reasoning_content")) or _text(said.get("reasoning"))


def _text(value: Any) -> str:
    """Take a text, or the texts of parts; half of a surrogate pair cannot be sent on."""
    if isinstance(value, list):
        value = "".join(
            one["text"]
            for one in value
            if isinstance(one, dict) and isinstance(one.get("text"), str)
        )
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _number(value: Any) -> int:
    return value if _is_count(value) else 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
