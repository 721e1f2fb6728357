"""The events of a stream fold to the response that comes whole, whatever the model says."""

import json
import runpy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from qianyan.engine.calls import CallPiece
from qianyan.engine.loops import Loop
from qianyan.engine.reply import ToolCall
from qianyan.engine.request import Completion, TokenText, Usage
from qianyan.server.errors import Failure
from qianyan.server.openai_responses_events import ResponseWriter, new_response, replay

Event = dict[str, Any]
CLIENT = runpy.run_path(str(Path(__file__).with_name("folded_response.py")))
fold: Callable[[Iterable[Event]], Event] = CLIENT["fold"]


def completion_of(tokens: list[TokenText], **words: Any) -> Completion:
    calls: list[list[str]] = []
    for piece in (piece for token in tokens for piece in token.calls):
        if piece.name is not None:
            calls.append([piece.name, ""])
        calls[-1][1] += piece.arguments
    whole = tuple(ToolCall(name=name, arguments=arguments) for name, arguments in calls)
    given: dict[str, Any] = {"finish_reason": "stop", "tool_calls": whole, **words}
    return Completion(
        text="".join(token.text for token in tokens if not token.is_reasoning),
        token_ids=[],
        prompt_token_ids=[1],
        logprobs=None,
        usage=Usage(prompt_tokens=1, completion_tokens=2, reasoning_tokens=1, forwarded_tokens=1),
        **given,
    )


def writer_of(*, summarizes: bool = False) -> ResponseWriter:
    response = new_response("m", {"metadata": {}}, is_stored=True)
    return ResponseWriter(response, summarizes=summarizes)


def tell(writer: ResponseWriter, tokens: list[TokenText], **words: Any) -> list[Event]:
    events = list(writer.begin())
    for token in tokens:
        events += writer.push(token)
    events += writer.finish(completion_of(tokens, **words))
    return [*events, writer.end()]


TEXTS = st.text(max_size=3)
THOUGHTS = st.lists(TEXTS.map(lambda text: TokenText(text=text, token_id=1, is_reasoning=True)))
WORDS = st.lists(TEXTS.map(lambda text: TokenText(text=text, token_id=1)))


@st.composite
def calls(draw: st.DrawFn) -> list[TokenText]:
    tokens = []
    for index in range(draw(st.integers(0, 3))):
        pieces = [CallPiece(index=index, name="f")]
        pieces += [CallPiece(index=index, arguments=text) for text in draw(st.lists(TEXTS))]
        cut = draw(st.integers(0, len(pieces)))
        held = (tuple(pieces[:cut]), tuple(pieces[cut:]))
        tokens += [TokenText(text="", token_id=1, calls=some) for some in held]
    return tokens


@given(THOUGHTS, WORDS, calls(), WORDS, st.booleans(), st.booleans())
def test_a_stream_folds_to_the_whole_response(
    thoughts: list[TokenText],
    words: list[TokenText],
    called: list[TokenText],
    more: list[TokenText],
    summarizes: bool,
    is_cut: bool,
) -> None:
    writer = writer_of(summarizes=summarizes)
    tokens = [*thoughts, *words, *called, *more]
    events = tell(writer, tokens, finish_reason="length" if is_cut else "stop")
    response = fold(events)
    assert response == json.loads(json.dumps(writer.response))
    assert response["output"], "something always comes"
    spoken = [item for item in response["output"] if item["type"] == "message"]
    assert "".join(part["text"] for item in spoken for part in item["content"]) == "".join(
        token.text for token in tokens if not token.is_reasoning
    )
    told = [item for item in response["output"] if item["type"] == "function_call"]
    assert [(call["name"], call["arguments"]) for call in told] == [
        (call.name, call.arguments) for call in completion_of(tokens).tool_calls
    ]
    assert fold(replay(writer.response, starting_after=None)) == response
    ids = [item["id"] for item in response["output"]]
    assert len(set(ids)) == len(ids)
    assert len({call["call_id"] for call in told}) == len(told)


def kinds(events: Iterable[Event]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_the_events_have_the_protocols_order() -> None:
    tokens = [
        TokenText(text="hm", token_id=1, is_reasoning=True),
        TokenText(text="so", token_id=1),
        TokenText(text="", token_id=1, calls=(CallPiece(index=0, name="f"),)),
        TokenText(text="", token_id=1, calls=(CallPiece(index=0, arguments="{}"),)),
    ]
    part = ["content_part.done", "output_item.done"]
    assert kinds(tell(writer_of(), tokens)) == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
        *part,
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", *part,
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]  # fmt: skip
    assert kinds(tell(writer_of(summarizes=True), tokens[:1]))[2:7] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
    ]


def test_an_answer_cut_by_its_length_is_incomplete() -> None:
    writer = writer_of()
    tell(writer, [TokenText(text="lo", token_id=1)], finish_reason="length")
    assert writer.response["status"] == "incomplete"
    assert writer.response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert writer.response["output"][0]["status"] == "incomplete"
    assert writer.response["completed_at"] is None
    looping = writer_of()
    loop = Loop(period=2, repeats=900)
    tell(looping, [TokenText(text="lo", token_id=1)], finish_reason="length", loop=loop)
    assert looping.response["incomplete_details"]["stop_reason"] == "repetition_detected"


def test_only_the_call_that_was_cut_is_incomplete() -> None:
    begun = [
        TokenText(text="", token_id=1, calls=(CallPiece(index=index, name="f"),))
        for index in range(2)
    ]
    writer = writer_of()
    whole = (ToolCall(name="f", arguments="{}"),)
    tell(writer, begun, finish_reason="length", tool_calls=whole)
    assert [call["status"] for call in writer.response["output"]] == ["completed", "incomplete"]


def test_an_error_ends_the_response_in_its_words() -> None:
    writer = writer_of()
    events = [*writer.begin(), *writer.push(TokenText(text="so", token_id=1))]
    events += writer.fail(Failure(status=500, code="model_failed", message="The model failed."))
    response = fold([*events, writer.end()])
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "The model failed."}
    assert response["output"][0]["status"] == "incomplete"


def test_a_replay_goes_on_after_a_number() -> None:
    writer = writer_of()
    tell(writer, [TokenText(text="so", token_id=1)])
    everything = list(replay(writer.response, starting_after=None))
    assert list(replay(writer.response, starting_after=3)) == everything[4:]
