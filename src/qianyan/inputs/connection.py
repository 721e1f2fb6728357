"""Connections that go to judged addresses only and end at one deadline."""

import ssl
import time
from collections.abc import Iterable, Sequence

import httpcore2


class PinnedBackend(httpcore2.NetworkBackend):
    """Dials the judged addresses, whatever host the request names, and keeps the deadline."""

    def __init__(self, addresses: Sequence[str], deadline: float) -> None:
        self._addresses = addresses
        self._deadline = deadline
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002  (its addresses were judged; asking again would be the hole)
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first judged address that answers."""
        failure: httpcore2.NetworkError | httpcore2.TimeoutException = httpcore2.ConnectError()
        for index, address in enumerate(self._addresses):
            share_s = _left(self._deadline, timeout) / (len(self._addresses) - index)
            try:
                stream = self._sockets.connect_tcp(
                    address, port, share_s, local_address, socket_options
                )
            except (httpcore2.NetworkError, httpcore2.TimeoutException) as error:
                failure = error
                continue
            return _TimedStream(stream, self._deadline)
        raise failure


class _TimedStream(httpcore2.NetworkStream):
    """A stream on which every wait ends at one deadline, so that dripping does not prolong it."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read some bytes before the deadline."""
        return self._stream.read(max_bytes, _left(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all bytes, each send before the deadline."""
        self._stream.write(buffer, _left(self._deadline, timeout))

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        """Start TLS under the host's name."""
        stream = self._stream.start_tls(
            ssl_context, server_hostname, _left(self._deadline, timeout)
        )
        return _TimedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> object:
        """Pass on what the connection knows of itself."""
        return self._stream.get_extra_info(info)


def _left(deadline: float, timeout_s: float | None) -> float:
    """Seconds until the deadline, at most `timeout_s`; raises when there are none."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise httpcore2.ReadTimeout
    return left_s if timeout_s is None else min(left_s, timeout_s)
