"""Calls in DashScope's words, from an engine that is made to call."""

import json
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from qianyan.engine.engine import Engine
from qianyan.engine.options import ChatOptions
from qianyan.engine.request import Request
from qianyan.server.dashscope_reply import Choice, DashScopeReply, ReplyFormat

COUNT = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "tally", "parameters": COUNT}}]
OPTIONS: ChatOptions = {
    "tools": TOOLS,
    "tool_choice": "required",
    "max_tokens": 400,
    "temperature": 1.0,
    "seed": 11,
}
HELLO = [{"role": "user", "content": "hello"}]


def running(request: Request) -> Any:
    """Give what has the request, as an answer of the worker has."""
    return SimpleNamespace(request=request)


def packets_of(engine: Engine, form: ReplyFormat) -> list[dict[str, Any]]:
    """Let the engine call, and write all it says as packets."""
    reply = DashScopeReply("r", form, engine.processor)
    request, prompt = engine.prepare(HELLO, OPTIONS)
    engine.submit(request, prompt)
    while not request.is_finished:
        engine.step()
    choice = Choice(0, running(request))
    packets = [reply.packet(choice, event) for event in request.events]
    packets.append(reply.last_packet(choice, request.completion()))
    return [packet["output"]["choices"][0] for packet in packets if packet is not None]


def calls_of(choice: dict[str, Any]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = choice["message"].get("tool_calls", [])
    return calls


@pytest.mark.parametrize("has_parts", [True, False])
def test_pieces_of_calls_repeat_neither_id_nor_name(engine: Engine, has_parts: bool) -> None:
    choices = packets_of(engine, ReplyFormat(has_parts=has_parts, is_incremental=True))
    expected = engine.chat(HELLO, **OPTIONS).tool_calls
    assert expected
    joined: dict[int, dict[str, str]] = {}
    for piece in (call for choice in choices for call in calls_of(choice)):
        assert piece["type"] == "function"
        call = joined.setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
        assert bool(piece["id"]) is ("name" in piece["function"]) is (call["id"] == "")
        call["id"] += piece["id"]
        call["name"] += piece["function"].get("name", "")
        call["arguments"] += piece["function"]["arguments"]
    assert [(call["name"], call["arguments"]) for call in joined.values()] == [
        (call.name, call.arguments) for call in expected
    ]
    assert all(call["id"].startswith("call_") for call in joined.values())
    assert {json.dumps(choice["message"]["content"]) for choice in choices} == {
        "[]" if has_parts else '""'
    }
    reasons = [choice["finish_reason"] for choice in choices]
    assert reasons == ["null"] * (len(reasons) - 1) + ["tool_calls"]


def test_whole_packets_hold_the_calls_so_far(engine: Engine) -> None:
    """Packets refer to what grows on, so each is written before the next is made."""
    reply = DashScopeReply("r", ReplyFormat(), engine.processor)
    request, prompt = engine.prepare(HELLO, OPTIONS)
    engine.submit(request, prompt)
    while not request.is_finished:
        engine.step()
    choice, written = Choice(0, running(request)), []
    for event in request.events:
        packet = reply.packet(choice, event)
        if packet is not None:
            written.append(json.loads(json.dumps(packet))["output"]["choices"][0])
    last = reply.last_packet(choice, request.completion())["output"]["choices"][0]
    for before, after in pairwise([*written, last]):
        for old, new in zip(calls_of(before), calls_of(after), strict=False):
            assert old["id"] == new["id"]
            assert new["function"]["arguments"].startswith(old["function"]["arguments"])
    whole = reply.whole([request.completion()], [[]])["output"]["choices"][0]
    assert whole["finish_reason"] == last["finish_reason"] == "tool_calls"
    assert [call["function"] for call in calls_of(last)] == [
        call["function"] for call in calls_of(whole)
    ]
