"""The functions that a model is offered, and what it has to do with them.

Options of the OpenAI API: `tools`, `tool_choice`, `parallel_tool_calls`. Read once, here; what a
call may then look like is `grammar.py`'s matter.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qianyan.errors import GrammarError, InputError, quote
from qianyan.inputs.parts import only_keys

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 262_144
"""Of all functions together, as JSON."""
CHOICES = '"auto", "none", "required" or {"type": "function", "function": {"name": …}}'
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class Function:
    """One function: its `name`, the schema of its arguments, and whether all of it must hold."""

    name: str
    parameters: dict[str, Any]
    is_strict: bool = False


@dataclass(frozen=True, kw_only=True)
class ToolUse:
    """What is offered in `tools`, and which `functions` may be called.

    With `is_required` the answer is calls; else the model may answer in words, call, or do both.
    """

    tools: tuple[dict[str, Any], ...]
    functions: tuple[Function, ...]
    is_required: bool = False
    is_parallel: bool = True


def read_tool_use(tools: Any, tool_choice: Any, parallel_tool_calls: Any) -> ToolUse | None:
    """Check the three options; None where nothing may be called.

    Raises InputError, GrammarError for a schema that is no object's.
    """
    if parallel_tool_calls is not None and not isinstance(parallel_tool_calls, bool):
        raise InputError(
            f"parallel_tool_calls is {quote(parallel_tool_calls)}; expected true or false."
        )
    functions = _read_functions(tools)
    name = _chosen_name(tool_choice)
    if not functions:
        if tool_choice not in (None, "auto", "none"):
            raise InputError("tool_choice asks for a call, but tools is empty; name a function.")
        return None
    if tool_choice == "none":
        return None
    if name is not None and name not in [function.name for function in functions]:
        known = ", ".join(function.name for function in functions)
        raise InputError(f"tool_choice names {quote(name)}; expected one of {known}.")
    return ToolUse(
        tools=tuple(tools),
        functions=tuple(one for one in functions if name is None or one.name == name),
        is_required=name is not None or tool_choice == "required",
        is_parallel=name is None and parallel_tool_calls is not False,
    )


def _read_functions(tools: Any) -> list[Function]:
    if tools is None:
        return []
    if not isinstance(tools, list | tuple) or len(tools) > MAX_TOOLS:
        got = f"a list of {len(tools)}" if isinstance(tools, list | tuple) else quote(tools)
        raise InputError(f"tools is {got}; expected a list of at most {MAX_TOOLS} functions.")
    functions = [_read_function(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    names = [function.name for function in functions]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InputError(f"tools[{index}] is a second function named {name}.")
    _check_size(tools)
    return functions


def _check_size(tools: Any) -> None:
    try:
        size_bytes = len(json.dumps(tools, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError("tools is not JSON; expected plain values only.") from error
    if size_bytes > MAX_TOOLS_BYTES:
        raise InputError(f"tools is {size_bytes} bytes; expected at most {MAX_TOOLS_BYTES}.")


def _read_function(tool: Any, where: str) -> Function:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        raise InputError(f'{where} is {quote(tool)}; expected an object of type "function".')
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InputError(f"{where} has no function; expected an object with a name.")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"{where}.function.name is {quote(name)}; expected 1 to 64 letters, digits, - and _."
        )
    is_strict = function.get("strict")
    if is_strict is not None and not isinstance(is_strict, bool):
        raise InputError(f"{where}.function.strict is {quote(is_strict)}; expected true or false.")
    parameters = function.get("parameters")
    return Function(
        name=name,
        parameters=_read_parameters(parameters, f"{where}.function.parameters"),
        is_strict=bool(is_strict),
    )


def _read_parameters(parameters: Any, where: str) -> dict[str, Any]:
    """Give the schema of the arguments: an object's, or that of no arguments at all."""
    if parameters is None:  # as the OpenAI API reads a function without them
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(parameters, Mapping):
        raise InputError(f"{where} is {quote(parameters)}; expected a schema of an object.")
    kind = parameters.get("type", "object")
    if kind != "object":
        raise GrammarError(f"{where}.type is {quote(kind)}; arguments are an object.")
    return {**parameters, "type": "object"}


def _chosen_name(tool_choice: Any) -> str | None:
    """Read the name of the one function that is to be called."""
    if tool_choice in (None, "auto", "none", "required"):
        return None
    if isinstance(tool_choice, Mapping) and tool_choice.get("type") == "function":
        only_keys(tool_choice, {"type", "function"}, "tool_choice")
        function = tool_choice.get("function")
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            return str(function["name"])
    raise InputError(f"tool_choice is {quote(tool_choice)}; expected {CHOICES}.")
