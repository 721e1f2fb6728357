"""Calls of functions by a model that knows nothing, and by one that learnt to call."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from qianyan.engine.calls import CallPiece
from qianyan.engine.engine import Engine
from qianyan.engine.request import Completion, Finished, TokenText
from qianyan.errors import GrammarError, InputError

PLACE = {
    "type": "object",
    "properties": {
        "hall": {"type": "integer", "minimum": 1, "maximum": 9},
        "level": {"enum": ["minor", "severe"]},
    },
    "required": ["hall", "level"],
    "additionalProperties": False,
}
COUNT = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
    "additionalProperties": False,
}
RING = {"type": "function", "function": {"name": "ring", "parameters": PLACE}}
TALLY = {"type": "function", "function": {"name": "tally", "parameters": COUNT}}
ASK = [{"role": "user", "content": "what now"}]
HOW: dict[str, Any] = {"max_tokens": 400, "temperature": 1.0}


@pytest.fixture(scope="module", params=["one token", "many tokens"])
def caller(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Path,
    tiny_tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Engine:
    """A random model, with <tool_call> as a token (Qwen2.5 on) and without (Qwen2)."""
    folder = tmp_path_factory.mktemp("caller")
    for path in tiny_checkpoint.iterdir():
        (folder / path.name).symlink_to(path)
    if request.param == "one token":
        tokenizer = Tokenizer.from_str(tiny_tokenizer.to_str())
        for token in ("<tool_call>", "</tool_call>"):
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
        (folder / "tokenizer.json").unlink()
        tokenizer.save(str(folder / "tokenizer.json"))
    return Engine(folder)


def check(done: Completion, *names: str) -> None:
    assert done.tool_calls
    for call in done.tool_calls:
        assert call.name in names
        arguments = json.loads(call.arguments)
        if call.name == "ring":
            assert 1 <= arguments["hall"] <= 9
            assert arguments["level"] in ("minor", "severe")
        else:
            assert 0 <= arguments["n"] <= 99
    assert done.text == ""
    assert (done.cut_call is None) == (done.finish_reason == "stop")


@pytest.mark.parametrize("seed", range(6))
def test_a_required_call_is_a_call_whatever_the_model_thinks(caller: Engine, seed: int) -> None:
    done = caller.chat(ASK, tools=[RING, TALLY], tool_choice="required", seed=seed, **HOW)
    check(done, "ring", "tally")
    assert done.usage.forwarded_tokens < done.usage.completion_tokens


@pytest.mark.parametrize("seed", range(3))
def test_a_named_call_is_exactly_one(caller: Engine, seed: int) -> None:
    named = {"type": "function", "function": {"name": "tally"}}
    done = caller.chat(ASK, tools=[RING, TALLY], tool_choice=named, seed=seed, **HOW)
    check(done, "tally")
    assert len(done.tool_calls) == 1


def test_calls_may_be_several_or_one(caller: Engine) -> None:
    how = {**HOW, "tools": [TALLY], "tool_choice": "required"}
    counts = [len(caller.chat(ASK, seed=seed, **how).tool_calls) for seed in range(12)]
    assert max(counts) > 1
    for seed in range(12):
        done = caller.chat(ASK, seed=seed, parallel_tool_calls=False, **how)
        assert len(done.tool_calls) == 1


def test_pieces_of_a_stream_make_up_the_calls(caller: Engine) -> None:
    *events, last = caller.stream(ASK, tools=[RING, TALLY], tool_choice="required", seed=4, **HOW)
    assert isinstance(last, Finished)
    pieces = [piece for event in events if isinstance(event, TokenText) for piece in event.calls]
    assert all(piece.name is None or not piece.arguments for piece in pieces)
    for index, call in enumerate(last.completion.tool_calls):
        own = [piece for piece in pieces if piece.index == index]
        assert own[0] == CallPiece(index=index, name=call.name)
        assert "".join(piece.arguments for piece in own[1:]) == call.arguments
        assert len(own) > 2


def test_a_call_that_the_length_cuts_is_told_as_such(caller: Engine) -> None:
    options = {"tools": [RING], "tool_choice": "required", "parallel_tool_calls": False, "seed": 1}
    whole = caller.chat(ASK, **options, **HOW)
    written = caller.processor.tokenizer.decode(whole.token_ids)
    for max_tokens in (1, 12, 40, len(whole.token_ids) - 1):
        done = caller.chat(ASK, **options, **{**HOW, "max_tokens": max_tokens})
        assert done.finish_reason == "length"
        assert done.cut_call is None or written.startswith(done.cut_call)
        if done.tool_calls:  # all but its end mark was there
            assert json.loads(done.tool_calls[0].arguments)
        else:
            assert done.cut_call is not None or max_tokens == 1


def test_a_form_or_calls_where_the_model_may_choose(caller: Engine) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": COUNT, "strict": True}}
    kinds = set()
    for seed in range(12):
        done = caller.chat(ASK, tools=[RING], response_format=form, seed=seed, **HOW)
        if done.tool_calls:
            check(done, "ring")
        else:
            assert 0 <= json.loads(done.text)["n"] <= 99
        kinds.add(bool(done.tool_calls))
    assert False in kinds


def test_none_offers_nothing(caller: Engine) -> None:
    quiet = caller.chat(ASK, tools=[RING], tool_choice="none", max_tokens=8, temperature=0)
    assert quiet == caller.chat(ASK, max_tokens=8, temperature=0)


def test_words_are_free_until_a_call_begins_which_then_keeps_to_its_schema(
    caller: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model is made to begin a call by the words that its request holds already."""
    tokenizer = caller.processor.tokenizer
    request, prompt = caller.prepare(ASK, {"tools": [RING, TALLY], "seed": 3, **HOW})
    assert request.grammar is not None
    assert not request.is_constrained
    begin: Callable[..., None] = request._append_known
    begin(tokenizer.encode("I ring.\n<tool_call>"))
    assert request.is_constrained
    request.append_forced()
    caller.submit(request, prompt)
    while not request.is_finished:
        caller.step()
    done = request.completion()
    assert done.text == "I ring."
    assert done.tool_calls
    assert {call.name for call in done.tool_calls} <= {"ring", "tally"}
    assert all(json.loads(call.arguments) for call in done.tool_calls)


def test_a_schema_outside_what_can_be_held_is_refused_with_its_place(caller: Engine) -> None:
    odd = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    strict = {"type": "function", "function": {"name": "f", "parameters": odd, "strict": True}}
    with pytest.raises(GrammarError, match=r"parameters of f .* at 'properties.a.uniqueItems'"):
        caller.chat(ASK, tools=[RING, strict], max_tokens=4)
    loose = {"type": "function", "function": {"name": "f", "parameters": odd}}
    done = caller.chat(ASK, tools=[loose], max_tokens=4)
    assert any("uniqueItems" in note for note in done.notes)


def test_options_that_do_not_fit_are_refused_at_once(caller: Engine) -> None:
    with pytest.raises(InputError, match="tool_choice asks for a call"):
        caller.stream(ASK, tool_choice="required")
