"""Steps on a screen: every action, every way in which a call can be wrong, real pixels."""

import json
import re
from typing import Any

import pytest

from qianyan.engine.reply import ToolCall
from qianyan.errors import InputError, ReplyError
from qianyan.inputs.grounding import Notation
from qianyan.reading.functions import FUNCTIONS, call_pattern, to_tool
from qianyan.reading.places import View
from qianyan.reading.screen import ScreenAction, parse_action, screen_prompt

VIEW = View(notation=Notation.RESIZED_PIXELS, seen_wh=(1288, 728), photo_wh=(2560, 1440))
NAMES = {"computer": "computer_use", "phone": "mobile_use"}


def call(name: str, arguments: str) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


def step(device: Any = "computer", **arguments: Any) -> ScreenAction:
    made = call(NAMES[device], json.dumps(arguments))
    return parse_action([made], "", VIEW, device=device)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"action": "left_click", "coordinate": [644, 364]}, {"at": (1280, 720)}),
        ({"action": "right_click", "coordinate": [0, 0]}, {"at": (0, 0)}),
        ({"action": "middle_click", "coordinate": [1288, 728]}, {"at": (2559, 1439)}),
        ({"action": "double_click", "coordinate": [644.0, 364.0]}, {"at": (1280, 720)}),
        ({"action": "mouse_move", "coordinate": [644, 364]}, {"at": (1280, 720)}),
        ({"action": "left_click_drag", "coordinate": [322, 182]}, {"at": (640, 360)}),
        ({"action": "key", "keys": ["ctrl", "c"]}, {"keys": ("ctrl", "c")}),
        ({"action": "key", "keys": "Enter"}, {"keys": ("Enter",)}),
        ({"action": "type", "text": "你好, “world”"}, {"text": "你好, “world”"}),
        ({"action": "scroll", "pixels": -364}, {"scroll_px": -720}),
        (
            {"action": "scroll", "pixels": 10, "coordinate": [644, 364]},
            {"scroll_px": 20, "at": (1280, 720)},
        ),
        ({"action": "wait", "time": 2}, {"duration_s": 2.0}),
        ({"action": "terminate", "status": "success"}, {"status": "success"}),
        ({"action": "type", "text": "a", "coordinate": None}, {"text": "a"}),
    ],
)
def test_every_action_of_a_computer_is_read(
    arguments: dict[str, Any], expected: dict[str, Any]
) -> None:
    action = ScreenAction(device="computer", action=arguments["action"], **expected)
    assert step(**arguments) == action
    assert action.is_last == (action.action == "terminate")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"action": "click", "coordinate": [644, 364]}, {"at": (1280, 720)}),
        (
            {"action": "long_press", "coordinate": [644, 364], "time": 1.5},
            {"at": (1280, 720), "duration_s": 1.5},
        ),
        (
            {"action": "swipe", "coordinate": [644, 546], "coordinate2": [644, 182]},
            {"at": (1280, 1080), "to": (1280, 360)},
        ),
        ({"action": "type", "text": "a"}, {"text": "a"}),
        ({"action": "key", "text": "volume_up"}, {"text": "volume_up"}),
        ({"action": "system_button", "button": "Back"}, {"button": "Back"}),
        ({"action": "open", "text": "Settings"}, {"text": "Settings"}),
        ({"action": "wait", "time": 1}, {"duration_s": 1.0}),
        ({"action": "answer", "text": "42"}, {"text": "42"}),
        ({"action": "terminate", "status": "failure"}, {"status": "failure"}),
    ],
)
def test_every_action_of_a_phone_is_read(
    arguments: dict[str, Any], expected: dict[str, Any]
) -> None:
    action = ScreenAction(device="phone", action=arguments["action"], **expected)
    assert step("phone", **arguments) == action


def test_no_action_is_left_out_of_these_tests() -> None:
    assert set(FUNCTIONS["computer"].actions) == {
        *("key", "type", "mouse_move", "left_click", "left_click_drag", "right_click"),
        *("middle_click", "double_click", "scroll", "wait", "terminate"),
    }
    assert set(FUNCTIONS["phone"].actions) == {
        *("key", "click", "long_press", "swipe", "type", "system_button", "open", "wait"),
        *("answer", "terminate"),
    }


