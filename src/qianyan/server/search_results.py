"""What searches found, in one form whatever the provider: plain text within bounds, numbered.

A provider passes on what strangers wrote: titles and snippets lose their markup, everything is
cut to its limit, and addresses other than http(s) are left out.
"""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urldefrag, urlsplit

from qianyan.inputs.document_parts import one_line

_TAG = re.compile(r"</?[A-Za-z][^<>]{0,300}>")
_LONGEST_URL = 2000
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")


@dataclass(frozen=True, kw_only=True)
class SearchLimits:
    """What web search may cost, whatever the provider says.

    Args:
        timeout_s: for one attempt at one search.
        attempts: how often a search is tried when the provider fails in passing.
        first_wait_s: before the second attempt.
        max_reply_bytes: largest answer of a provider.
        max_query_chars: longest query; the rest is cut.
        max_title_chars: longest title; the rest is cut.
        max_snippet_chars: longest text of one result; the rest is cut.
        max_source_chars: of all sources of one conversation together; further ones are left out.
        max_calls: searches that a model may ask for in one reply; it is told of the others.
        max_at_once: conversations that a server searches for at the same time.
        max_waiting: conversations that wait for one of those; one more is refused with 429.
    """

    timeout_s: float = 10.0
    attempts: int = 2
    first_wait_s: float = 0.5
    max_reply_bytes: int = 4_000_000
    max_query_chars: int = 400
    max_title_chars: int = 200
    max_snippet_chars: int = 1_000
    max_source_chars: int = 12_000
    max_calls: int = 3
    max_at_once: int = 16
    max_waiting: int = 256


@dataclass(frozen=True, kw_only=True)
class SearchQuery:
    """One search as providers are asked for it; `since_days` None means of any age."""

    text: str
    num_results: int
    is_deep: bool = False
    wants_answers: bool = False
    since_days: int | None = None
    sites: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """One page that was found; `time` is as the provider states it, "" where it does not."""

    url: str
    title: str
    snippet: str
    site_name: str
    time: str = ""
    icon: str = ""
    index: int = 0

    @property
    def size(self) -> int:
        """Characters that a prompt holds of it."""
        return len(self.url) + len(self.title) + len(self.snippet) + len(self.time)

    def to_json(self) -> dict[str, object]:
        """Write it as Bailian's search_info does, with time and snippet besides."""
        return {
            "index": self.index,
            "title": self.title,
            "url": self.url,
            "site_name": self.site_name,
            "icon": self.icon,
            "time": self.time,
            "snippet": self.snippet,
        }


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one search found: pages, and direct answers where they were wanted."""

    results: tuple[SearchResult, ...] = ()
    answers: tuple[str, ...] = ()


def plain(text: object, most: int) -> str:
    """Make one line of plain text of a stranger's words, cut to `most` characters."""
    if not isinstance(text, str):
        return ""
    # Unescaped once, after the tags: what then looks like a tag was meant to be read.
    line = one_line(html.unescape(_TAG.sub(" ", text[: 20 * most])))
    return line if len(line) <= most else line[: most - 1] + "…"


def to_result(
    entry: object, *, text_key: str, time_key: str, icon_key: str, limits: SearchLimits
) -> SearchResult | None:
    """Read one entry of a provider's list; None for one without an http(s) address."""
    if not isinstance(entry, dict):
        return None
    url, host = _web_address(entry.get("url"))
    if not url:
        return None
    icon, _ = _web_address(entry.get(icon_key))
    return SearchResult(
        url=url,
        title=plain(entry.get("title"), limits.max_title_chars) or host,
        snippet=plain(entry.get(text_key), limits.max_snippet_chars),
        site_name=host.removeprefix("www."),
        time=plain(entry.get(time_key), 40),
        icon=icon,
    )


def choose(results: Iterable[SearchResult | None], query: SearchQuery) -> tuple[SearchResult, ...]:
    """Keep the first results that the query allows, each address once.

    Providers take sites and age as hints. A result that states no time is kept.
    """
    oldest = datetime.now(UTC) - timedelta(days=query.since_days + 1) if query.since_days else None
    kept: dict[str, SearchResult] = {}
    for result in results:
        if result is None or not _is_on(result, query.sites):
            continue
        stated = _DATE.match(result.time)
        if oldest and stated and stated[0] < oldest.strftime("%Y-%m-%d"):
            continue
        kept.setdefault(result.url, result)
        if len(kept) == query.num_results:
            break
    return tuple(kept.values())


class Sources:
    """The numbered sources of one conversation; a page found twice keeps its number."""

    def __init__(self, limits: SearchLimits) -> None:
        self._room = limits.max_source_chars
        self._by_url: dict[str, SearchResult] = {}

    def __len__(self) -> int:
        return len(self._by_url)

    def add(self, results: Sequence[SearchResult]) -> tuple[SearchResult, ...]:
        """Number what was found; returns it, less what there is no room for."""
        numbered = []
        for result in results:
            if result.url not in self._by_url:
                if result.size > self._room:
                    continue
                self._room -= result.size
                self._by_url[result.url] = replace(result, index=len(self._by_url) + 1)
            numbered.append(self._by_url[result.url])
        return tuple(numbered)

    def to_json(self) -> list[dict[str, object]]:
        """List all sources by their numbers."""
        return [result.to_json() for result in self._by_url.values()]


def _web_address(url: object) -> tuple[str, str]:
    """Give an http(s) address without its fragment, and its host; two empty texts for others."""
    if not isinstance(url, str) or len(url) > _LONGEST_URL or any(c.isspace() for c in url):
        return "", ""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
    except ValueError:
        return "", ""
    if parts.scheme not in {"http", "https"} or not host or not url.isprintable():
        return "", ""
    return urldefrag(url).url, host


def _is_on(result: SearchResult, sites: tuple[str, ...]) -> bool:
    host = urlsplit(result.url).hostname or ""
    return not sites or any(host == site or host.endswith(f".{site}") for site in sites)
