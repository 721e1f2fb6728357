"""Functions in words, for models whose template knows nothing of them (Qwen2-VL, Qwen2.5-VL).

They are of the family that learnt the Hermes form, and their vocabulary has its marks, but their
templates write neither the functions nor calls and results. So these are written into the messages
here, word for word as the template of Qwen2.5 writes them: the functions after the system's text,
calls after the assistant's, results as a user's turn.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qianyan.inputs.chat import ChatTemplate

_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_SYSTEM = re.compile(r"<\|im_start\|>system\n(.*?)<\|im_end\|>", re.DOTALL)
_PROBE = [{"role": "user", "content": "?"}]


def write_tools(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    template: ChatTemplate,
) -> list[dict[str, Any]]:
    """Write functions, calls and results into copies of the messages, as texts of theirs.

    The messages are checked ones; contents that are lists of parts stay lists.
    """
    written: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            last = written[-1] if written else None
            is_next = last is not None and last.pop("is_result", False)
            told = _around("<tool_response>\n", message["content"], "\n</tool_response>")
            if is_next and last is not None:
                last |= {"content": _joined(last["content"], "\n", told), "is_result": True}
            else:
                written.append({"role": "user", "content": told, "is_result": True})
        elif message.get("tool_calls"):
            written.append(_with_calls(message))
        else:
            written.append(dict(message))
    for message in written:
        message.pop("is_result", None)
    return _with_tools(written, tools, template) if tools else written


def _with_tools(
    messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]], template: ChatTemplate
) -> list[dict[str, Any]]:
    listed = "".join(f"\n{json.dumps(tool, ensure_ascii=False)}" for tool in tools)
    words = f"{_BEFORE}{listed}{_AFTER}"
    if messages and messages[0]["role"] == "system":
        first, rest = messages[0], messages[1:]
        return [{**first, "content": _joined(first["content"], "\n\n", words)}, *rest]
    found = _SYSTEM.match(template.render(_PROBE))  # what it says of its own accord
    own = found[1] if found else ""
    return [{"role": "system", "content": _joined(own, "\n\n", words)}, *messages]


def _with_calls(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = []
    for call in message["tool_calls"]:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        shown = json.dumps(arguments, ensure_ascii=False)
        calls.append(f'<tool_call>\n{{"name": "{name}", "arguments": {shown}}}\n</tool_call>')
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": _joined(message["content"], "\n", "\n".join(calls))}


def _around(before: str, content: Any, after: str) -> Any:
    return _joined(_joined(before, "", content), "", after)


def _joined(one: Any, gap: str, other: Any) -> Any:
    """Join two contents, texts to a text and all else to parts; no gap behind nothing."""
    if isinstance(one, str) and isinstance(other, str):
        return f"{one}{gap}{other}" if one else other
    return [*_parts(one), *(_parts(gap) if one else ()), *_parts(other)]


def _parts(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return list(content)
