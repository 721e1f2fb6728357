"""Ask a model at another server, with the promises of the model here.

Whoever asks waits in a line of its own for each upstream model, fair among keys and bounded; what
is sent holds our key for that server, never the caller's; a caller who goes away closes the
connection there at once. Nothing is asked twice: a refusal to do more is handed on with its
Retry-After. What the other server says of an error is quoted, without the key.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import httpx2

from qianyan.errors import EndpointError
from qianyan.inputs.event_lines import EventLines
from qianyan.server.asking import Asked, asked_now
from qianyan.server.errors import RefusedError
from qianyan.server.line import Line
from qianyan.server.metrics import Metrics
from qianyan.server.settings import ServerLimits
from qianyan.server.upstream_settings import UpstreamSettings

LONGEST_MESSAGE = 500
KEEP_ALIVE_S = 2.0
"""Less than the five seconds after which uvicorn, and so vLLM, closes an idle connection itself."""
_OF_REQUEST = frozenset({400, 409, 413, 415, 422})
"""Statuses that say that the request itself is wrong."""
DONE = "[DONE]"
Made = TypeVar("Made")


class TimeOverError(Exception):
    """The time for the request is over."""


class Upstream:
    """One upstream model; made and used on one event loop."""

    def __init__(self, settings: UpstreamSettings, limits: ServerLimits, metrics: Metrics) -> None:
        self.settings = settings
        self._retry_after_s = limits.retry_after_s
        self._metrics = metrics
        own = settings.limits
        self._line = Line(own.max_connections, limits)
        headers = {"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(own.timeout_s, connect=own.connect_timeout_s, pool=None),
            limits=httpx2.Limits(
                max_connections=own.max_connections, keepalive_expiry=KEEP_ALIVE_S
            ),
        )

    @property
    def named(self) -> str:
        """What sentences call it."""
        return f"The upstream server of the model {self.settings.name}"

    @property
    def num_running(self) -> int:
        """Count the requests that are asked there now."""
        return self._line.num_seated

    @property
    def num_waiting(self) -> int:
        """Count the requests that wait in line."""
        return self._line.num_waiting

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def ask(self, path: str, content: bytes) -> dict[str, Any]:
        """Ask for a whole reply; raises RefusedError when there is none."""
        asked = asked_now()
        await self._line.sit(asked.owner_id)
        try:
            return await self.within(asked, self._ask(path, content))
        except TimeOverError as error:
            raise self._timed_out() from error
        finally:
            self._line.stand_up(asked.owner_id)

    async def open(self, path: str, content: bytes) -> "UpstreamStream":
        """Ask for a streamed reply; whoever gets it must `leave` it.

        Raises RefusedError when it does not begin.
        """
        asked = asked_now()
        await self._line.sit(asked.owner_id)
        response = None
        try:
            response = await self.within(asked, self._send(path, content))
        except TimeOverError as error:
            raise self._timed_out() from error
        finally:
            if response is None:
                self._line.stand_up(asked.owner_id)
        return UpstreamStream(self, response, asked)

    def stand_up(self, asked: Asked) -> None:
        """Give the seat of a stream back."""
        self._line.stand_up(asked.owner_id)

    def count(self, asked: Asked, usage: dict[str, Any]) -> None:
        """Count the tokens of an answer, in OpenAI's words; its key pays for them."""
        tokens = {
            "prompt": usage["prompt_tokens"],
            "completion": usage["completion_tokens"],
            "cached": (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        }
        self._metrics.count_answer(asked, tokens)

    async def within(self, asked: Asked, work: Awaitable[Made]) -> Made:
        """Wait for something as long as the request has time; raises TimeOverError after it."""
        left_s = None if asked.ends_at is None else asked.ends_at - time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                return await self._told(work)
        except TimeoutError as error:
            raise TimeOverError from error

    async def _told(self, work: Awaitable[Made]) -> Made:
        """Turn what can happen to a connection into sentences."""
        try:
            return await work
        except httpx2.ConnectTimeout as error:
            raise self._unreachable() from error
        except httpx2.TimeoutException as error:
            raise self._timed_out() from error
        except httpx2.ConnectError as error:
            raise self._unreachable() from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise self.failed("broke off the connection.") from error

    async def _ask(self, path: str, content: bytes) -> dict[str, Any]:
        response = await self._send(path, content)
        try:
            raw = await self.read(response)
        finally:
            await response.aclose()
        return await asyncio.to_thread(self._parse, raw)

    async def _send(self, path: str, content: bytes) -> httpx2.Response:
        """Send, and return when the head of a good answer is there."""
        request = self._client.build_request(
            "POST",
            self.settings.base_url + path,
            content=content,
            headers={"content-type": "application/json", "x-request-id": asked_now().request_id},
        )
        response = await self._client.send(request, stream=True)
        if response.status_code == 200:
            return response
        try:
            raw = await self.read(response)
        finally:
            await response.aclose()
        raise self._refused(response, raw)

    async def read(self, response: httpx2.Response) -> bytes:
        """Read a whole body, up to the limit."""
        pieces, size, most = [], 0, self.settings.limits.max_reply_bytes
        async for piece in response.aiter_bytes():
            size += len(piece)
            if size > most:
                raise self.failed(f"sends more than {most} bytes for one answer.")
            pieces.append(piece)
        return b"".join(pieces)

    def _parse(self, raw: bytes) -> dict[str, Any]:
        try:
            data = _loads(raw)
            if b"\\ud" in raw.lower():  # half of a surrogate pair cannot be sent on
                data = _loads(json.dumps(data, ensure_ascii=False).encode(errors="replace"))
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            raise self.failed("sends no JSON object where one was expected.")
        if data.get("error"):
            raise self.failed(f"answers with an error{self._said(data)}")
        return data

    def parse(self, text: str) -> dict[str, Any]:
        """Read one event of a stream."""
        return self._parse(text.encode())

    def failed(self, what: str) -> RefusedError:
        """Say what the server did wrong."""
        return RefusedError(f"{self.named} {what}", status=502, code="upstream_failed")

    def _refused(self, response: httpx2.Response, raw: bytes) -> RefusedError:
        """Say what an error status means to the caller."""
        status = response.status_code
        try:
            data = json.loads(raw)
        except (ValueError, RecursionError):
            data = None
        said = self._said(data)
        if status == 429 or status == 503:
            return RefusedError(
                f"{self.named} takes no more requests for now (status {status}){said} "
                "Try again later.",
                status=status,
                code="limit_requests" if status == 429 else "server_busy",
                retry_after_s=self._wait_s(response),
            )
        if status in _OF_REQUEST:
            error = data.get("error") if isinstance(data, dict) else None
            code = error.get("code") if isinstance(error, dict) else None
            is_long = code == "context_length_exceeded"
            return RefusedError(
                f"{self.named} refuses the request{said}",
                status=400 if status in (409, 415, 422) else status,
                code="context_length_exceeded" if is_long else "upstream_refused",
            )
        if status in (401, 403):
            return self.failed(
                f"does not accept this server's key (status {status}); whoever runs this server "
                "has to set the right one."
            )
        if status == 404:
            return self.failed(
                f"has nothing at the address or no such model (status 404){said} Whoever runs "
                "this server has to correct its settings."
            )
        if status in (408, 504):
            return self._timed_out()
        return self.failed(f"fails (status {status}){said}")

    def _unreachable(self) -> RefusedError:
        return RefusedError(
            f"{self.named} cannot be reached. Try again later.",
            status=502,
            code="upstream_unreachable",
        )

    def _timed_out(self) -> RefusedError:
        return RefusedError(
            f"{self.named} did not answer in time. Try again later, or ask for a shorter answer.",
            status=504,
            code="upstream_timeout",
        )

    def _wait_s(self, response: httpx2.Response) -> int:
        """Read Retry-After in seconds; a date or nonsense means our own."""
        text = response.headers.get("retry-after", "")
        if not (text.isascii() and text.isdigit()):
            return self._retry_after_s
        return min(int(text[:9]), self.settings.limits.longest_retry_after_s)

    def _said(self, data: Any) -> str:
        """Quote the server's own sentence, without the key should it repeat it."""
        error = data.get("error") if isinstance(data, dict) else None
        found = error.get("message") if isinstance(error, dict) else error
        if not found and isinstance(data, dict):
            found = data.get("message") or data.get("detail")
        if not isinstance(found, str) or not found.strip():
            return "."
        text = " ".join(found.encode(errors="replace").decode().split())
        if self.settings.api_key:
            text = text.replace(self.settings.api_key, "…")
        return f": '{text[:LONGEST_MESSAGE]}'."


class UpstreamStream:
    """A streamed reply on its way; iterate once over its chunks.

    Iterating raises RefusedError when it breaks off and TimeOverError when the time is over.
    `is_done` says that the server itself said that all was sent.
    """

    def __init__(self, upstream: Upstream, response: httpx2.Response, asked: Asked) -> None:
        self.upstream = upstream
        self.asked = asked
        self.is_done = False
        self._response = response
        self._closing: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """Close the connection, which ends the answer there; a second time does nothing."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._response.aclose())
            self.upstream.stand_up(self.asked)

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        if not self._response.headers.get("content-type", "").startswith("text/event-stream"):
            raw = await self._in_time(self.upstream.read(self._response))
            self.is_done = True
            yield self.upstream.parse(raw.decode(errors="replace"))
            return
        events = EventLines(self.upstream.named)
        pieces = aiter(self._response.aiter_bytes())
        while (piece := await self._in_time(anext(pieces, None))) is not None:
            for chunk in self._chunks(events, piece):
                yield chunk
            if self.is_done:
                return
        for chunk in self._chunks(events, None):
            yield chunk

    def _chunks(self, events: EventLines, piece: bytes | None) -> list[dict[str, Any]]:
        """Read the chunks that a piece completes, None being the end, up to the mark [DONE]."""
        chunks = []
        try:
            for data in events.finish() if piece is None else events.push(piece):
                if data.strip() == DONE:
                    self.is_done = True
                    break
                chunks.append(self.upstream.parse(data))
        except EndpointError as error:
            raise self.upstream.failed("sends more than an answer can be.") from error
        return chunks

    async def _in_time(self, work: Awaitable[Made]) -> Made:
        return await self.upstream.within(self.asked, work)


def _loads(raw: bytes) -> Any:
    return json.loads(raw, parse_constant=_no_constant, parse_float=_finite)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number that can be written again")
    return number