def test_the_first_generation_counts_in_thousandths() -> None:
    view = View(notation=Notation.RELATIVE_BELOW_1000, seen_wh=(448, 448), photo_wh=(1920, 1080))
    made = call("computer_use", '{"action": "left_click", "coordinate": [500, 250]}')
    action = parse_action([made], " I click. ", view, device="computer")
    assert action.at == (960, 270)
    assert action.said == "I click."


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"action": "fly"}, "action is 'fly'; expected one of key, type"),
        ({"action": ["type"]}, "action is"),
        ({}, "action is 'None'"),
        ({"action": "left_click"}, "left_click has no coordinate"),
        ({"action": "left_click", "coordinate": None}, "left_click has no coordinate"),
        ({"action": "left_click", "coordinate": [1300, 10]}, "outside the screen"),
        ({"action": "left_click", "coordinate": [10, -1]}, "outside the screen"),
        ({"action": "left_click", "coordinate": [10]}, "no coordinate of two numbers"),
        ({"action": "left_click", "coordinate": [10, 20, 30]}, "no coordinate of two numbers"),
        ({"action": "left_click", "coordinate": "10, 20"}, "no coordinate of two numbers"),
        ({"action": "left_click", "coordinate": [10**400, 1]}, "no coordinate of two numbers"),
        ({"action": "left_click", "coordinate": [True, 1]}, "no coordinate of two numbers"),
        ({"action": "left_click", "coordinate": [1, 2], "text": "x"}, "'text', which it does not"),
        ({"action": "left_click", "coordinate": [1, 2], "x": 1}, "'x', which it does not take"),
        ({"action": "type"}, "type has no text"),
        ({"action": "type", "text": ""}, "no text; expected 1 to"),
        ({"action": "type", "text": "x" * 4_001}, "no text; expected 1 to"),
        ({"action": "key", "keys": []}, "presses no keys"),
        ({"action": "key", "keys": ["a"] * 9}, "presses no keys"),
        ({"action": "key", "keys": [1]}, "presses no keys"),
        ({"action": "scroll", "pixels": "down"}, "pixels is 'down'"),
        ({"action": "wait", "time": -1}, "time is '-1'"),
        ({"action": "wait", "time": 1e9}, "time is"),
        ({"action": "wait", "time": float("nan")}, "time is 'nan'"),
        ({"action": "terminate", "status": "done"}, "status is 'done'"),
        ({"action": "terminate", "status": ["success"]}, "status is"),
    ],
    ids=str,
)
def test_a_wrong_call_is_an_error_and_never_a_guess(
    arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ReplyError, match=re.escape(sentence)):
        step(**arguments)


@pytest.mark.parametrize(
    ("calls", "sentence"),
    [
        ([], "makes 0 calls"),
        ([call("computer_use", "{}")] * 2, "makes 2 calls"),
        ([call("mobile_use", '{"action": "wait", "time": 1}')], "calls 'mobile_use'"),
        ([call("computer_use", '{"action": ')], "are no JSON"),
        ([call("computer_use", "[1]")], "no JSON object"),
        ([call("computer_use", "[" * 100_000)], "are no JSON"),
    ],
    ids=lambda one: str(one)[:40],
)
def test_an_answer_makes_exactly_one_call(calls: list[ToolCall], sentence: str) -> None:
    with pytest.raises(ReplyError, match=sentence):
        parse_action(calls, "", VIEW, device="computer")


@pytest.mark.parametrize("device", ["computer", "phone"])
def test_the_signature_tells_the_size_and_every_value(device: Any) -> None:
    function = to_tool(device, VIEW)["function"]
    assert function["name"] == NAMES[device]
    assert "1288 wide and 728 high" in function["description"]
    properties = function["parameters"]["properties"]
    assert properties["action"]["enum"] == list(FUNCTIONS[device].actions)
    for action in FUNCTIONS[device].actions.values():
        assert {*action.needed, *action.optional} <= set(properties)


@pytest.mark.parametrize(
    ("device", "arguments", "is_good"),
    [
        ("computer", '{"action": "left_click", "coordinate": [1280, 5]}', True),
        ("computer", '{"action": "type", "text": "say \\"hi\\" 你好"}', True),
        ("computer", '{"action": "key", "keys": ["ctrl", "shift", "t"]}', True),
        ("computer", '{"action": "scroll", "pixels": -300}', True),
        ("computer", '{"action": "left_click"}', False),
        ("computer", '{"action": "click", "coordinate": [1280, 5]}', False),
        ("phone", '{"action": "swipe", "coordinate": [5, 6], "coordinate2": [7, 8]}', True),
        ("phone", '{"action": "system_button", "button": "Home"}', True),
        ("phone", '{"action": "system_button", "button": "Power"}', False),
    ],
)
def test_the_pattern_allows_whole_calls_only(device: Any, arguments: str, is_good: bool) -> None:
    pattern = call_pattern(device)
    assert len(pattern) <= 4_096
    written = f'<tool_call>\n{{"name": "{NAMES[device]}", "arguments": {arguments}}}\n</tool_call>'
    assert bool(re.fullmatch(pattern, written)) == is_good
    if is_good:
        parse_action([call(NAMES[device], arguments)], "", VIEW, device=device)


def test_the_task_and_what_was_done_are_told() -> None:
    done = ScreenAction(device="computer", action="left_click", at=(12, 34))
    said = screen_prompt("open the log", ["looked around", done], lang="en")
    assert (
        "Task: open the log\nSteps done so far:\n1. looked around\n2. left_click (12, 34)" in said
    )
    assert "任务：打开日志" in screen_prompt("打开日志", [], lang="zh")
    for task, history in (("", []), (" ", []), ("x", "y"), ("x", ["y"] * 51)):
        with pytest.raises(InputError):
            screen_prompt(task, history, lang="en")
