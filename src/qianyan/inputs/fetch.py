"""The only opener of URLs, files and data: URIs.

A URL may come from a stranger, so a fetch leads to the open internet or nowhere: http and https
only, on the usual ports, no credentials. The URL is parsed once; the host is resolved once, every
address it has must be public, and the connection goes to exactly those addresses with the host's
name kept for the Host header and TLS. Each of at most three redirects passes the same gate.
Proxies in the environment are ignored, one deadline covers everything from resolving to the last
byte, and the body is counted while it arrives. Error sentences are ours: no path of this machine,
no address a name resolved to, no library's text.

Known limits: a resolver thread may outlive its deadline by the system's own resolver timeout; a
picture's content is judged by the reader that decodes it, here only web pages are told apart.
"""

import base64
import binascii
import mimetypes
import queue
import re
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, unquote_to_bytes

import httpcore2
import httpx2

from qianyan import __version__
from qianyan.errors import MediaError, quote
from qianyan.inputs.addresses import find_literal, is_hostname, is_public
from qianyan.inputs.connection import PinnedBackend

Resolver = Callable[[str, int], Sequence[str]]
Headers = dict[bytes | str, bytes | str]
Noun = Literal["picture", "video", "sound", "document"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # two letters at least: C:\ is a path
_UNSAFE_IN_URL = re.compile(r"[\x00-\x20\x7f\\]")
_ENCODED_CONTROL = re.compile(r"%(?:[01][0-9A-Fa-f]|7[Ff])")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WEB_PAGE = re.compile(rb"^(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html|head|body|script)", re.I)
_SNIFFED_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """What a fetch may cost, and where it may lead.

    Args:
        max_bytes: largest body of a URL or data: URI.
        max_file_bytes: largest local file.
        timeout_s: for the whole fetch, redirects included.
        max_redirects: how many are followed.
        ports: that URLs may name.
        allow_private: hosts ("cam1.lan", on the usual ports) or hosts with a port
            ("192.168.1.20:8080") that may lead to any address; for cameras on the own network.
    """

    max_bytes: int = 20_000_000
    max_file_bytes: int = 500_000_000
    timeout_s: float = 20.0
    max_redirects: int = 3
    ports: frozenset[int] = frozenset({80, 443})
    allow_private: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Fetched:
    """What a source held; `media_type` is what was declared, not what was verified."""

    data: bytes
    media_type: str | None
    name: str


def resolve(host: str, port: int) -> list[str]:
    """Ask the system's resolver for a host's addresses."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(answer[4][0]) for answer in answers]


def fetch(
    source: str | Path,
    *,
    limits: FetchLimits | None = None,
    allow_files: bool = False,
    resolver: Resolver = resolve,
    noun: Noun = "picture",
) -> Fetched:
    """Bring the bytes of a URL, a data: URI or, where allowed, a local file.

    `noun` is what is looked for; only a document may be a web page. A local file is allowed where
    its name is text from outside; a Path, which only the program itself can make, always is.

    Raises:
        MediaError: code bad_url, private_address, name_not_resolved, connection_failed, timeout,
            too_many_redirects, http_status, too_large, empty_file, not_a_picture or not_found.
    """
    limits = limits or FetchLimits()
    scheme = _SCHEME.match(source) if isinstance(source, str) else None
    if isinstance(source, str) and scheme:
        name = scheme[1].lower()
        if name in {"http", "https"}:
            return _Download(limits, resolver, noun).run(source)
        if name == "data":
            return _read_data_uri(source, limits)
        if "://" in source:
            instead = "http, https or a plain path" if allow_files else "http or https"
            raise _bad_url(f"has the scheme {quote(name)}; expected {instead}", source)
    if not (allow_files or isinstance(source, Path)):
        raise MediaError(
            f"The {noun} is neither an http(s) URL nor a data: URI; local paths are not "
            "accepted here.",
            code="bad_url",
        )
    return _read_file(Path(source), limits)


def post(
    url: str, body: bytes, *, limits: FetchLimits | None = None, resolver: Resolver = resolve
) -> int:
    """Send JSON where a fetch might lead, and give the status; no redirect is followed.

    Raises:
        MediaError: code bad_url, private_address, name_not_resolved, connection_failed or timeout.
    """
    return _Download(limits or FetchLimits(), resolver, "document").post(url, body)


def find_file(source: str | Path) -> Path | None:
    """Take a local path as such, to be read piece by piece; None for a URL or data: URI.

    Raises MediaError not_found where there is no ordinary file.
    """
    if isinstance(source, str) and _SCHEME.match(source):
        return None
    path = Path(source)
    with _file_errors(path):
        _check_file(path)
    return path


def _read_file(path: Path, limits: FetchLimits) -> Fetched:
    """Read a regular file; devices and pipes could be endless."""
    with _file_errors(path):
        if _check_file(path) > limits.max_file_bytes:
            raise _too_large(f"The file {quote(path.name)}", limits.max_file_bytes)
        data = path.read_bytes()
    return Fetched(data, mimetypes.guess_type(path.name)[0], path.name)


def _check_file(path: Path) -> int:
    """Give the size in bytes of an ordinary file; refuse everything else."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{quote(path.name)} is a folder; expected a file.", code="not_found")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{quote(path.name)} is not an ordinary file.", code="not_found")
    return status.st_size


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Say in a sentence why a file cannot be read."""
    shown = quote(path.name)
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise MediaError(f"There is no file {shown}.", code="not_found") from error
    except PermissionError as error:
        raise MediaError(f"The file {shown} may not be read by this user.", code="not_found") from (
            error
        )
    except OSError as error:
        raise MediaError(f"The file {shown} cannot be read.", code="not_found") from error


def _read_data_uri(source: str, limits: FetchLimits) -> Fetched:
    """Decode a data: URI, base64 or percent-encoded."""
    header, comma, payload = source[len("data:") :].partition(",")
    if not comma:
        raise MediaError("The data: URI has no comma before its data.", code="bad_url")
    media_type, *parameters = (piece.strip().lower() for piece in header.split(";"))
    # Four characters carry three bytes at best; judged before anything is decoded.
    if len(payload) // 4 * 3 > limits.max_bytes:
        raise _too_large("The data: URI", limits.max_bytes)
    data = unquote_to_bytes(payload)
    if "base64" in parameters:
        packed = b"".join(data.split())
        try:
            data = base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
        except binascii.Error as error:
            raise MediaError("The data: URI is not valid base64.", code="bad_url") from error
    if not data:
        raise MediaError("The data: URI is empty (0 bytes).", code="empty_file")
    return Fetched(data, media_type or None, "inline")


@dataclass(frozen=True)
class _Target:
    """Where one hop goes: the parsed URL and the addresses that were judged."""

    url: httpx2.URL
    host: str
    port: int
    addresses: tuple[str, ...]


class _Download:
    """One fetch over http(s): the gate, the hops and the deadline."""

    def __init__(self, limits: FetchLimits, resolver: Resolver, noun: Noun) -> None:
        self._limits = limits
        self._noun = noun
        self._resolver = resolver
        self._deadline = time.monotonic() + limits.timeout_s

    def run(self, source: str) -> Fetched:
        """Follow the URL to its bytes."""
        shown = _shown(source)
        url = _parse(source)
        with self._told(shown):
            for _ in range(self._limits.max_redirects + 1):
                answer = self._get(self._target(url))
                if isinstance(answer, Fetched):
                    return answer
                url = _parse(answer, base=url)
        raise MediaError(
            f"{shown} redirects more than {self._limits.max_redirects} times; expected the "
            f"{self._noun}'s own URL.",
            code="too_many_redirects",
        )

    def post(self, source: str, body: bytes) -> int:
        """Send a body to the URL itself; what is answered but the status is not read."""
        with self._told(_shown(source)):
            target = self._target(_parse(source))
            with self._open(target, "POST", {"Content-Type": "application/json"}, body) as response:
                return response.status

    @contextmanager
    def _told(self, shown: str) -> Iterator[None]:
        """Say in a sentence what becomes of a connection."""
        try:
            yield
        except (httpcore2.TimeoutException, TimeoutError) as error:
            raise MediaError(
                f"{shown} did not arrive within {self._limits.timeout_s:g} s.", code="timeout"
            ) from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            why = "its certificate is not valid" if _is_tls(error) else "the connection failed"
            raise MediaError(f"{shown} cannot be fetched: {why}.", code="connection_failed") from (
                error
            )

    def _target(self, url: httpx2.URL) -> _Target:
        """Judge a parsed URL and the addresses of its host."""
        host, port = _check(url, self._limits)
        shown = _shown(str(url))
        literal = find_literal(host)
        is_allowed = _is_allowed(host, port, self._limits)
        if literal is not None:
            addresses: list[str] = [str(literal)]
        else:
            addresses = self._resolve(host, port, shown)
        if not is_allowed and not all(is_public(ip_address(address)) for address in addresses):
            raise MediaError(
                f"{shown} leads to a private or reserved address; only public ones are fetched. "
                "Cameras on your own network belong into the allow-list.",
                code="private_address",
            )
        return _Target(url, host, port, tuple(addresses))

    def _resolve(self, host: str, port: int, shown: str) -> list[str]:
        """Resolve a name once, within the deadline (the system's call knows no deadline)."""
        answers: queue.SimpleQueue[list[str] | OSError | ValueError] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(list(dict.fromkeys(self._resolver(host, port))))
            except (OSError, ValueError) as error:  # ValueError: names IDNA refuses
                answers.put(error)

        threading.Thread(target=ask, name="resolve", daemon=True).start()
        try:
            answer = answers.get(timeout=max(self._remaining_s(), 0.001))
        except queue.Empty as error:
            raise TimeoutError from error
        if isinstance(answer, Exception) or not answer:
            raise MediaError(
                f"{shown} cannot be fetched: there is no such host.", code="name_not_resolved"
            ) from (answer if isinstance(answer, Exception) else None)
        return answer

    def _get(self, target: _Target) -> Fetched | str:
        """Make one request; returns the body, or where it is redirected to."""
        headers: Headers = {"Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
        with self._open(target, "GET", headers) as response:
            return self._read(response, target)

    @contextmanager
    def _open(
        self, target: _Target, method: str, stated: Headers, body: bytes = b""
    ) -> Iterator[httpcore2.Response]:
        """Send one request to the addresses that were judged, and to no other."""
        is_default_port = target.url.port is None
        name = f"[{target.host}]" if ":" in target.host else target.host
        headers: Headers = {
            "Host": name if is_default_port else f"{name}:{target.port}",
            "User-Agent": f"qianyan/{__version__}",
            "Connection": "close",
            **stated,
            **({"Content-Length": str(len(body))} if body else {}),
        }
        left_s = max(self._remaining_s(), 0.001)
        backend = PinnedBackend(target.addresses, self._deadline)
        with (
            httpcore2.ConnectionPool(
                ssl_context=_tls() if target.url.scheme == "https" else None,
                network_backend=backend,
                max_connections=1,
            ) as pool,
            pool.stream(
                method,
                httpcore2.URL(
                    scheme=target.url.raw_scheme,
                    host=target.url.raw_host,
                    port=target.port,
                    target=target.url.raw_path,
                ),
                headers=headers,
                content=body or None,
                extensions={"timeout": {"connect": left_s, "read": left_s, "write": left_s}},
            ) as response,
        ):
            yield response

    def _read(self, response: httpcore2.Response, target: _Target) -> Fetched | str:
        """Read a response up to the limits."""
        shown = _shown(str(target.url))
        headers = httpx2.Headers(response.headers)
        location = headers.get("location")
        if response.status in _REDIRECTS and location:
            return location
        if response.status != HTTPStatus.OK:
            raise MediaError(f"{shown} answered {_status(response.status)}.", code="http_status")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise MediaError(
                f"{shown} answered with packed data; expected a {self._noun} as it is.",
                code="not_a_picture",
            )
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:15]) > self._limits.max_bytes:
            raise _too_large(shown, self._limits.max_bytes)
        body = bytearray()
        for chunk in response.iter_stream():
            body += chunk
            if len(body) > self._limits.max_bytes:
                raise _too_large(shown, self._limits.max_bytes)
        if not body:
            raise MediaError(f"{shown} answered with nothing (0 bytes).", code="empty_file")
        if self._noun != "document" and _WEB_PAGE.match(body[:_SNIFFED_BYTES]):
            raise MediaError(
                f"{shown} is a web page, not a {self._noun}; expected the {self._noun}'s own URL.",
                code="not_a_picture",
            )
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        return Fetched(bytes(body), media_type or None, _name(target.url))

    def _remaining_s(self) -> float:
        return self._deadline - time.monotonic()


