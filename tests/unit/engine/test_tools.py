"""Functions on offer: what is read of the three options, and what is refused with its place."""

from typing import Any

import pytest

from qianyan.engine.tools import read_tool_use
from qianyan.errors import QianyanError


def function(name: str = "ring", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


RING, CALL = function("ring", parameters={}), function("call_119", strict=True)


def test_without_functions_nothing_is_called() -> None:
    for tools in (None, []):
        for choice in (None, "auto", "none"):
            assert read_tool_use(tools, choice, None) is None
    assert read_tool_use([RING], "none", None) is None


@pytest.mark.parametrize("choice", [None, "auto"])
def test_a_model_may_call_by_itself_and_several_at_once(choice: str | None) -> None:
    use = read_tool_use([RING, CALL], choice, None)
    assert use is not None
    assert (use.is_required, use.is_parallel) == (False, True)
    assert [(one.name, one.is_strict) for one in use.functions] == [
        ("ring", False),
        ("call_119", True),
    ]
    assert use.functions[0].parameters == {"type": "object"}
    assert use.functions[1].parameters["additionalProperties"] is False


def test_required_takes_any_and_a_name_exactly_one() -> None:
    required = read_tool_use([RING, CALL], "required", parallel_tool_calls=False)
    choice = {"type": "function", "function": {"name": "call_119"}}
    named = read_tool_use([RING, CALL], choice, parallel_tool_calls=True)
    assert required is not None
    assert named is not None
    assert (required.is_required, required.is_parallel, len(required.functions)) == (True, False, 2)
    assert (named.is_required, named.is_parallel) == (True, False)
    assert [one.name for one in named.functions] == ["call_119"]
    assert named.tools == (RING, CALL)  # the model is shown all the same


@pytest.mark.parametrize(
    ("tools", "choice", "parallel", "sentence"),
    [
        ({}, None, None, "tools is '{}'; expected a list of at most 128"),
        ([RING] * 129, None, None, "tools is a list of 129; expected a list of at most 128"),
        (["ring"], None, None, r"tools\[0\] is 'ring'; expected an object of type"),
        ([RING, {"type": "function"}], None, None, r"tools\[1\] has no function"),
        ([function("a b")], None, None, r"tools\[0\].function.name is 'a b'; expected 1 to 64"),
        ([function("a" * 65)], None, None, "expected 1 to 64"),
        ([RING, RING], None, None, r"tools\[1\] is a second function named ring"),
        ([function(strict=1)], None, None, r"tools\[0\].function.strict is '1'"),
        ([function(parameters=[])], None, None, r"tools\[0\].function.parameters is '\[\]'"),
        (
            [function(parameters={"type": "array"})],
            None,
            None,
            r"tools\[0\].function.parameters.type is 'array'; arguments are an object",
        ),
        ([function(description="x" * 300_000)], None, None, "bytes; expected at most 262144"),
        ([function(parameters={"x": {1}})], None, None, "tools is not JSON"),
        ([RING], "always", None, "tool_choice is 'always'; expected \"auto\""),
        ([RING], {"type": "function"}, None, "tool_choice is"),
        (
            [RING],
            {"type": "function", "function": {"name": "sing"}},
            None,
            "tool_choice names 'sing'; expected one of ring",
        ),
        (None, "required", None, "tool_choice asks for a call, but tools is empty"),
        ([RING], None, "yes", "parallel_tool_calls is 'yes'; expected true or false"),
    ],
)
def test_what_cannot_be_used_is_named(
    tools: Any, choice: Any, parallel: Any, sentence: str
) -> None:
    with pytest.raises(QianyanError, match=sentence):
        read_tool_use(tools, choice, parallel)
