"""Speak the OpenAI chat protocol to a model elsewhere: retries, limits, errors as sentences.

Only fields that vLLM, Bailian's compatible mode, Ollama, LM Studio and `transformers serve` all
take are sent, unless a profile says more. The address is the user's own setting and may be
private; the API key appears in no message and no log.
"""

import json
import logging
import threading
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import stamina

from qianyan.errors import EndpointError, quote
from qianyan.inspection.remote.event_stream import Delta, read_deltas, to_delta

# Its line per retry says too little for a terminal; who wants it configures logging.
logging.getLogger("stamina").addHandler(logging.NullHandler())

_CHAT = "/chat/completions"
_SPEECH = "/audio/speech"
_WHOLE = ("application/json", "text/html")
MAX_REPLY_BYTES = 16 * 1024 * 1024
MAX_NAMES_SHOWN = 8
LONGEST_RETRY_AFTER_S = 60.0
_RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_BACK_OFF_STATUS = frozenset({429, 503})
_Answered = tuple[httpx2.Response, bytes]


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long one call may take, how often it is repeated, and the waits between (doubling)."""

    timeout_s: float = 120.0
    attempts: int = 5
    first_wait_s: float = 0.5
    longest_wait_s: float = 20.0


@dataclass(frozen=True, kw_only=True)
class OptionNames:
    """What errors call the settings of an endpoint, for its user to correct them."""

    base_url: str = "--base-url"
    api_key: str = "--api-key or QIANYAN_API_KEY"
    model: str = "--model"


class RefusedError(EndpointError):
    """The endpoint answered with a status that repeating the same request does not change."""

    def __init__(self, message: str, *, status: int, said: str) -> None:
        super().__init__(message)
        self.status = status
        self.said = said


class _TryAgainError(Exception):
    """A failure that may pass; `sentence` is said when it does not."""

    def __init__(self, sentence: str, wait_s: float | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.wait_s = wait_s


class ChatEndpoint:
    """One base address with its key; calls may come from several threads.

    At most `concurrency` requests are under way at once.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        patience: Patience | None = None,
        concurrency: int = 4,
        names: OptionNames = OptionNames(),
    ) -> None:
        """Check the address; nothing is sent yet.

        Raises EndpointError when the address is no http(s) URL.
        """
        self.base_url = base_url.strip().rstrip("/")
        self._key = api_key or ""
        self._names = names
        self._patience = patience or Patience()
        self._free = threading.BoundedSemaphore(concurrency)
        _check_url(self.base_url)
        if not self._key.isascii() or any(char.isspace() for char in self._key):
            raise EndpointError(
                "The API key holds spaces or letters outside ASCII; expected the bare key. "
                "Copy it again."
            )
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(self._patience.timeout_s, connect=10.0, pool=None),
            limits=httpx2.Limits(max_connections=concurrency),
        )
        # Owners come and go with the settings of a run; connections end with the last of them.
        weakref.finalize(self, self._client.close)

    def models(self) -> list[str]:
        """List the models the endpoint offers; raises EndpointError when it does not say."""
        data = self._repeat("GET", "/models", None)
        entries = data.get("data")
        if not isinstance(entries, list):
            raise EndpointError(
                f"{self.base_url}/models does not list models. Name one with {self._names.model}."
            )
        names = [entry.get("id") for entry in entries if isinstance(entry, dict)]
        return [name for name in names if isinstance(name, str)]

    def first_model(self) -> str:
        """Pick the first model the endpoint offers."""
        names = self.models()
        if not names:
            raise EndpointError(f"{self.base_url} offers no model. Load one there first.")
        return names[0]

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for one chat completion and return the response object.

        Raises:
            RefusedError: the request will not be served as it is (400, 401, 404, 413, ...).
            EndpointError: not reached, or still failing after all attempts.
        """
        with self._naming_the_model(body):
            return self._repeat("POST", _CHAT, body)

    def stream(self, body: Mapping[str, Any]) -> Generator[Delta, None, None]:
        """Ask for one chat completion and yield it as it arrives.

        Failures are repeated until the answer begins, and not after. Closing the iterator ends the
        request. Raises as `chat` does, and EndpointError when the answer breaks off.
        """
        with self._naming_the_model(body), self._opened({**body, "stream": True}) as response:
            if response.headers.get("content-type", "").startswith(_WHOLE):
                raw = _read(response, self.base_url)  # a server that does not stream
                yield to_delta(self._parse(raw, response), self.base_url)
            else:
                yield from read_deltas(response.iter_bytes(), self.base_url)

    def read_aloud(self, body: Mapping[str, Any]) -> bytes:
        """Have a text read aloud, and give the bytes of the file.

        Raises RefusedError, also with the status 404 where there is no such address, and
        EndpointError as `chat` does.
        """
        response, raw = self._answered("POST", _SPEECH, body)
        if response.headers.get("content-type", "").startswith(_WHOLE):
            self._parse(raw, response)
            raise EndpointError(f"{self.base_url} answers with text where sound was expected.")
        return raw

    @contextmanager
    def _opened(self, body: Mapping[str, Any]) -> Iterator[httpx2.Response]:
        """Hold a request whose answer has begun."""
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        request = self._client.build_request(
            "POST", self.base_url + _CHAT, content=content, headers=headers
        )
        try:
            with self._free:
                for attempt in self._attempts():
                    with attempt:
                        response = self._begin(request)
                try:
                    with self._saying_why():
                        yield response
                finally:
                    response.close()
        except _TryAgainError as error:
            raise EndpointError(error.sentence) from error

    def _begin(self, request: httpx2.Request) -> httpx2.Response:
        """Send once, and return when the answer's head is there."""
        with self._saying_why():
            response = self._client.send(request, stream=True)
            if response.status_code == 200:
                return response
            try:
                raw = _read(response, self.base_url)
            finally:
                response.close()
        raise self._failure(response, raw)

    @contextmanager
    def _naming_the_model(self, body: Mapping[str, Any]) -> Iterator[None]:
        """Say of a request that finds nothing whether model or address is wrong."""
        try:
            yield
        except RefusedError as error:
            if error.status == 404:
                raise self._not_found(str(body.get("model")), error) from error
            raise

    def _attempts(self) -> Iterable[stamina.Attempt]:
        """Try again, waiting longer each time, or as long as the endpoint asks for."""
        patience = self._patience
        return stamina.retry_context(
            on=_when_to_try_again,
            attempts=patience.attempts,
            timeout=None,
            wait_initial=patience.first_wait_s,
            wait_max=patience.longest_wait_s,
            wait_jitter=patience.first_wait_s / 2,
        )

    def _repeat(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """Send until answered."""
        response, raw = self._answered(method, path, body)
        return self._parse(raw, response)

    def _answered(self, method: str, path: str, body: Mapping[str, Any] | None) -> _Answered:
        try:
            for attempt in self._attempts():
                with attempt, self._free:
                    return self._exchange(method, path, body)
        except _TryAgainError as error:
            raise EndpointError(error.sentence) from error
        raise AssertionError("retry_context ends by returning or raising")

    def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None) -> _Answered:
        """Send once."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if content else {}
        with (
            self._saying_why(),
            self._client.stream(
                method, self.base_url + path, content=content, headers=headers
            ) as response,
        ):
            raw = _read(response, self.base_url)
        if response.status_code == 200:
            return response, raw
        raise self._failure(response, raw)

    @contextmanager
    def _saying_why(self) -> Iterator[None]:
        """Turn what can happen to a connection into sentences."""
        try:
            yield
        except httpx2.ConnectError as error:
            raise _TryAgainError(
                f"Nothing answers at {self.base_url}: the connection failed. Start the model "
                f"server there, or correct {self._names.base_url}."
            ) from error
        except httpx2.TimeoutException as error:
            raise _TryAgainError(
                f"{self.base_url} did not answer within {self._patience.timeout_s:g} s. The model "
                "may be too slow or still loading; raise the time limit or try again."
            ) from error
        except httpx2.TransportError as error:
            raise _TryAgainError(
                f"{self.base_url} broke off the connection while answering. Look at the server's "
                "log."
            ) from error

    def _parse(self, raw: bytes, response: httpx2.Response) -> dict[str, Any]:
        try:
            data = json.loads(raw)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            kind = response.headers.get("content-type", "no content type").partition(";")[0]
            raise EndpointError(
                f"{self.base_url} answers with {quote(kind)} where JSON was expected. The address "
                "of an OpenAI-compatible API usually ends in /v1."
            )
        if data.get("error"):
            raise RefusedError(
                f"{self.base_url} answers with an error{self._said(raw)}",
                status=200,
                said=raw[:2000].decode(errors="replace"),
            )
        return data

    def _failure(self, response: httpx2.Response, raw: bytes) -> Exception:
        """Turn an error status into the sentence that helps, retryable or not."""
        status = response.status_code
        if status in _RETRIED_STATUS:
            word = "asks to slow down" if status in _BACK_OFF_STATUS else "fails"
            return _TryAgainError(
                f"{self.base_url} still {word} after {self._patience.attempts} attempts "
                f"(status {status}){self._said(raw)} Ask less at once, or try later.",
                _retry_after_s(response) if status in _BACK_OFF_STATUS else None,
            )
        if status in {401, 403}:
            given = "refuses the API key" if self._key else "wants an API key"
            sentence = (
                f"{self.base_url} {given} (status {status}). Give the right one with "
                f"{self._names.api_key}."
            )
        elif response.is_redirect:
            target = quote(response.headers.get("location", "nowhere"))
            sentence = f"{self.base_url} redirects to {target}; give the final address."
        else:
            sentence = f"{self.base_url} refuses the request (status {status}){self._said(raw)}"
        return RefusedError(sentence, status=status, said=raw[:2000].decode(errors="replace"))

    def _not_found(self, model: str, error: RefusedError) -> EndpointError:
        """Tell a wrong model name from a wrong address."""
        try:
            names = self.models()
        except EndpointError:
            return EndpointError(
                f"{self.base_url} has no chat completions (status 404). The address of an "
                "OpenAI-compatible API usually ends in /v1."
            )
        if model in names:
            return error
        shown = ", ".join(quote(name) for name in names[:MAX_NAMES_SHOWN]) or "nothing"
        more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
        return EndpointError(
            f"{self.base_url} has no model {quote(model)}; it offers {shown}{more}. "
            f"Choose one with {self._names.model}."
        )

    def _said(self, raw: bytes) -> str:
        """Quote the endpoint's own message, without the key should it repeat it."""
        message = _message(raw)
        if self._key:
            message = message.replace(self._key, "…")
        return f": {quote(message)}." if message else "."


