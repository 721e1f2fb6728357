"""search_options as Bailian's callers send them."""

from typing import Any

import pytest

from qianyan.errors import InputError
from qianyan.server.search_options import STRATEGIES, SearchOptions, read_search_options


def test_nothing_given_means_the_defaults() -> None:
    assert read_search_options(None) == SearchOptions() == read_search_options({})
    assert SearchOptions().strategy == STRATEGIES["turbo"]


def test_all_keys_are_read() -> None:
    options = read_search_options(
        {
            "search_strategy": "agent_max",
            "forced_search": True,
            "enable_search_extension": True,
            "enable_source": True,
            "enable_citation": True,
            "citation_format": "[ref_<number>]",
            "prepend_search_result": True,
            "freshness": 30,
            "assigned_site_list": ["Example.com.", "example.com", "a.b.cn"],
            "intention_options": {"prompt_intervene": " only\nlaws "},
        }
    )
    assert options.assigned_site_list == ("example.com", "a.b.cn")
    assert options.prompt_intervene == "only laws"
    assert options.cite(3) == "[ref_3]"
    assert options.strategy.is_deep
    assert options.forced_search
    assert options.freshness == 30


def test_numbers_in_the_answer_bring_their_list() -> None:
    assert read_search_options({"enable_citation": True}).enable_source


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "expected an object"),
        ({"forced": True}, "expected one of search_strategy"),
        ({"forced_search": "yes"}, "expected true or false"),
        ({"search_strategy": "best"}, "expected one of turbo, max"),
        ({"search_strategy": ["turbo"]}, "expected one of turbo"),
        ({"citation_format": "(<number>)"}, r"expected one of \[<number>\]"),
        ({"freshness": 8}, "expected one of 7, 30, 180, 365"),
        ({"freshness": True}, "expected one of 7"),
        ({"assigned_site_list": "example.com"}, "expected a list of at most 25"),
        ({"assigned_site_list": ["example.com"] * 26}, "26 hosts"),
        ({"assigned_site_list": ["localhost"]}, "expected host names"),
        ({"assigned_site_list": ["127.0.0.1"]}, "expected host names"),
        ({"assigned_site_list": ["a.com) OR (b"]}, "expected host names"),
        ({"assigned_site_list": [7]}, "expected host names"),
        ({"intention_options": "laws"}, "prompt_intervene"),
        ({"intention_options": {"prompt_intervene": "x" * 501}}, "500 characters"),
    ],
)
def test_what_is_outside_the_form_is_refused(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_search_options(given)
