"""Who asks: every request gets an id and, by its API key, an owner, before anything reads it.

Every path needs a key but `OPEN_PATHS`. Keys are kept and compared as SHA-256, in constant time.
A server without keys listens on loopback only, where a page in a browser could still reach it under
a name of its own that leads to 127.0.0.1: so it answers to the machine's own names alone.
"""

import hashlib
import hmac
import re
import uuid
from collections.abc import Sequence

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qianyan.server.errors import RefusedError, to_response
from qianyan.server.settings import LOOPBACK

OPEN_PATHS = frozenset({"/health", "/ready"})
"""Answered without a key; they say nothing but whether the server works."""
NOBODY = hashlib.sha256(b"").hexdigest()
"""The owner of everything where no keys are set."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Edge:
    """The outermost layer: request ids, keys, and bodies of refusals in the caller's dialect.

    Leaves `request_id` and `owner_id` in the request's state.
    """

    def __init__(self, app: ASGIApp, *, api_keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        reply = _Reply(scope, send, request_id)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        if scope["path"] not in OPEN_PATHS:
            try:
                state["owner_id"] = self._owner(headers)
            except RefusedError as error:
                response = to_response(error, path=scope["path"], request_id=request_id)
                await response(scope, receive, reply)
                return
        await self._app(scope, receive, reply)

    def _owner(self, headers: Headers) -> str:
        """Name the owner of a key; raises RefusedError for a wrong one."""
        if not self._digests:
            host = headers.get("host", "").rsplit(":", 1)[0].strip("[]")
            if host not in LOOPBACK:
                raise RefusedError(
                    "This server has no API keys, so it answers under 127.0.0.1 and localhost "
                    "only; start it with an API key to use another name.",
                    status=403,
                    code="access_denied",
                )
            return NOBODY
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip() if scheme.lower() == "bearer" else "")
        # All are compared, so that the time taken does not tell which one is nearest.
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        if not any(matches):
            raise RefusedError(
                "Incorrect API key provided; expected the header Authorization: Bearer with a key "
                "of this server.",
                status=401,
                code="invalid_api_key",
            )
        return given


class _Reply:
    """Sends a response with its request id; a bare 413 of the framework gets a dialect's body."""

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self._scope = scope
        self._send = send
        self._request_id = request_id
        self._is_replaced = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            is_bare = headers.get("content-type", "").startswith("text/plain")
            if message["status"] == 413 and is_bare:
                self._is_replaced = True
                await self._replace()
                return
            headers["x-request-id"] = self._request_id
        if not self._is_replaced:
            await self._send(message)

    async def _replace(self) -> None:
        refused = HTTPException(413)
        response = to_response(refused, path=self._scope["path"], request_id=self._request_id)
        await response(self._scope, _nothing, self._send)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def owner_of(request: Request) -> str:
    """Name the owner of what a request makes: the SHA-256 of its key, in hexadecimal."""
    owner: str = request.state.owner_id
    return owner


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _request_id(headers: Headers) -> str:
    """Take the caller's own id where it is harmless, else make one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
