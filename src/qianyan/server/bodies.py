"""Bodies of requests, checked while they come in: fast enough, and no more JSON than may be parsed.

Parsing JSON holds up every other request however it is called, so its cost is bounded beforehand,
by its size and by the number of its values. Halves of characters are refused: Python's parser
takes them, and no answer could be sent with one.
"""

import asyncio
import re
import time

from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import Message, Receive

from qianyan.server.errors import BodyError, RefusedError
from qianyan.server.settings import ServerLimits

GONE = 499
"""The status in log and counts of a request whose client went away before it was answered."""
STRUCTURE = (b",", b"[", b"{")
"""What every value in JSON but the first has before it."""
SUSPECT = (b"\\", b"\xed", b"\0")
"""Bytes without which no JSON holds an escape, half a character, or another encoding than UTF-8."""
_HALVES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")


class Body:
    """Receives one body; BodyError, which FastAPI lets out, ends what is not to be read on."""

    def __init__(self, headers: Headers, receive: Receive, limits: ServerLimits) -> None:
        self._receive = receive
        self._limits = limits
        self._is_json = "json" in headers.get("content-type", "")
        self._is_whole = False
        self._num_values = 0
        self._chunks: list[bytes] = []
        self._is_suspect = False
        self._ends_at = time.monotonic() + limits.body_timeout_s

    async def __call__(self) -> Message:
        """Receive the next part, or hear that the client has gone."""
        if self._is_whole:  # what is still waited for is that the client goes away
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._ends_at_loop()):
                message = await self._receive()
        except TimeoutError as error:
            raise BodyError(_too_slow()) from error
        if message["type"] == "http.disconnect":
            raise BodyError(_gone())
        if message["type"] == "http.request":
            body = message.get("body", b"")
            self._is_whole = not message.get("more_body", False)
            self._ends_at += len(body) / self._limits.least_body_rate
            if self._is_json:
                self._count(body)
                self._check_characters(body)
        return message

    def _check_characters(self, body: bytes) -> None:
        """Refuse halves of characters, which Python's parser takes and no answer can be sent with.

        Only a body that may hold one is parsed for it.
        """
        self._chunks.append(body)
        self._is_suspect = self._is_suspect or any(mark in body for mark in SUSPECT)
        if not self._is_whole:
            return
        whole = b"".join(self._chunks) if self._is_suspect else b""
        self._chunks.clear()  # who reads the body has them all
        if _HALVES.search(whole) is None and b"\0" not in whole[:4]:
            return
        try:
            from_json(whole)
        except ValueError as error:
            raise BodyError(_no_json()) from error

    def _ends_at_loop(self) -> float:
        return asyncio.get_running_loop().time() + self._ends_at - time.monotonic()

    def _count(self, body: bytes) -> None:
        self._num_values += sum(body.count(mark) for mark in STRUCTURE)
        if self._num_values > self._limits.max_json_values:
            raise BodyError(
                RefusedError(
                    f"The JSON of the body holds more than {self._limits.max_json_values} values. "
                    "Send less, or send pictures and documents by URL.",
                    status=413,
                    code="request_too_large",
                )
            )


def _gone() -> RefusedError:
    return RefusedError(
        "The client is gone before its request was whole.",
        status=GONE,
        code="client_closed_request",
    )


def _too_slow() -> RefusedError:
    return RefusedError(
        "The body of the request came too slowly.", status=408, code="request_timeout"
    )


def _no_json() -> RefusedError:
    return RefusedError(
        "The body is not valid JSON: expected UTF-8, and \\uD800 to \\uDFFF in pairs.",
        status=400,
        code="invalid_json",
    )
