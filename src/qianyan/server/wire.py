"""Connections that cannot be held open for nothing: uvicorn's, with limits of time and size.

uvicorn closes what is silent between two requests and no more. Here a head has to be whole within
a time, and a reader that takes nothing for too long while an answer waits for it is cut off, so
that what the answer holds is free again. Bodies are timed where they are read (`server/bodies.py`).
h11 is used, and not what else is installed, because it bounds the size of heads. Sockets have the
same limits, and are opened where one speaks in real time, nowhere else.
"""

import asyncio
import logging
import socket
import sys
import uuid
from functools import partial
from typing import Any, cast

import h11
import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from qianyan.server.errors import RefusedError, to_response
from qianyan.server.settings import ServerLimits, ServerSettings

if sys.platform != "win32":
    import resource

logger = logging.getLogger(__name__)
OTHER_FILES = 512
"""Files beside connections: the model's, the database's, those that are read and fetched."""
SOCKET_PATHS = frozenset({"/v1/realtime", "/compatible-mode/v1/realtime", "/api-ws/v1/realtime"})
PING_EVERY_S, PONG_WITHIN_S = 20.0, 60.0


class SilentReader:
    """Cuts off a reader that takes nothing for too long while something waits for it."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, transport: asyncio.Transport) -> None:
        """Begin to wait."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._limits.write_timeout_s, transport.abort)

    def end(self) -> None:
        """Stop waiting: something was taken, or the connection is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Connection(H11Protocol):
    """One connection of a client."""

    def __init__(self, *args: Any, limits: ServerLimits, **options: Any) -> None:
        super().__init__(*args, **options)
        self.access_log = False  # its lines hold paths as they were sent; `logs.py` has ours
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._reader = SilentReader(limits)
        self._is_one_too_many = self._is_socket = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head; one connection too many is answered with 503."""
        super().connection_made(transport)
        self._is_one_too_many = len(self.connections) > self._limits.max_connections
        if self._is_one_too_many:
            self.app = partial(_refuse, self._limits)
        self._time_head()

    def data_received(self, data: bytes) -> None:
        """Take what has come; a head that has begun has to end in time.

        So has the body of a request that is answered already, which nobody reads.
        """
        super().data_received(data)
        if self._is_socket:
            self._stop_timing_head()
        elif self.cycle is None or self.cycle.response_complete:
            self._time_head()
        else:
            self._stop_timing_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every clock."""
        self._stop_timing_head()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait for a reader that takes nothing."""
        super().pause_writing()
        self._reader.begin(self.transport)

    def resume_writing(self) -> None:
        """Go on: the reader has taken something."""
        self._reader.end()
        super().resume_writing()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over to a `Socket`, which has its own clocks."""
        self._is_socket = True
        super().handle_websocket_upgrade(event)

    def _should_upgrade(self) -> bool:
        """Open sockets where there are some; elsewhere the header that asks for one means nothing.

        One connection too many is refused like any other.
        """
        if self._is_one_too_many or self.scope["path"] not in SOCKET_PATHS:
            return False
        return super()._should_upgrade()

    def _time_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.head_timeout_s, self._cut_off)

    def _stop_timing_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cut_off(self) -> None:
        self.transport.abort()


class Socket(WebSocketsSansIOProtocol):
    """One connection over which events go both ways."""

    def __init__(self, *args: Any, limits: ServerLimits, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reader = SilentReader(limits)

    def pause_writing(self) -> None:
        """Begin to wait for a reader that takes nothing."""
        super().pause_writing()
        self._reader.begin(self.transport)

    def resume_writing(self) -> None:
        """Go on: the reader has taken something."""
        self._reader.end()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._reader.end()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """uvicorn's server, which says in the log when it begins to stop and when it has ended."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections; let answers that run end, as long as that may take."""
        logger.info(
            "stopping; %d connections are open, whose answers have %s s",
            len(self.server_state.connections),
            self.config.timeout_graceful_shutdown,
        )
        await super().shutdown(sockets)
        logger.info("stopped")
        for handler in logging.root.handlers:  # uvicorn lets the signal end the process now
            handler.flush()


def _allow_files(count: int) -> None:
    """Raise the number of files this process may open; many systems begin with 1024."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _refuse(limits: ServerLimits, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request on a connection that is one too many, and close it."""
    refused = RefusedError(
        f"{limits.max_connections} connections are open, the most that may be. Try again later.",
        status=503,
        code="server_busy",
        retry_after_s=limits.retry_after_s,
    )
    response = to_response(refused, path=scope["path"], request_id=str(uuid.uuid4()))
    response.headers["connection"] = "close"
    await response(scope, receive, send)


def listen_config(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    """Say how uvicorn serves an app: with our connections, and no log of its own.

    Lets this process open as many files as that takes, where the system allows it.
    """
    limits = settings.limits
    _allow_files(limits.max_connections + OTHER_FILES)
    connection = partial(Connection, limits=limits)
    return uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", connection),
        ws=cast("type[asyncio.Protocol]", partial(Socket, limits=limits)),
        ws_max_size=settings.realtime.max_event_bytes,
        ws_ping_interval=PING_EVERY_S,
        ws_ping_timeout=PONG_WITHIN_S,
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=limits.max_head_bytes,
        timeout_keep_alive=limits.keep_alive_s,
        timeout_graceful_shutdown=limits.drain_s,
    )
