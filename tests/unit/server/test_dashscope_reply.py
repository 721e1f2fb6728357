"""Calls in DashScope's words: whole, in the packet that ends an answer, with an id each."""

from collections.abc import Sequence
from typing import Any

import pytest

from qianyan.engine.engine import Engine
from qianyan.engine.reply import ToolCall
from qianyan.engine.request import Completion, TokenText, Usage
from qianyan.server.dashscope_reply import Choice, DashScopeReply, ReplyFormat

CALLS = (ToolCall(name="ring", arguments='{"hall": 3}'), ToolCall(name="stop", arguments="{}"))


def completion(text: str, calls: Sequence[ToolCall]) -> Completion:
    return Completion(
        text=text,
        token_ids=[1, 2, 3],
        prompt_token_ids=[4, 5],
        logprobs=None,
        finish_reason="stop",
        usage=Usage(prompt_tokens=2, completion_tokens=3, forwarded_tokens=3),
        tool_calls=tuple(calls),
    )


def check(choice: dict[str, Any]) -> None:
    assert choice["finish_reason"] == "tool_calls"
    calls = choice["message"]["tool_calls"]
    assert [call["index"] for call in calls] == [0, 1]
    assert [call["function"]["name"] for call in calls] == ["ring", "stop"]
    assert [call["function"]["arguments"] for call in calls] == ['{"hall": 3}', "{}"]
    assert all(call["type"] == "function" for call in calls)
    assert len({call["id"] for call in calls}) == 2


@pytest.mark.parametrize("is_incremental", [True, False])
@pytest.mark.parametrize("has_parts", [True, False])
def test_calls_come_with_the_end(engine: Engine, is_incremental: bool, has_parts: bool) -> None:
    form = ReplyFormat(has_parts=has_parts, is_incremental=is_incremental)
    reply = DashScopeReply("r", form, engine.processor)
    request, _ = engine.prepare([{"role": "user", "content": "hello"}], {})
    choice = Choice(0, request)
    first = reply.packet(choice, TokenText(text="Now", token_id=1))
    assert first is not None
    assert "tool_calls" not in first["output"]["choices"][0]["message"]
    assert reply.packet(choice, TokenText(text="", token_id=2)) is None, "it shows nothing"
    last = reply.last_packet(choice, completion("Now", CALLS))["output"]["choices"][0]
    check(last)
    text = "" if is_incremental else "Now"
    parts = [{"text": text}] if text else []
    assert last["message"]["content"] == (parts if has_parts else text)


def test_a_whole_answer_has_its_calls(engine: Engine) -> None:
    reply = DashScopeReply("r", ReplyFormat(), engine.processor)
    (choice,) = reply.whole([completion("", CALLS)], [[]])["output"]["choices"]
    check(choice)
    assert choice["message"]["content"] == ""
