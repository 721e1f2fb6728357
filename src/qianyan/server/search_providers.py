"""Ask a web search provider: SearXNG, Tavily, or DuckDuckGo through the extra `search`.

The provider's address is the operator's own setting and may be private; what it answers is a
stranger's. Failures that may pass are tried once more. Keys appear in no message. Wire facts:
docs.searxng.org/dev/search_api and docs.tavily.com (POST /search).
"""

import json
import logging
import threading
import weakref
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol, get_args

import httpx2
import stamina

from qianyan.errors import ConfigError, EndpointError, quote
from qianyan.server.search_results import (
    Found,
    SearchLimits,
    SearchQuery,
    choose,
    plain,
    to_result,
)

# Its line per retry says nothing that the error at the end does not.
logging.getLogger("stamina").addHandler(logging.NullHandler())

ProviderName = Literal["searxng", "tavily", "ddgs"]
TAVILY_URL = "https://api.tavily.com"
MAX_CONNECTIONS = 16
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGES = ((31, "month"), (366, "year"))
_MAX_ANSWERS, _MAX_ANSWER_CHARS = 5, 1_000


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Which provider searches, where it is and what it may cost.

    `url` is needed for SearXNG and optional for Tavily; `api_key` is needed for Tavily and, sent
    as a bearer token, optional for SearXNG.
    """

    provider: ProviderName
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    limits: SearchLimits = field(default_factory=SearchLimits)


class SearchProvider(Protocol):
    """Whoever searches the web; calls may come from several threads."""

    name: str

    def search(self, query: SearchQuery) -> Found:
        """Search once; raises EndpointError when the provider cannot or will not."""


def open_provider(settings: SearchSettings) -> SearchProvider:
    """Make the provider that the settings name; nothing is sent yet.

    Raises ConfigError for an unknown provider, a missing address or key, or a missing extra.
    """
    if settings.provider == "searxng":
        if not settings.url:
            raise ConfigError(
                "The search provider searxng has no address; expected the URL of a SearXNG "
                "server whose settings allow the format json."
            )
        return SearXNG(settings)
    if settings.provider == "tavily":
        if not settings.api_key:
            raise ConfigError("The search provider tavily has no API key; expected one of Tavily.")
        return Tavily(settings)
    if settings.provider == "ddgs":
        return DuckDuckGo(settings)
    known = ", ".join(get_args(ProviderName))
    raise ConfigError(f"The search provider is {quote(settings.provider)}; expected {known}.")


class _TryAgainError(Exception):
    """A failure that may pass; its text is the sentence for when it does not."""


class _Caller:
    """Sends one request to a provider and reads its JSON, within the limits."""

    def __init__(self, name: str, url: str, settings: SearchSettings) -> None:
        self._name = name
        self._url = _checked_url(name, url)
        self._key = _checked_key(settings.api_key)
        self._limits = settings.limits
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=settings.limits.timeout_s,
            limits=httpx2.Limits(max_connections=MAX_CONNECTIONS),
        )
        weakref.finalize(self, self._client.close)

    def call(self, method: str, path: str, **sent: Any) -> dict[str, Any]:
        """Send until answered; raises EndpointError."""
        limits = self._limits
        attempts = stamina.retry_context(
            on=_TryAgainError,
            attempts=limits.attempts,
            timeout=None,
            wait_initial=limits.first_wait_s,
            wait_max=limits.first_wait_s,
            wait_jitter=limits.first_wait_s / 2,
        )
        try:
            for attempt in attempts:
                with attempt:
                    return self._send(method, path, sent)
        except _TryAgainError as error:
            raise EndpointError(str(error)) from error
        raise AssertionError("retry_context ends by returning or raising")

    def _send(self, method: str, path: str, sent: dict[str, Any]) -> dict[str, Any]:
        try:
            with self._client.stream(method, self._url + path, **sent) as response:
                raw = self._read(response)
        except httpx2.TimeoutException as error:
            raise _TryAgainError(
                f"The search provider {self._name} did not answer within "
                f"{self._limits.timeout_s:g} s. Try again later."
            ) from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise _TryAgainError(
                f"The search provider {self._name} cannot be reached. Check that it runs and that "
                "its address is right."
            ) from error
        self._check(response.status_code)
        try:
            data = json.loads(raw)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            raise EndpointError(
                f"The search provider {self._name} answers with something other than a JSON "
                "object. Check its address, and that its settings allow the format json."
            )
        return data

    def _read(self, response: httpx2.Response) -> bytes:
        """Read the body up to the limit, within the time of one attempt."""
        pieces, size = [], 0
        end = datetime.now(UTC) + timedelta(seconds=self._limits.timeout_s)
        for piece in response.iter_bytes():
            size += len(piece)
            if size > self._limits.max_reply_bytes:
                raise EndpointError(
                    f"The search provider {self._name} answers with more than "
                    f"{self._limits.max_reply_bytes / 1e6:g} MB; expected a list of results."
                )
            if datetime.now(UTC) > end:
                raise httpx2.ReadTimeout("The body arrives too slowly.")
            pieces.append(piece)
        return b"".join(pieces)

    def _check(self, status: int) -> None:
        if status == 200:
            return
        if status in _PASSING_STATUS:
            raise _TryAgainError(
                f"The search provider {self._name} fails or asks to slow down (status {status}). "
                "Try again later."
            )
        reasons = {
            401: "refuses the API key",
            403: "refuses the request; SearXNG does so while its settings do not allow json",
            432: "says that the plan's limit is used up",
            433: "says that the plan's limit is used up",
        }
        raise EndpointError(
            f"The search provider {self._name} {reasons.get(status, 'refuses the request')} "
            f"(status {status})."
        )


class SearXNG:
    """A SearXNG server."""

    name = "searxng"

    def __init__(self, settings: SearchSettings) -> None:
        self._limits = settings.limits
        self._caller = _Caller(self.name, settings.url or "", settings)

    def search(self, query: SearchQuery) -> Found:
        """Search once; sites go into the query, as its engines understand them."""
        text = query.text
        if query.sites:
            text += f" ({' OR '.join(f'site:{site}' for site in query.sites)})"
        params = {"q": text, "format": "json", "safesearch": "1"}
        if query.since_days:
            params["time_range"] = next(
                (word for days, word in _RANGES if query.since_days <= days), "year"
            )
        data = self._caller.call("GET", "/search", params=params)
        entries = (
            to_result(
                entry,
                text_key="content",
                time_key="publishedDate",
                icon_key="favicon",
                limits=self._limits,
            )
            for entry in _listed(data, "results")
        )
        answers = _answers(_listed(data, "answers")) if query.wants_answers else ()
        return Found(results=choose(entries, query), answers=answers)


class Tavily:
    """Tavily's search API, or a server that speaks it."""

    name = "tavily"

    def __init__(self, settings: SearchSettings) -> None:
        self._limits = settings.limits
        self._caller = _Caller(self.name, settings.url or TAVILY_URL, settings)

    def search(self, query: SearchQuery) -> Found:
        """Search once."""
        body: dict[str, Any] = {
            "query": query.text,
            "max_results": query.num_results,
            "search_depth": "advanced" if query.is_deep else "basic",
            "include_answer": query.wants_answers,
            "include_favicon": True,
        }
        if query.sites:
            body["include_domains"] = list(query.sites)
        if query.since_days:
            since = datetime.now(UTC) - timedelta(days=query.since_days)
            body["start_date"] = since.strftime("%Y-%m-%d")
        data = self._caller.call("POST", "/search", json=body)
        entries = (
            to_result(
                entry,
                text_key="content",
                time_key="published_date",
                icon_key="favicon",
                limits=self._limits,
            )
            for entry in _listed(data, "results")
        )
        answers = _answers([data.get("answer")]) if query.wants_answers else ()
        return Found(results=choose(entries, query), answers=answers)


