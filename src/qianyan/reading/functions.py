"""The functions of screen agents: `computer_use` and `mobile_use`, their actions and values.

Names, actions and values are those in the public cookbooks of Qwen2.5-VL; the words that describe
them are ours. From one table come the signature that a model is shown, the pattern that its call
has to follow, and what `screen.py` accepts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from qianyan.reading.places import View

Device = Literal["computer", "phone"]

BUTTONS = ("Back", "Home", "Menu", "Enter")
STATUSES = ("success", "failure")
MAX_TYPED_CHARS = 200
"""Longest text that a model held to the pattern can type in one step."""


@dataclass(frozen=True)
class Action:
    """What an action does, and the values it needs and may have beside them, in order."""

    does: str
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScreenFunction:
    """A function with its actions."""

    name: str
    does: str
    actions: Mapping[str, Action]


_AT = ("coordinate",)
FUNCTIONS: Mapping[Device, ScreenFunction] = MappingProxyType(
    {
        "computer": ScreenFunction(
            "computer_use",
            "Operate a computer with mouse and keyboard, one step at a time, going by screenshots. "
            "The screen is {width} wide and {height} high. Aim at the middle of buttons and icons. "
            "Programs take time: wait and look again when nothing seems to have happened.",
            {
                "key": Action("press keys together and release them in reverse order", ("keys",)),
                "type": Action("type text", ("text",)),
                "mouse_move": Action("move the pointer", _AT),
                "left_click": Action("click the left button", _AT),
                "left_click_drag": Action("drag from the pointer to a place", _AT),
                "right_click": Action("click the right button", _AT),
                "middle_click": Action("click the middle button", _AT),
                "double_click": Action("double-click the left button", _AT),
                "scroll": Action("turn the wheel", ("pixels",), _AT),
                "wait": Action("wait", ("time",)),
                "terminate": Action("end the task", ("status",)),
            },
        ),
        "phone": ScreenFunction(
            "mobile_use",
            "Operate a phone by touch, one step at a time, going by screenshots. The screen is "
            "{width} wide and {height} high. Aim at the middle of buttons and icons. Apps take "
            "time: wait and look again when nothing seems to have happened.",
            {
                "key": Action("send a key event, such as volume_up", ("text",)),
                "click": Action("tap a place", _AT),
                "long_press": Action("hold a place for some seconds", _AT, ("time",)),
                "swipe": Action("swipe from one place to another", ("coordinate", "coordinate2")),
                "type": Action("type text into the active field", ("text",)),
                "system_button": Action("press a button of the system", ("button",)),
                "open": Action("open an app by its name", ("text",)),
                "wait": Action("wait", ("time",)),
                "answer": Action("answer the user's question", ("text",)),
                "terminate": Action("end the task", ("status",)),
            },
        ),
    }
)
_PLACE = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
_VALUES: Mapping[str, dict[str, Any]] = {
    "coordinate": {**_PLACE, "description": "(x, y) in pixels from the left and top edge."},
    "coordinate2": {**_PLACE, "description": "(x, y) where the swipe ends."},
    "keys": {"type": "array", "items": {"type": "string"}, "description": "Names of keys."},
    "text": {"type": "string", "description": "The text."},
    "pixels": {"type": "number", "description": "How far: positive up, negative down."},
    "time": {"type": "number", "description": "Seconds."},
    "button": {"type": "string", "enum": list(BUTTONS), "description": "Which button."},
    "status": {"type": "string", "enum": list(STATUSES), "description": "How the task ended."},
}
_STRING = rf'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]){{1,{MAX_TYPED_CHARS}}}"'
_KEY = r'"[a-zA-Z0-9_+\-]{1,20}"'
_WHOLE = r"\[[0-9]{1,5}, [0-9]{1,5}\]"
_PATTERNS: Mapping[str, str] = {
    "coordinate": _WHOLE,
    "coordinate2": _WHOLE,
    "keys": rf"\[{_KEY}(?:, {_KEY}){{0,3}}\]",
    "text": _STRING,
    "pixels": r"-?[0-9]{1,5}",
    "time": r"[0-9]{1,3}(?:\.[0-9])?",
    "button": f'"(?:{"|".join(BUTTONS)})"',
    "status": f'"(?:{"|".join(STATUSES)})"',
}


def to_tool(device: Device, view: View) -> dict[str, Any]:
    """Write the function as an OpenAI tool, with the size in which the model counts."""
    function = FUNCTIONS[device]
    width, height = view.notation.far_corner(view.seen_wh)
    used = [key for action in function.actions.values() for key in action.needed + action.optional]
    listed = "; ".join(f"{name}: {action.does}" for name, action in function.actions.items())
    action = {"type": "string", "enum": list(function.actions), "description": listed}
    values = {key: _for_actions(key, function) for key in dict.fromkeys(used)}
    return {
        "type": "function",
        "function": {
            "name": function.name,
            "description": function.does.format(width=width, height=height),
            "parameters": {
                "type": "object",
                "properties": {"action": action, **values},
                "required": ["action"],
            },
        },
    }


def call_pattern(device: Device) -> str:
    """Write the regular expression of one call with the values that its action needs."""
    function = FUNCTIONS[device]
    calls = [
        rf'"action": "{re.escape(name)}"'
        + "".join(f', "{key}": {_PATTERNS[key]}' for key in action.needed)
        for name, action in function.actions.items()
    ]
    return (
        rf'<tool_call>\n\{{"name": "{function.name}", "arguments": \{{(?:{"|".join(calls)})\}}\}}'
        r"\n</tool_call>"
    )


def _for_actions(key: str, function: ScreenFunction) -> dict[str, Any]:
    """Describe a value and name the actions that it belongs to."""
    names = [
        name for name, action in function.actions.items() if key in action.needed + action.optional
    ]
    value = _VALUES[key]
    return {**value, "description": f"{value['description']} For {', '.join(names)}."}
