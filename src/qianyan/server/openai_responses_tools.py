"""Tools of a response: functions of the client, and web search, which is the server's own.

A choice may leave some of them out (`allowed_tools`), so each function that is offered knows its
place among those that were sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qianyan.errors import quote
from qianyan.server.errors import RefusedError
from qianyan.server.openai_responses_items import Item, refused

WEB_SEARCHES = frozenset(
    {
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
    }
)
STRATEGIES = {"low": "turbo", "medium": "turbo", "high": "max"}
"""By `search_context_size`, the strategy of web search."""
_CHOICES = ("auto", "none", "required")
_FUNCTION_KEYS = ("name", "description", "parameters", "strict")


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a model is offered, in chat's words; `search_options` None: no search.

    `places[i]` is where the function i stands in the `tools` that were sent.
    """

    functions: Sequence[dict[str, Any]] = ()
    places: Sequence[int] = ()
    choice: str | dict[str, Any] | None = None
    search_options: dict[str, Any] | None = None


def read_offer(tools: Sequence[Item], choice: Any) -> Offer:
    """Read what is offered and chosen; raises RefusedError for tools that are not here."""
    for at, tool in enumerate(tools):
        kind = tool.get("type")
        if kind != "function" and not _is_search(tool):
            raise _unsupported(
                f"tools[{at}] is of type {quote(kind)}, which this server does not have; "
                "expected function or web_search.",
                f"tools[{at}]",
            )
    allowed, chosen = _read_choice(tools, choice)
    kept = [at for at, tool in enumerate(tools) if allowed is None or _name(tool) in allowed]
    places = [at for at in kept if tools[at]["type"] == "function"]
    searches = [at for at in kept if tools[at]["type"] != "function"]
    options = None
    if searches and chosen != "none":
        # Nothing but a search can be meant where there is nothing else to call.
        is_forced = chosen == "web_search" or (chosen == "required" and not places)
        options = _search_options(tools[searches[0]], f"tools[{searches[0]}]") | {
            "forced_search": is_forced
        }
        chosen = None if is_forced else chosen
    return Offer(
        functions=[_function(tools[at]) for at in places],
        places=places,
        choice=chosen,
        search_options=options,
    )


def _read_choice(
    tools: Sequence[Item], choice: Any
) -> tuple[set[str] | None, str | dict[str, Any] | None]:
    """Say which tools are allowed (None: all), and the choice among them."""
    if choice is None or choice in _CHOICES:
        return None, choice
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        return None, {"type": "function", "function": {"name": choice.get("name")}}
    if isinstance(choice, dict) and _is_search(choice):
        if not any(_is_search(tool) for tool in tools):
            raise refused("tool_choice", kind, "a tool that is among tools")
        return None, "web_search"
    if kind != "allowed_tools":
        raise refused(
            "tool_choice",
            choice,
            'auto, none, required or an object of type "function" or "allowed_tools"',
        )
    named = choice.get("tools")
    if not isinstance(named, list) or not all(isinstance(one, dict) for one in named):
        raise refused("tool_choice.tools", named, "a list of tools by type and name")
    names, known = [_name(one) for one in named], [_name(tool) for tool in tools]
    for name in names:
        if name not in known:
            raise refused("tool_choice.tools", name, f"one of {', '.join(known)}")
    mode = choice.get("mode", "auto")
    if mode not in _CHOICES:
        raise refused("tool_choice.mode", mode, f"one of {', '.join(_CHOICES)}")
    return set(names), mode


def _name(tool: Mapping[str, Any]) -> str:
    """Name a tool; web search has one name under all its types."""
    return "web_search" if _is_search(tool) else str(tool.get("name"))


def _is_search(tool: Mapping[str, Any]) -> bool:
    kind = tool.get("type")
    return isinstance(kind, str) and kind in WEB_SEARCHES


def _function(tool: Item) -> dict[str, Any]:
    given = {name: tool[name] for name in _FUNCTION_KEYS if tool.get(name) is not None}
    return {"type": "function", "function": given}


def _search_options(tool: Item, where: str) -> dict[str, Any]:
    """Ask for a search as chat does; its sources are always named in the answer."""
    if tool.get("external_web_access") is False:
        raise _unsupported(
            f"{where}.external_web_access is false, and this server keeps no copies of the web; "
            "expected true.",
            f"{where}.external_web_access",
        )
    size = tool.get("search_context_size") or "medium"
    if size not in tuple(STRATEGIES):
        raise refused(f"{where}.search_context_size", size, f"one of {', '.join(STRATEGIES)}")
    filters = tool.get("filters") or {}
    if not isinstance(filters, dict):
        raise refused(f"{where}.filters", filters, "an object with allowed_domains")
    domains = filters.get("allowed_domains")
    sites = {} if not domains else {"assigned_site_list": domains}
    return {"search_strategy": STRATEGIES[size], "enable_citation": True, **sites}


def _unsupported(message: str, param: str) -> RefusedError:
    return RefusedError(message, status=400, code="unsupported_value", param=param)
