"""Providers against a real HTTP server on this machine that speaks their JSON."""

import importlib.util
import runpy
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qianyan.errors import ConfigError, EndpointError
from qianyan.server.search_providers import SearchProvider, SearchSettings, open_provider
from qianyan.server.search_results import SearchLimits, SearchQuery

SERVER = runpy.run_path(str(Path(__file__).with_name("search_server.py")))
KEY = SERVER["KEY"]
QUICK = SearchLimits(timeout_s=0.3, first_wait_s=0.01)


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    server = SERVER["SearchServer"]()
    yield server
    server.close()


@pytest.fixture
def server(running: Any) -> Any:
    running.asked.clear()
    return running


def searxng(server: Any) -> SearchProvider:
    return open_provider(SearchSettings(provider="searxng", url=server.url, limits=QUICK))


def tavily(server: Any, key: str = KEY) -> SearchProvider:
    settings = SearchSettings(provider="tavily", url=server.url, api_key=key, limits=QUICK)
    return open_provider(settings)


def test_searxng_is_asked_in_its_words_and_its_pages_become_plain(server: Any) -> None:
    query = SearchQuery(text="hats", num_results=5, since_days=30, sites=("example.com", "a.cn"))
    (found,) = searxng(server).search(query).results
    path, asked, key = server.asked[0]
    assert (path, key) == ("/search", "")
    assert asked == {
        "q": "hats (site:example.com OR site:a.cn)",
        "format": "json",
        "safesearch": "1",
        "time_range": "month",
    }
    assert found.url == "https://www.example.com/hats"
    assert (found.title, found.site_name) == ("Hard hats & rules", "example.com")
    assert found.snippet == "Hats are worn everywhere on site."
    assert found.time.startswith("2099-01-02")
    assert found.icon == "https://www.example.com/icon.png"


def test_searxng_gives_direct_answers_where_they_are_wanted(server: Any) -> None:
    provider = searxng(server)
    assert provider.search(SearchQuery(text="x", num_results=2)).answers == ()
    found = provider.search(SearchQuery(text="x", num_results=2, wants_answers=True))
    assert found.answers == ("21 °C", "sunny")
    assert len(found.results) == 2


def test_tavily_is_asked_in_its_words(server: Any) -> None:
    query = SearchQuery(
        text="hats",
        num_results=7,
        is_deep=True,
        wants_answers=True,
        since_days=7,
        sites=("example.com",),
    )
    found = tavily(server).search(query)
    path, asked, key = server.asked[0]
    since = datetime.now(UTC) - timedelta(days=7)
    assert (path, key) == ("/search", f"Bearer {KEY}")
    assert asked == {
        "query": "hats",
        "max_results": 7,
        "search_depth": "advanced",
        "include_answer": True,
        "include_favicon": True,
        "include_domains": ["example.com"],
        "start_date": since.strftime("%Y-%m-%d"),
    }
    assert found.answers == ("It is sunny.",)
    assert [one.site_name for one in found.results] == ["example.com"]


@pytest.mark.parametrize("open_one", [searxng, tavily])
def test_a_failure_in_passing_is_tried_once_more(server: Any, open_one: Any) -> None:
    assert open_one(server).search(SearchQuery(text="flaky", num_results=5)).results
    assert len(server.asked) == 2


@pytest.mark.parametrize("open_one", [searxng, tavily])
@pytest.mark.parametrize(
    ("text", "said", "times"),
    [
        ("down", "status 503", 2),
        ("refused", "status 403", 1),
        ("slow", "did not answer within 0.3 s", 2),
        ("prose", "something other than a JSON object", 1),
        ("huge", "more than 4 MB", 1),
    ],
)
def test_failures_are_sentences(
    server: Any, open_one: Any, text: str, said: str, times: int
) -> None:
    with pytest.raises(EndpointError, match=said):
        open_one(server).search(SearchQuery(text=text, num_results=5))
    assert len(server.asked) == times


@pytest.mark.parametrize("text", ["nothing", "broken"])
def test_no_results_are_no_error(server: Any, text: str) -> None:
    query = SearchQuery(text=text, num_results=5, wants_answers=True)
    assert searxng(server).search(query).results == ()


def test_a_refused_key_is_not_repeated(server: Any) -> None:
    with pytest.raises(EndpointError, match="refuses the API key") as caught:
        tavily(server, "wrong-key").search(SearchQuery(text="x", num_results=1))
    assert "wrong-key" not in str(caught.value)
    assert "wrong-key" not in repr(SearchSettings(provider="tavily", api_key="wrong-key"))


def test_a_provider_that_is_not_there_is_a_sentence() -> None:
    settings = SearchSettings(provider="searxng", url="http://127.0.0.1:9", limits=QUICK)
    with pytest.raises(EndpointError, match="cannot be reached"):
        open_provider(settings).search(SearchQuery(text="x", num_results=1))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"provider": "searxng"}, "has no address"),
        ({"provider": "tavily"}, "has no API key"),
        ({"provider": "google"}, "expected searxng, tavily, ddgs"),
        ({"provider": "searxng", "url": "file:///etc/passwd"}, "expected an http"),
        ({"provider": "searxng", "url": "http://user:word@host"}, "without user name"),
        ({"provider": "tavily", "api_key": "two words"}, "holds spaces"),
    ],
)
def test_settings_that_say_something_impossible_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_provider(SearchSettings(**settings))


@pytest.mark.skipif(importlib.util.find_spec("ddgs") is not None, reason="ddgs is installed")
def test_without_its_extra_ddgs_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"qianyan\[search\]"):
        open_provider(SearchSettings(provider="ddgs"))


@pytest.mark.network
def test_ddgs_finds_pages() -> None:
    pytest.importorskip("ddgs", reason="the extra search is not installed")
    query = SearchQuery(text="hard hat", num_results=3)
    assert open_provider(SearchSettings(provider="ddgs")).search(query).results
