"""The door of a socket: its key where a browser puts it, where it was opened from, its status.

Source: OpenAI's Realtime API. A page in a browser can set no header of a socket: its key comes
among the subprotocols, as `openai-insecure-api-key.` and the key. Browsers let every page open a
socket to every server, and say from where: a server without keys listens to pages of its own
machine only.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Scope, Send

from qianyan.server.asking import Asked
from qianyan.server.bodies import GONE
from qianyan.server.errors import RefusedError
from qianyan.server.settings import LOOPBACK

KEY_PROTOCOL = "openai-insecure-api-key."
OPENED = 101
"""The status in log and counts of a socket that was opened."""


def key_in_subprotocol(scope: Scope) -> str | None:
    """Find the key that a browser sends; None where there is none."""
    offered: list[str] = scope.get("subprotocols", [])
    given = [one.removeprefix(KEY_PROTOCOL) for one in offered if one.startswith(KEY_PROTOCOL)]
    return given[0] if given else None


def refuse_other_origins(headers: Headers) -> None:
    """Raise RefusedError for a socket that a page of another machine opens; programs name none."""
    origin = headers.get("origin")
    if origin is not None and _host_of(origin) not in LOOPBACK:
        raise RefusedError(
            "This server has no API keys, so its sockets are opened by pages of this machine only; "
            "start it with an API key to talk to it from other pages.",
            status=403,
            code="access_denied",
        )


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).hostname
    except ValueError:  # brackets that hold no address
        return None


class SocketReply:
    """Opens a socket with the id of its request, or sends a refusal; keeps the status."""

    def __init__(self, scope: Scope, send: Send, asked: Asked) -> None:
        self.status = GONE
        self._scope, self._send, self._asked = scope, send, asked

    async def __call__(self, message: Message) -> None:
        """Send a message on."""
        if message["type"] == "websocket.accept":
            self.status = OPENED
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            headers["x-request-id"] = self._asked.request_id
            message = {**message, "headers": headers.raw}
        elif message["type"] == "websocket.http.response.start":
            self.status = message["status"]
        await self._send(message)
