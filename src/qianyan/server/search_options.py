"""What a caller may ask of web search: `search_options` as Bailian names them, checked once.

Bailian knows freshness and site lists for its strategy turbo only; here every strategy takes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qianyan.errors import InputError, quote
from qianyan.inputs.addresses import is_hostname

MAX_SITES = 25
MAX_SCOPE_CHARS = 500
FRESHNESS_DAYS = (7, 30, 180, 365)
CITATION_FORMATS = ("[<number>]", "[ref_<number>]")


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How much a search strategy spends: results of one search, rounds of searches, depth."""

    num_results: int
    max_rounds: int
    is_deep: bool = False


STRATEGIES = {
    "turbo": Strategy(num_results=5, max_rounds=2),
    "max": Strategy(num_results=10, max_rounds=2, is_deep=True),
    "agent": Strategy(num_results=8, max_rounds=4),
    "agent_max": Strategy(num_results=10, max_rounds=6, is_deep=True),
    # Older names of the first two.
    "standard": Strategy(num_results=5, max_rounds=2),
    "pro": Strategy(num_results=10, max_rounds=2, is_deep=True),
}


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """A request's search_options, checked.

    Args:
        search_strategy: a key of STRATEGIES.
        forced_search: search before the model is asked, instead of when it asks for it.
        enable_search_extension: ask the provider for direct answers (weather, rates, sums) too.
        enable_source: the caller wants the list of sources (always given on the OpenAI dialect).
        enable_citation: the answer is to name its sources by number.
        citation_format: how it names them, one of CITATION_FORMATS.
        prepend_search_result: the first event of a stream holds the sources alone.
        freshness: days that a result may be old, one of FRESHNESS_DAYS.
        assigned_site_list: hosts that results come from; none for all.
        prompt_intervene: what to search for, in the caller's words.
    """

    search_strategy: str = "turbo"
    forced_search: bool = False
    enable_search_extension: bool = False
    enable_source: bool = False
    enable_citation: bool = False
    citation_format: str = CITATION_FORMATS[0]
    prepend_search_result: bool = False
    freshness: int | None = None
    assigned_site_list: tuple[str, ...] = ()
    prompt_intervene: str = ""

    @property
    def strategy(self) -> Strategy:
        """What the strategy spends."""
        return STRATEGIES[self.search_strategy]

    def cite(self, number: int) -> str:
        """Write a source's number as the answer is to name it."""
        return self.citation_format.replace("<number>", str(number))


_FLAGS = (
    *("forced_search", "enable_search_extension", "enable_source", "enable_citation"),
    "prepend_search_result",
)
_KEYS = (
    *("search_strategy", *_FLAGS, "citation_format", "freshness", "assigned_site_list"),
    "intention_options",
)


def read_search_options(given: object) -> SearchOptions:
    """Check a request's search_options; None means all defaults.

    Raises InputError for an unknown key or a value outside its range.
    """
    if given is None:
        return SearchOptions()
    if not isinstance(given, Mapping):
        raise InputError(f"search_options is {type(given).__name__}; expected an object.")
    stated = {key: value for key, value in given.items() if value is not None}
    for key in stated:
        if key not in _KEYS:
            raise InputError(
                f"search_options has {quote(key)}; expected one of {', '.join(_KEYS)}."
            )
    values: dict[str, Any] = {name: _flag(stated, name) for name in _FLAGS if name in stated}
    for name, words in (
        ("search_strategy", tuple(STRATEGIES)),
        ("citation_format", CITATION_FORMATS),
        ("freshness", FRESHNESS_DAYS),
    ):
        if name in stated:
            values[name] = _one_of(stated, name, words)
    if "assigned_site_list" in stated:
        values["assigned_site_list"] = _sites(stated["assigned_site_list"])
    values["prompt_intervene"] = _scope(stated.get("intention_options", {}))
    if values.get("enable_citation"):
        values["enable_source"] = True  # numbers mean nothing without the list
    return SearchOptions(**values)


def _flag(stated: Mapping[str, Any], name: str) -> bool:
    value = stated[name]
    if not isinstance(value, bool):
        raise InputError(f"search_options.{name} is {quote(value)}; expected true or false.")
    return value


def _one_of(stated: Mapping[str, Any], name: str, words: tuple[Any, ...]) -> Any:
    value = stated[name]
    if isinstance(value, bool) or not isinstance(value, str | int) or value not in words:
        raise InputError(
            f"search_options.{name} is {quote(value)}; expected one of "
            f"{', '.join(map(str, words))}."
        )
    return value


def _sites(given: object) -> tuple[str, ...]:
    if not isinstance(given, list) or len(given) > MAX_SITES:
        got = f"{len(given)} hosts" if isinstance(given, list) else type(given).__name__
        raise InputError(
            f"search_options.assigned_site_list is {got}; expected a list of at most {MAX_SITES}."
        )
    sites = []
    for site in given:
        host = site.strip().lower().rstrip(".") if isinstance(site, str) else ""
        if "." not in host or not is_hostname(host):
            raise InputError(
                f"search_options.assigned_site_list has {quote(site)}; expected host names such "
                "as example.com."
            )
        sites.append(host)
    return tuple(dict.fromkeys(sites))


def _scope(given: object) -> str:
    value = given.get("prompt_intervene") or "" if isinstance(given, Mapping) else None
    if not isinstance(value, str) or len(value) > MAX_SCOPE_CHARS:
        raise InputError(
            "search_options.intention_options is not understood; expected "
            f'{{"prompt_intervene": "…"}} of at most {MAX_SCOPE_CHARS} characters.'
        )
    return " ".join(value.split())
