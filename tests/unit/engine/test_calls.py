"""Calls read while they grow: in whatever pieces they come, the same name and arguments."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from qianyan.engine.calls import CALL_END, CALL_START, HEAD, TAIL, CallPiece, CallReader
from qianyan.engine.reply import ToolCall, parse_tool_calls

WORDS = st.text(st.sampled_from('a火"\\{}[]:, \n'), max_size=8) | st.just("</tool_call>")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(["ring", "call_119"]), st.dictionaries(WORDS, VALUES)), max_size=3
)


def written(calls: list[tuple[str, dict[str, Any]]]) -> str:
    return "\n".join(
        CALL_START
        + HEAD.format(name=json.dumps(name))
        + json.dumps(arguments, ensure_ascii=False)
        + TAIL
        + CALL_END
        for name, arguments in calls
    )


def read(text: str, size: int) -> tuple[list[CallPiece], CallReader]:
    reader = CallReader()
    pieces = []
    for start in range(0, len(text), size):
        pieces += reader.push(text[start : start + size])
    return pieces, reader


def joined(pieces: list[CallPiece]) -> tuple[ToolCall, ...]:
    """Put pieces together as a client does: a name once, arguments one after another."""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for piece in pieces:
        if piece.name is not None:
            assert piece.index == len(names)
            names[piece.index] = piece.name
            arguments[piece.index] = ""
        arguments[piece.index] += piece.arguments
    return tuple(ToolCall(name=names[i], arguments=arguments[i]) for i in names)


@given(CALLS, st.integers(1, 9))
def test_pieces_make_up_the_calls_however_they_are_cut(
    calls: list[tuple[str, dict[str, Any]]], size: int
) -> None:
    pieces, reader = read(written(calls), size)
    assert [(call.name, json.loads(call.arguments)) for call in joined(pieces)] == calls
    assert (reader.num_whole, reader.is_inside) == (len(calls), False)
    assert parse_tool_calls(written(calls)) == (joined(pieces), "")


@given(CALLS, st.data())
def test_a_cut_call_is_a_beginning_and_never_counted_as_whole(
    calls: list[tuple[str, dict[str, Any]]], data: st.DataObject
) -> None:
    text = written(calls)
    pieces, reader = read(text[: data.draw(st.integers(0, len(text)))], 3)
    for got, (name, arguments) in zip(joined(pieces), calls, strict=False):
        assert got.name == name
        assert json.dumps(arguments, ensure_ascii=False).startswith(got.arguments)
    assert reader.num_whole + reader.is_inside >= len(joined(pieces))