class DuckDuckGo:
    """The package ddgs, which reads the result pages of public engines; they break now and then."""

    name = "ddgs"

    def __init__(self, settings: SearchSettings) -> None:
        try:
            from ddgs import DDGS  # noqa: PLC0415  (extra: search)
            from ddgs.exceptions import DDGSException  # noqa: PLC0415  (extra: search)
        except ImportError as error:
            raise ConfigError(
                "The search provider ddgs needs its package; pip install 'qianyan[search]'."
            ) from error
        self._limits = settings.limits
        self._open = DDGS
        self._failure: type[Exception] = DDGSException
        self._one_at_a_time = threading.Lock()

    def search(self, query: SearchQuery) -> Found:
        """Search once."""
        text = query.text
        if query.sites:
            text += f" ({' OR '.join(f'site:{site}' for site in query.sites)})"
        words = ((7, "w"), (31, "m"))
        since = next((word for days, word in words if (query.since_days or 0) <= days), "y")
        try:
            with self._one_at_a_time:
                listed = self._open(timeout=round(self._limits.timeout_s)).text(
                    text,
                    timelimit=since if query.since_days else None,
                    max_results=query.num_results,
                )
        except self._failure as error:
            raise EndpointError(
                "The search provider ddgs found no engine that answers. Try again later, or use "
                "searxng or tavily."
            ) from error
        entries = (
            to_result(
                {**entry, "url": entry.get("href")},
                text_key="body",
                time_key="date",
                icon_key="icon",
                limits=self._limits,
            )
            for entry in listed
        )
        return Found(results=choose(entries, query))


def _checked_url(name: str, url: str) -> str:
    wrong = ConfigError(
        f"The address of the search provider {name} is {quote(url)}; expected an http(s) URL "
        "without user name."
    )
    try:
        parsed = httpx2.URL(url.strip().rstrip("/"))
    except (httpx2.InvalidURL, ValueError) as error:
        raise wrong from error
    if parsed.scheme not in {"http", "https"} or not parsed.host or parsed.userinfo:
        raise wrong
    return str(parsed).removesuffix("/search").rstrip("/")


def _checked_key(key: str | None) -> str:
    if key and (not key.isascii() or any(char.isspace() for char in key)):
        raise ConfigError(
            "The API key of the search provider holds spaces or letters outside ASCII; expected "
            "the bare key. Copy it again."
        )
    return key or ""


def _listed(data: dict[str, Any], key: str) -> list[Any]:
    found = data.get(key)
    return found if isinstance(found, list) else []


def _answers(entries: list[Any]) -> tuple[str, ...]:
    """Take direct answers, which are texts or, in newer SearXNG, objects with one."""
    texts = (entry.get("answer") if isinstance(entry, dict) else entry for entry in entries)
    kept = (plain(text, _MAX_ANSWER_CHARS) for text in texts)
    return tuple(text for text in kept if text)[:_MAX_ANSWERS]
