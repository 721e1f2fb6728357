"""Server-sent events out of the bytes of a response, wherever the network cut them.

Follows the event stream format of HTML: several data lines are one event's, comments and other
fields are left out, lines end with LF or CRLF; an event whose last blank line is missing counts.
"""

from qianyan.errors import EndpointError

MAX_STREAM_BYTES = 64 * 1024 * 1024
"""Far above any answer: each token of a few letters travels in some 300 bytes of JSON."""
MAX_LINE_BYTES = 4 * 1024 * 1024


class EventLines:
    """Takes bytes piece by piece and gives the data of the events that they complete.

    `where` names the endpoint in errors.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._held = b""
        self._size = 0
        self._data: list[str] = []

    def push(self, piece: bytes) -> list[str]:
        """Take a piece; raises EndpointError beyond the limits."""
        self._size += len(piece)
        *lines, self._held = (self._held + piece).split(b"\n")
        if self._size > MAX_STREAM_BYTES or len(self._held) > MAX_LINE_BYTES:
            raise EndpointError(
                f"{self._where} sends more than {MAX_STREAM_BYTES // 2**20} MiB for one answer or "
                f"{MAX_LINE_BYTES // 2**20} MiB in one line; expected a chat completion."
            )
        return [event for line in lines for event in self._take(line)]

    def finish(self) -> list[str]:
        """Give the event that the end of the stream completes, if there is one."""
        return [event for line in (self._held, b"") for event in self._take(line)]

    def _take(self, raw: bytes) -> list[str]:
        line = raw.removesuffix(b"\r").decode(errors="replace")
        if line.startswith("data:"):
            self._data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and self._data:
            event, self._data = "\n".join(self._data), []
            return [event]
        return []
