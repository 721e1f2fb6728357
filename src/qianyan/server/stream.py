"""Responses that are written while they are made, and clients that go away meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from qianyan.server.errors import RefusedError

Made = TypeVar("Made")


def to_json(data: Any) -> str:
    """Write JSON as it goes over the wire: no blanks, no escapes beyond the necessary."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class EventStream(StreamingResponse):
    """Server-sent events; `leave` is called when the last is sent or the client goes away.

    Under another content-type in the `headers` it is any other body, sent as it is made.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[str] | AsyncIterator[bytes],
        *,
        leave: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # Proxies that collect a response before they pass it on are told not to.
        told = {"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})}
        super().__init__(events, headers=told)
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; also when the client is gone before the first, `leave` is called."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def unless_gone(request: Request, work: Coroutine[Any, Any, Made]) -> Made:
    """Do the work of a request, or cancel it as soon as the client is gone."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RefusedError("The client is gone.", status=499, code="client_closed_request")
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
