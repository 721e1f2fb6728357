"""Reasoning, answer and tool calls told apart while tokens come."""

import codecs
import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qianyan.engine.reply import Reply, ReplyForm, ToolCall, parse_tool_calls

THINK, END = 256, 257
THINKS = ReplyForm(think_start=THINK, think_end=END)
OPENED = ReplyForm(think_start=THINK, think_end=END, is_thinking=True)
TOOLS = ReplyForm(has_tools=True)
CALL = '<tool_call>\n{"name": "ring", "arguments": {"hall": 3}}\n</tool_call>'


@dataclass
class ByteDecoder:
    """A tokenizer whose tokens are bytes."""

    _utf8: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def push(self, token_id: int) -> str:
        return self._utf8.decode(bytes([token_id]))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


def tokens(*parts: str | int) -> list[int]:
    """Bytes of texts, and marks as they are."""
    return [one for part in parts for one in ([part] if isinstance(part, int) else part.encode())]


def read(ids: list[int], form: ReplyForm, *stop: str) -> Reply:
    """Push tokens; what is shown on the way must add up to the reply."""
    reply = Reply(ByteDecoder(), stop, form)
    shown = {True: "", False: ""}
    for token_id in ids:
        was_reasoning = reply.is_reasoning
        piece = reply.push(token_id)
        shown[was_reasoning or reply.is_reasoning] += piece
        if reply.is_stopped:
            break
    shown[reply.is_reasoning] += reply.finish()
    assert shown == {True: reply.reasoning, False: reply.text}
    return reply


def test_reasoning_before_the_answer_is_kept_apart() -> None:
    reply = read(tokens(THINK, "\nit is\n\nhot\n", END, "\n\nFire."), THINKS)
    assert (reply.reasoning, reply.text) == ("it is\n\nhot", "Fire.")
    assert reply.has_reasoned


def test_reasoning_that_the_prompt_opened_has_only_an_end() -> None:
    reply = read(tokens("\nhot\n", END, "\n\nFire."), OPENED)
    assert (reply.reasoning, reply.text) == ("hot", "Fire.")


def test_an_opening_written_again_is_no_reasoning() -> None:
    assert read(tokens(THINK, "\nhot", END, "Fire."), OPENED).reasoning == "hot"


def test_reasoning_cut_short_leaves_no_answer() -> None:
    reply = read(tokens(THINK, "\nit is h"), THINKS)
    assert (reply.reasoning, reply.text, reply.is_reasoning) == ("it is h", "", True)


def test_half_a_character_of_reasoning_does_not_run_into_the_answer() -> None:
    reply = read([THINK, *"火".encode()[:2], END, *b"ok"], THINKS)
    assert reply.text == "ok"


def test_an_empty_block_is_reasoning_of_nothing() -> None:
    reply = read(tokens(THINK, "\n\n", END, "\n\nFire."), THINKS)
    assert (reply.has_reasoned, reply.reasoning, reply.text) == (True, "", "Fire.")


def test_a_model_that_does_not_think_has_none() -> None:
    reply = read(tokens("  Fire."), THINKS)
    assert (reply.has_reasoned, reply.text) == (False, "  Fire.")


def test_a_mark_inside_the_answer_stays_out_of_the_reasoning() -> None:
    """Only what comes first is reasoning; a later mark is the tokenizer's business."""
    reply = read(tokens(THINK, "a", END, "b", "</think>", "c"), THINKS)
    assert (reply.reasoning, reply.text) == ("a", "b</think>c")


def test_stop_strings_do_not_cut_the_reasoning() -> None:
    reply = read(tokens(THINK, "stop here", END, "go stop here"), THINKS, "stop")
    assert (reply.reasoning, reply.text) == ("stop here", "go ")


def test_a_call_is_taken_out_of_the_text() -> None:
    reply = read(tokens("I ring. ", "\n", CALL), TOOLS)
    assert reply.text == "I ring."
    assert reply.tool_calls == (ToolCall(name="ring", arguments='{"hall": 3}'),)


def test_several_calls_and_text_before_them() -> None:
    reply = read(tokens(CALL, "\n", CALL.replace("3", "4")), TOOLS)
    assert [call.arguments for call in reply.tool_calls] == ['{"hall": 3}', '{"hall": 4}']
    assert reply.text == ""


def test_calls_after_reasoning() -> None:
    form = ReplyForm(think_start=THINK, think_end=END, has_tools=True)
    reply = read(tokens(THINK, "ring", END, "\n\n", CALL), form)
    assert (reply.reasoning, reply.text, len(reply.tool_calls)) == ("ring", "", 1)


def test_without_tools_the_words_of_a_call_are_text() -> None:
    assert read(tokens(CALL), ReplyForm()).text == CALL


@pytest.mark.parametrize(
    "block",
    ["not json", "[1]", '{"arguments": {}}', '{"name": 7}', '{"name": "f", "arguments"', ""],
)
def test_what_is_no_call_stays_text_and_nothing_is_lost(block: str) -> None:
    text = f"so:\n<tool_call>{block}</tool_call> then"
    reply = read(tokens(text), TOOLS)
    assert (reply.text, reply.tool_calls) == (text, ())


def test_a_call_whose_end_was_cut_off_is_read_when_its_json_is_whole() -> None:
    assert read(tokens(CALL.removesuffix("</tool_call>")), TOOLS).tool_calls
    cut = CALL[:30]
    assert read(tokens(cut), TOOLS).text == cut


def test_arguments_given_as_text_or_not_at_all() -> None:
    calls, _ = parse_tool_calls(
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>'
        '<tool_call>{"name": "g"}</tool_call>'
        '<tool_call>{"name": "h", "arguments": "火"}</tool_call>'
    )
    assert [call.arguments for call in calls] == ['{"a": 1}', "{}", "火"]


def test_text_that_only_began_like_a_call_is_shown() -> None:
    assert read(tokens("a <tool_ca"), TOOLS).text == "a <tool_ca"
    assert read(tokens("a  <tool_box> b "), TOOLS).text == "a  <tool_box> b "


@given(
    st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", '{"name": "f"}', "<", "tool", " ", "\n", "火", "stop"]
        ),
        max_size=12,
    )
)
def test_any_mixture_is_read_without_losing_words(pieces: list[str]) -> None:
    """What is shown is never taken back, and only calls and the blanks around them go."""
    text = "".join(pieces)
    reply = read(tokens(text), TOOLS)
    calls = "".join(json.dumps({"name": call.name}) for call in reply.tool_calls)
    kept = reply.text + calls
    for word in ("火", "stop"):
        assert kept.count(word) == text.count(word)
