"""Server-sent events become deltas, wherever the network cut them."""

import itertools
import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qianyan.errors import EndpointError
from qianyan.inputs import event_lines
from qianyan.inspection.remote.event_stream import Delta, read_deltas

WHERE = "http://host/v1"


def chunk(finish_reason: str | None = None, **delta: object) -> bytes:
    data = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


ANSWER = b"".join(
    [
        b": keep-alive\r\n\r\n",
        chunk(role="assistant", content=""),
        chunk(reasoning_content="看一看"),
        chunk(content=None, reasoning=" again"),
        b'event: message\nid: 7\ndata: {"choices": [{"delta":\ndata: {"content": "Smoke"}}]}\n\n',
        chunk(content=" 烟雾\n", reasoning_content=None),
        chunk(finish_reason="stop"),
        b'data: {"choices": [], "usage": {"completion_tokens": 5}}\n\n',
        b"data: [DONE]\n\n",
    ]
)


def read(pieces: Iterable[bytes]) -> list[Delta]:
    return list(read_deltas(pieces, WHERE))


@given(st.lists(st.integers(0, len(ANSWER)), max_size=20))
def test_the_answer_is_the_same_wherever_it_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(ANSWER)]
    deltas = read(ANSWER[a:b] for a, b in itertools.pairwise(edges))
    assert "".join(one.reasoning for one in deltas) == "看一看 again"
    assert "".join(one.text for one in deltas) == "Smoke 烟雾\n"
    assert [one.finish_reason for one in deltas if one.finish_reason] == ["stop"]
    assert deltas[-1].completion_tokens == 5


@given(st.binary(max_size=300))
def test_any_bytes_end_in_deltas_or_in_a_sentence(data: bytes) -> None:
    with pytest.raises(EndpointError, match="http://host/v1"):
        read([data, b"\n\ndata: nonsense"])


@pytest.mark.parametrize(
    ("tail", "sentence"),
    [
        (b"", "stopped in the middle of its answer"),
        (b'data: {"choices": [{"del', '\'{"choices": [{"del\' in the middle'),
        (b"data: [1]\n\n", "expected JSON"),
        (b'data: {"object": "list"}\n\n', "answers without choices"),
        (b'data: {"error": {"message": "CUDA out\\nof memory"}}\n\n', "'CUDA out of memory'"),
        (b'data: {"error": "no slots"}\n\n', "broke off its answer: 'no slots'"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "expected JSON"),
    ],
)
def test_a_damaged_answer_is_an_error_after_what_was_said(tail: bytes, sentence: str) -> None:
    deltas = read_deltas([chunk(content="Smo"), tail], WHERE)
    assert next(deltas).text == "Smo"
    with pytest.raises(EndpointError) as caught:
        next(deltas)
    assert sentence in str(caught.value)


def test_an_answer_may_end_without_done_or_without_its_last_line() -> None:
    assert read([chunk(content="a"), chunk(finish_reason="length")])[-1].finish_reason == "length"
    assert read([chunk(content="a"), b"data: [DONE]"])[0].text == "a"


def test_half_a_surrogate_pair_does_not_reach_the_caller() -> None:
    (delta,) = read([b'data: {"choices": [{"delta": {"content": "a\\ud83d"}}]}\n\ndata: [DONE]\n'])
    assert delta.text == "a?"


def test_endless_streams_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_lines, "MAX_STREAM_BYTES", 1000)
    monkeypatch.setattr(event_lines, "MAX_LINE_BYTES", 300)
    for endless in (chunk(content="x"), b"x", b": ping\n"):
        with pytest.raises(EndpointError, match="expected a chat completion"):
            read(endless for _ in iter(int, 1))