def _check_url(base_url: str) -> None:
    """Refuse what is no plain http(s) address; user names and passwords do not belong into it."""
    try:
        url = httpx2.URL(base_url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise EndpointError(_NO_URL.format(shown=quote(base_url))) from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise EndpointError(_NO_URL.format(shown=quote(base_url)))
    if url.userinfo:
        raise EndpointError("The base URL holds a user name; give the key with --api-key instead.")


_NO_URL = "The base URL is {shown}; expected an address such as http://localhost:8000/v1."


def _when_to_try_again(error: Exception) -> bool | float:
    """Tell the retry loop whether to go on, and after how many seconds if the endpoint said."""
    if not isinstance(error, _TryAgainError):
        return False
    return True if error.wait_s is None else error.wait_s


def _retry_after_s(response: httpx2.Response) -> float | None:
    """Read Retry-After in seconds; dates and nonsense are left to our own waits."""
    try:
        wait_s = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(wait_s, LONGEST_RETRY_AFTER_S) if wait_s >= 0 else None


def _read(response: httpx2.Response, base_url: str) -> bytes:
    """Read the body up to the limit."""
    pieces, size = [], 0
    for piece in response.iter_bytes():
        size += len(piece)
        if size > MAX_REPLY_BYTES:
            raise EndpointError(
                f"{base_url} answers with more than {MAX_REPLY_BYTES // 2**20} MiB; "
                "expected a chat completion."
            )
        pieces.append(piece)
    return b"".join(pieces)


def _message(raw: bytes) -> str:
    """Find the message in an error body, in the forms that servers use."""
    try:
        data = json.loads(raw)
    except ValueError:
        return ""
    for key in ("error", "detail", "message"):
        value = data.get(key) if isinstance(data, dict) else None
        if isinstance(value, dict):
            value = value.get("message")
        if isinstance(value, str) and value:
            return " ".join(value.split())
    return ""