@cache
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context(trust_env=False)


def _parse(text: str, *, base: httpx2.URL | None = None) -> httpx2.URL:
    """Parse a URL, the one time that it is parsed; a redirect's target is joined to its base."""
    if len(text) > 8192:
        raise _bad_url("is longer than 8192 characters", text)
    if _UNSAFE_IN_URL.search(text) or _ENCODED_CONTROL.search(text):
        raise _bad_url("has a space, a backslash or a control character in it", text)
    try:
        return base.join(text) if base else httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError) as error:
        raise _bad_url("is not a valid URL", text) from error


def _check(url: httpx2.URL, limits: FetchLimits) -> tuple[str, int]:
    """Judge a parsed URL; returns the host to dial (lower case, no brackets) and the port."""
    if url.scheme not in {"http", "https"}:
        raise _bad_url(f"has the scheme {quote(url.scheme)}; expected http or https", str(url))
    if url.userinfo or "@" in url.netloc.decode("ascii"):
        raise _bad_url("has a user name or password in it; expected none", str(url))
    host = url.raw_host.decode("ascii").lower().removeprefix("[").removesuffix("]")
    if find_literal(host) is None and not is_hostname(host):
        raise _bad_url("has no valid host name or address", str(url))
    usual_port = 443 if url.scheme == "https" else 80
    port = usual_port if url.port is None else url.port
    if port not in limits.ports and f"{host}:{port}" not in limits.allow_private:
        allowed = ", ".join(map(str, sorted(limits.ports)))
        raise _bad_url(f"names port {port}; expected one of {allowed}", str(url))
    return host, port


