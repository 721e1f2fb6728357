"""The edge: who asks, how often, how fast; every request passes here before anything reads it.

Every path needs a key but `OPEN_PATHS`. Keys are kept and compared as SHA-256, in constant time.
A server without keys listens on loopback only, where a page in a browser could still reach it under
a name of its own that leads to 127.0.0.1: so it answers to the machine's own names alone.
"""

import hmac
import logging
import re
import time
import uuid
from collections.abc import Sequence
from types import TracebackType

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qianyan.server.asking import Asked, asking
from qianyan.server.bodies import GONE, Body
from qianyan.server.errors import RefusedError, to_response
from qianyan.server.keys import NOBODY, digest_of, hash_key
from qianyan.server.logs import log_request
from qianyan.server.metrics import UNKNOWN_ROUTE, Metrics
from qianyan.server.settings import LOOPBACK, ServerSettings
from qianyan.server.socket_door import SocketReply, key_in_subprotocol, refuse_other_origins
from qianyan.server.voice_page import VOICE_PAGE_PATHS

logger = logging.getLogger(__name__)

UPLOAD_SINK = "/api/v1/uploads/sink"
"""Where Bailian's clients send files without their key; a signed policy stands for it."""
OPEN_PATHS = frozenset({"/health", "/ready", UPLOAD_SINK, *VOICE_PAGE_PATHS})
"""Reached without a key; the first two say nothing but whether the server works."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Edge:
    """The outermost layer: request ids, keys, rates, and the body of refusals in every dialect.

    Leaves `request_id` and `owner_id` in the request's state; counts and logs every request.
    """

    def __init__(self, app: ASGIApp, *, settings: ServerSettings, metrics: Metrics) -> None:
        self._app = app
        self._limits = settings.limits
        self._keys = Keys(settings.api_keys)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request or a socket through, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = Headers(scope=scope)
            request_id = _request_id(headers)
            ends_at = time.monotonic() + self._limits.max_answer_s
            with asking(Asked(request_id=request_id, ends_at=ends_at)) as asked:
                reply = _Reply(scope, send, asked, self._metrics)
                try:
                    async with _LastWord(scope, receive, reply):
                        await self._answer(scope, receive, reply, headers)
                finally:
                    self._note(scope, asked, reply.status)
        else:
            await self._open(scope, receive, send)

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a socket through that has a key; the app counts and logs what is asked over it."""
        headers = Headers(scope=scope)
        with asking(Asked(request_id=_request_id(headers))) as asked:
            reply = SocketReply(scope, send, asked)
            state = scope.setdefault("state", {})
            state["request_id"] = asked.request_id
            try:
                asked.owner_id = state["owner_id"] = self._keys.socket_owner(scope, headers)
                await self._app(scope, receive, reply)
            except RefusedError as error:
                response = to_response(error, path=scope["path"], request_id=asked.request_id)
                await response(scope, receive, reply)
            finally:
                self._note(scope, asked, reply.status)

    async def _answer(
        self, scope: Scope, receive: Receive, send: "_Reply", headers: Headers
    ) -> None:
        asked = send.asked
        state = scope.setdefault("state", {})
        state["request_id"] = asked.request_id
        if scope["path"] not in OPEN_PATHS:
            try:
                asked.owner_id = state["owner_id"] = self._keys.owner(headers)
                send.is_known = True
                if scope["method"] == "POST":
                    self._metrics.rates.pay_request(asked.owner_id)
            except RefusedError as error:
                response = to_response(error, path=scope["path"], request_id=asked.request_id)
                await response(scope, receive, send)
                return
        await self._app(scope, Body(headers, receive, self._limits), send)

    def _note(self, scope: Scope, asked: Asked, status: int) -> None:
        """Count and log a request that is over."""
        route = _route_of(scope)
        self._metrics.count_request(asked, route=route, status=status)
        log_request(asked, method=scope.get("method", "GET"), route=route, status=status)


class Keys:
    """Tells whose key a request has."""

    def __init__(self, api_keys: Sequence[str]) -> None:
        self._digests = [digest_of(key) for key in api_keys]

    def owner(self, headers: Headers) -> str:
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
        if "authorization" not in headers:
            raise _unknown("No API key was provided")
        scheme, _, key = headers["authorization"].partition(" ")
        return self._owner_of(key.strip() if scheme.lower() == "bearer" else "")

    def socket_owner(self, scope: Scope, headers: Headers) -> str:
        """Name the owner of a socket's key; in a browser it stands among the subprotocols.

        Without keys, the page that opens it has to be one of this machine's own.
        """
        if not self._digests:
            refuse_other_origins(headers)
        key = key_in_subprotocol(scope)
        if key is None or "authorization" in headers or not self._digests:
            return self.owner(headers)
        return self._owner_of(key)

    def _owner_of(self, key: str) -> str:
        given = hash_key(key)
        # All are compared, so that the time taken does not tell which one is nearest.
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        if not any(matches):
            raise _unknown("Incorrect API key provided")
        return given


def _unknown(what: str) -> RefusedError:
    return RefusedError(
        f"{what}; expected the header Authorization: Bearer with a key of this server.",
        status=401,
        code="invalid_api_key",
    )


class _LastWord:
    """Ends every error that nobody foresaw: it is logged, and answered with 500.

    A response that has begun is cut off. Nothing is raised further, for uvicorn would close a
    connection that the client means to use again.
    """

    def __init__(self, scope: Scope, receive: Receive, reply: "_Reply") -> None:
        self._scope, self._receive, self._reply = scope, receive, reply

    async def __aenter__(self) -> None:
        return

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        logger.error("request failed", exc_info=error)
        path, request_id = self._scope["path"], self._reply.asked.request_id
        response = to_response(error, path=path, request_id=request_id)
        if self._reply.status == GONE:
            await response(self._scope, self._receive, self._reply)
        return True


class _Reply:
    """Sends a response with its request id; a bare 413 of the framework gets a dialect's body."""

    def __init__(self, scope: Scope, send: Send, asked: Asked, metrics: Metrics) -> None:
        self.asked = asked
        self.status = GONE
        self.is_known = False
        self._scope = scope
        self._send = send
        self._metrics = metrics
        self._is_replaced = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            is_bare = headers.get("content-type", "").startswith("text/plain")
            self.status = message["status"]
            if message["status"] == 413 and is_bare:
                self._is_replaced = True
                await self._replace()
                return
            self._add_headers(headers)
        if not self._is_replaced:
            await self._send(message)

    def _add_headers(self, headers: MutableHeaders) -> None:
        headers["x-request-id"] = self.asked.request_id
        if self.is_known:
            for name, value in self._metrics.rates.headers(self.asked.owner_id).items():
                headers[name] = value

    async def _replace(self) -> None:
        refused = HTTPException(413)
        path, request_id = self._scope["path"], self.asked.request_id
        response = to_response(refused, path=path, request_id=request_id)
        await response(self._scope, _nothing, self._send)


def _route_of(scope: Scope) -> str:
    """Name the route that a request took as it is declared, with the prefix of its router."""
    route = scope.get("route")
    if route is None:
        return UNKNOWN_ROUTE
    declared: str = route.path_format
    filled = declared.format(**scope.get("path_params", {}))
    path: str = scope["path"]
    return path.removesuffix(filled) + declared if path.endswith(filled) else declared


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def owner_of(request: Request) -> str:
    """Name the owner of what a request makes: the SHA-256 of its key, in hexadecimal."""
    owner: str = request.state.owner_id
    return owner


def _request_id(headers: Headers) -> str:
    """Take the caller's own id where it is harmless, else make one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
