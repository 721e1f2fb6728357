"""Answers of upstream models in DashScope's words, made of those in OpenAI's.

Such servers count tokens once, at the end: so the packets before have no counts, and the one with
the finish reason waits for them.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from qianyan.server.dashscope_reply import DashScopeReply, ReplyFormat, Written
from qianyan.server.openai_request import ChatRequest
from qianyan.server.upstream import Upstream, UpstreamStream
from qianyan.server.upstream_chat import UpstreamModels, chunks_of
from qianyan.server.upstream_reply import UpstreamReply

SOUND = ("data", "id", "expires_at")
"""What DashScope's form has of a sound."""


@dataclass(frozen=True, kw_only=True)
class PassedOn:
    """A request for an upstream model, checked: what is asked there, and who writes the answer."""

    models: UpstreamModels
    upstream: Upstream
    chat: ChatRequest
    packets: "UpstreamPackets"

    async def whole(self) -> dict[str, Any]:
        """Answer as a whole."""
        return self.packets.whole(await self.models.ask(self.upstream, self.chat))

    async def begin(self) -> tuple[AsyncIterator[dict[str, Any]], Callable[[], None]]:
        """Let a stream begin; give its packets, and what must be called when nobody reads."""
        stream, reply = await self.models.begin(self.upstream, self.chat)
        return self.packets.follow(stream, reply), stream.leave


class UpstreamPackets:
    """Writes one reply, whole or as a stream, in the given format."""

    def __init__(self, writer: DashScopeReply, form: ReplyFormat) -> None:
        self._writer = writer
        self._form = form
        self._all: dict[int, Written] = {}

    def whole(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Write all choices of a chat.completion."""
        choices = []
        sound: Mapping[str, Any] = {}
        for given in data["choices"]:
            message = given["message"]
            sound = _sound(message) or sound
            written = Written(
                text=message["content"] or _transcript(message),
                reasoning=message.get("reasoning_content") or "",
                has_reasoned=bool(message.get("reasoning_content")),
                calls=[
                    {**call, "index": at} for at, call in enumerate(message["tool_calls"] or ())
                ],
            )
            logprobs = given["logprobs"]
            choices.append(self._choice(given["index"], written, given["finish_reason"], logprobs))
        return self._packet(choices, data.get("usage"), data, sound)

    async def follow(
        self, stream: UpstreamStream, reply: UpstreamReply
    ) -> AsyncIterator[dict[str, Any]]:
        """Give the packets of a stream; raises RefusedError when it breaks off."""
        ends: list[tuple[int, str]] = []
        async for chunk in chunks_of(stream, reply):
            for choice in chunk["choices"]:
                if choice["finish_reason"]:
                    ends.append((choice["index"], choice["finish_reason"]))
                elif (packet := self._take(choice, chunk)) is not None:
                    yield packet
        for index, reason in ends:
            total = self._all.get(index, Written())
            rest = Written(has_reasoned=total.has_reasoned) if self._form.is_incremental else total
            yield self._packet([self._choice(index, rest, reason)], reply.usage, {})

    def _take(self, choice: Mapping[str, Any], chunk: Mapping[str, Any]) -> dict[str, Any] | None:
        """Write one more chunk; None where it shows nothing."""
        index, delta = choice["index"], choice["delta"]
        total = self._all.setdefault(index, Written())
        sound = _sound(delta)
        fresh = Written(
            text=delta["content"] or _transcript(delta),
            reasoning=delta.get("reasoning_content") or "",
            calls=[_take_call(total, piece) for piece in delta["tool_calls"] or ()],
        )
        total.text += fresh.text
        total.reasoning += fresh.reasoning
        total.has_reasoned = fresh.has_reasoned = total.has_reasoned or bool(fresh.reasoning)
        is_new = fresh.text or fresh.reasoning or fresh.calls or sound.get("data")
        if not (is_new or "search_info" in chunk):
            return None
        shown = fresh if self._form.is_incremental else total
        choices = [self._choice(index, shown, None, choice["logprobs"])]
        return self._packet(choices, None, chunk, sound)

    def _choice(
        self, index: int, written: Written, reason: str | None, logprobs: Any = None
    ) -> dict[str, Any]:
        if reason is None:
            choice = self._writer.choice(index, written)
        else:
            choice = self._writer.choice(index, written, reason)
        return choice if logprobs is None else {**choice, "logprobs": logprobs}

    def _packet(
        self,
        choices: list[dict[str, Any]],
        usage: Mapping[str, Any] | None,
        said: Mapping[str, Any],
        sound: Mapping[str, Any] = MappingProxyType({}),
    ) -> dict[str, Any]:
        info = said.get("search_info")
        found = {} if info is None else {"search_info": info}
        if sound:
            found["audio"] = {name: sound[name] for name in SOUND if name in sound}
        counts = {} if usage is None else _to_usage(usage, has_details=self._form.has_parts)
        return self._writer.envelope({**self._writer.output(choices), **found}, counts)


def _sound(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the sound of a message, or of a piece of one; empty where there is none."""
    sound = said.get("audio")
    return sound if isinstance(sound, dict) else {}


def _transcript(said: Mapping[str, Any]) -> str:
    """Give the text of a message, or of a piece of one, where it stands beside its sound."""
    text = _sound(said).get("transcript")
    return text if isinstance(text, str) else ""


def _take_call(total: Written, piece: Mapping[str, Any]) -> dict[str, Any]:
    """Add a piece of a call; give it as a packet has it."""
    if "id" in piece:
        total.calls.append(deepcopy(dict(piece)))
        return dict(piece)
    total.calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    return {**piece, "id": "", "type": "function"}


def _to_usage(usage: Mapping[str, Any], *, has_details: bool) -> dict[str, Any]:
    """Write OpenAI's counts as DashScope's."""
    prompt = _counts(usage["prompt_tokens_details"])
    output = _counts(usage["completion_tokens_details"])
    cached = prompt.pop("cached_tokens", 0)
    written = {
        "input_tokens": usage["prompt_tokens"],
        "output_tokens": usage["completion_tokens"],
        "total_tokens": usage["total_tokens"],
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    if not has_details:
        return written | (
            {"output_tokens_details": output} if output.get("reasoning_tokens") else {}
        )
    seen = {name: count for name, count in prompt.items() if name != "text_tokens"}
    details = prompt or {"text_tokens": usage["prompt_tokens"]}
    return {**written, **seen, "input_tokens_details": details, "output_tokens_details": output}


def _counts(details: Mapping[str, Any]) -> dict[str, int]:
    return {name: count for name, count in details.items() if count is not None}