def _is_allowed(host: str, port: int, limits: FetchLimits) -> bool:
    return host in limits.allow_private or f"{host}:{port}" in limits.allow_private


def _bad_url(what: str, text: str) -> MediaError:
    return MediaError(f"{_shown(text)} {what}.", code="bad_url")


def _too_large(what: str, limit: int) -> MediaError:
    return MediaError(f"{what} is larger than {limit / 1e6:g} MB.", code="too_large")


def _shown(text: str) -> str:
    """Show a URL without what may be secret in it: user, password, query and fragment."""
    text = re.split(r"[?#]", text, maxsplit=1)[0]
    text = re.sub(r"(?<=//)[^/]*@", "", text)
    return quote("".join(char if char.isprintable() else "?" for char in text))


def _status(status: int) -> str:
    try:
        return f"{status} ({HTTPStatus(status).phrase})"
    except ValueError:
        return str(status)


def _is_tls(error: BaseException | None) -> bool:
    """Whether a failed connection failed in its TLS handshake."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _name(url: httpx2.URL) -> str:
    """Make a harmless file name from the last piece of a URL's path."""
    last = unquote(url.raw_path.decode("ascii").partition("?")[0]).rsplit("/", 1)[-1]
    kept = "".join(char for char in last if char.isprintable() and char not in '\\/:*?"<>|')
    return kept.strip(". ")[-100:] or "picture"
