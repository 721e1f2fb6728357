"""Pass a conversation on to an upstream model, whole or streamed, for both dialects.

What is sent is the request as it came, fields that nobody here knows included, but for the model's
name there and for what the messages name (`upstream_media.py`).
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from qianyan.errors import QianyanError
from qianyan.inputs.media import MediaLimits
from qianyan.server.asking import asked_now
from qianyan.server.errors import RefusedError, openai_body, to_failure
from qianyan.server.metrics import Metrics
from qianyan.server.openai_request import ChatRequest
from qianyan.server.preparing import Preparing
from qianyan.server.settings import ServerLimits, ServerSettings
from qianyan.server.stream import EventStream, to_json, unless_gone
from qianyan.server.upstream import TimeOverError, Upstream, UpstreamStream
from qianyan.server.upstream_media import MediaCarrier
from qianyan.server.upstream_reply import UpstreamReply

CHAT = "/chat/completions"


@dataclass(kw_only=True)
class UpstreamModels:
    """All upstream models of a server, and who reads what is sent to them.

    `attach` puts files in the place of `oss://…`; set by whoever keeps them.
    """

    by_name: Mapping[str, Upstream]
    limits: ServerLimits
    media: MediaLimits
    preparing: Preparing
    attach: Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]] = list

    def find(self, name: str) -> Upstream | None:
        """Find the model that requests call so."""
        found = self.by_name.get(name)
        if found is not None:
            asked_now().model = name
        return found

    async def close(self) -> None:
        """Close all connections and threads."""
        self.preparing.close()
        for one in self.by_name.values():
            await one.close()

    async def ask(self, upstream: Upstream, chat: ChatRequest) -> dict[str, Any]:
        """Give the whole reply, in OpenAI's form; raises RefusedError and InputError."""
        reply = self._reply(upstream, chat)
        content = await self._content(upstream, chat, is_stream=False)
        whole = reply.whole(await upstream.ask(CHAT, content))
        if reply.usage is not None:
            upstream.count(asked_now(), reply.usage)
        return whole

    async def begin(
        self, upstream: Upstream, chat: ChatRequest
    ) -> tuple[UpstreamStream, UpstreamReply]:
        """Let a stream begin; whoever gets it must `leave` it."""
        reply = self._reply(upstream, chat)
        content = await self._content(upstream, chat, is_stream=True)
        return await upstream.open(CHAT, content), reply

    def check(self, chat: ChatRequest) -> None:
        """Raise RefusedError for what is not passed on."""
        most, count = self.limits.max_choices, 1 if chat.n is None else chat.n
        if not 1 <= count <= most:
            raise _refused(f"n is {count}; expected 1 to {most}.", "n")
        if chat.coordinate_space is not None:
            raise _refused(
                f"The model {chat.model[:80]} is at another server, whose boxes are not known "
                "here; expected coordinate_space left out.",
                "coordinate_space",
            )

    def _reply(self, upstream: Upstream, chat: ChatRequest) -> UpstreamReply:
        self.check(chat)
        return UpstreamReply(upstream, num_choices=chat.n or 1)

    async def _content(self, upstream: Upstream, chat: ChatRequest, *, is_stream: bool) -> bytes:
        carrier = MediaCarrier(self.media, max_bytes=upstream.settings.limits.max_media_bytes)

        def write() -> bytes:
            messages = carrier.carry(self.attach(chat.messages))
            return _write(chat, messages, upstream.settings.model, is_stream=is_stream)

        return await self.preparing.call(asked_now(), write)


def open_upstreams(
    settings: ServerSettings, media: MediaLimits, metrics: Metrics
) -> UpstreamModels:
    """Make the upstream models of a server, on its event loop; nothing is sent yet."""
    limits = settings.limits
    by_name = {one.name: Upstream(one, limits, metrics) for one in settings.upstreams}
    metrics.watch(
        {
            ("qianyan_upstream_requests_running", "Requests asked of upstream models."): lambda: (
                sum(one.num_running for one in by_name.values())
            ),
            (
                "qianyan_upstream_requests_waiting",
                "Requests waiting for upstream models.",
            ): lambda: sum(one.num_waiting for one in by_name.values()),
        }
    )
    return UpstreamModels(
        by_name=by_name,
        limits=limits,
        media=media,
        preparing=Preparing(limits),
    )


async def pass_on(
    request: Request, chat: ChatRequest, models: UpstreamModels, upstream: Upstream
) -> Response:
    """Answer a request in OpenAI's form."""
    if not chat.stream:
        whole = await unless_gone(request, models.ask(upstream, chat))
        return Response(to_json(whole), media_type="application/json")
    stream, reply = await unless_gone(request, models.begin(upstream, chat))
    events = _write_events(
        stream, reply, request_id=request.state.request_id, includes_usage=chat.includes_usage
    )
    return EventStream(events, leave=stream.leave)


async def chunks_of(stream: UpstreamStream, reply: UpstreamReply) -> AsyncIterator[dict[str, Any]]:
    """Follow a stream, in OpenAI's form up to the counts.

    Raises RefusedError when it breaks off. What was read of it is paid for in any case.
    """
    is_cut, num_pieces = False, 0
    try:
        for written in reply.open():
            yield written
        try:
            async for given in stream:
                for written in reply.take(given):
                    stream.asked.note_token()
                    num_pieces += 1
                    yield written
        except TimeOverError:
            is_cut = True
        if not (is_cut or stream.is_done or reply.is_closed):
            raise stream.upstream.failed("stopped in the middle of its answer.")
        for written in reply.finish(is_cut=is_cut):
            yield written
    finally:
        unknown = {"prompt_tokens": 0, "completion_tokens": num_pieces}
        stream.upstream.count(stream.asked, reply.usage or unknown)


async def _write_events(
    stream: UpstreamStream, reply: UpstreamReply, *, request_id: str, includes_usage: bool
) -> AsyncIterator[str]:
    """Write a stream in OpenAI's framing; what ends it early becomes an event with the error."""
    try:
        async for written in chunks_of(stream, reply):
            yield _event(written)
    except QianyanError as error:
        yield _event(openai_body(to_failure(error), request_id))
        return
    if includes_usage:
        yield _event(reply.usage_chunk())
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {to_json(data)}\n\n"


def _write(
    chat: ChatRequest, messages: list[dict[str, Any]], model: str, *, is_stream: bool
) -> bytes:
    """Write the body that is sent."""
    body = {name: getattr(chat, name) for name in chat.model_fields_set}
    body |= {"messages": messages, "model": model, "stream": is_stream}
    # Always counted: tokens are paid for whether the caller wants to see their number or not.
    body["stream_options"] = {"include_usage": True} if is_stream else None
    stated = {name: value for name, value in body.items() if value is not None}
    return json.dumps(stated).encode()


def _refused(message: str, param: str) -> RefusedError:
    return RefusedError(message, status=400, code="unsupported_value", param=param)
