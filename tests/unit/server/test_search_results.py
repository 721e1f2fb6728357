"""Results in one form, within bounds, whatever a provider sends."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qianyan.server.search_results import (
    SearchLimits,
    SearchQuery,
    SearchResult,
    Sources,
    choose,
    plain,
    to_result,
)

# How long a draw takes says nothing where others use the machine too.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
LIMITS = SearchLimits(max_title_chars=20, max_snippet_chars=50)
KEYS = {"text_key": "content", "time_key": "date", "icon_key": "icon"}


def result(url: str, **more: Any) -> SearchResult:
    made = to_result({"url": url, **more}, limits=LIMITS, **KEYS)
    assert made is not None
    return made


def test_markup_goes_and_what_was_escaped_stays_readable() -> None:
    assert plain("a <b>bold</b>\n&lt;b&gt; 1 < 2", 100) == "a bold <b> 1 < 2"
    assert plain(None, 5) == ""
    assert plain("abcdef", 5) == "abcd…"


def test_addresses_other_than_of_the_web_are_left_out() -> None:
    for url in ("ftp://a.b/c", "javascript:x", "http://", "https://a b", None, "http://[::1", ""):
        assert to_result({"url": url}, limits=LIMITS, **KEYS) is None
    assert to_result("text", limits=LIMITS, **KEYS) is None


def test_sites_include_what_lies_below_them_and_nothing_that_only_looks_alike() -> None:
    query = SearchQuery(text="x", num_results=9, sites=("example.com",))
    urls = ["https://example.com/", "https://a.example.com/", "https://notexample.com/"]
    kept = choose(map(result, urls), query)
    assert [one.url for one in kept] == urls[:2]


def test_results_that_state_an_older_day_are_left_out() -> None:
    query = SearchQuery(text="x", num_results=9, since_days=7)
    pages = [
        result("https://a.b/1", date="2001-01-01"),
        result("https://a.b/2", date="2099-01-01T10:00"),
        result("https://a.b/3", date="yesterday"),
        result("https://a.b/4"),
    ]
    assert [one.url[-1] for one in choose(pages, query)] == ["2", "3", "4"]


def test_a_page_found_twice_keeps_its_number_and_room_is_kept_to() -> None:
    sources = Sources(SearchLimits(max_source_chars=60))
    first = sources.add([result("https://a.b/1", content="x" * 20)])
    again = sources.add([result("https://a.b/2", content="x" * 50), first[0]])
    assert [one.index for one in (*first, *again)] == [1, 1]
    assert len(sources) == 1
    assert sources.to_json()[0]["index"] == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@UNHURRIED
@given(st.dictionaries(st.sampled_from(["url", "title", "content", "date", "icon"]), JSON))
def test_whatever_an_entry_holds_it_is_read_within_bounds_or_left_out(entry: Any) -> None:
    made = to_result(entry, limits=LIMITS, **KEYS)
    if made is not None:
        assert made.url.startswith(("http://", "https://"))
        assert len(made.title) <= max(20, len(made.url))
        assert len(made.snippet) <= 50
        assert "\n" not in made.title + made.snippet + made.time
