"""Thinking is told from the answer wherever an endpoint cuts its pieces."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qianyan.cli.think_marks import ThinkMarks


def divide(pieces: list[str]) -> tuple[str, str]:
    marks = ThinkMarks()
    said = [one for piece in pieces for one in marks.push(piece)]
    said.append(marks.finish())
    thinking = "".join(text for text, is_thinking in said if is_thinking)
    answer = "".join(text for text, is_thinking in said if not is_thinking)
    return thinking, answer


@pytest.mark.parametrize(
    ("whole", "thinking", "answer"),
    [
        ("<think>\nGrey.\n</think>\n\nSmoke.", "\nGrey.\n", "\n\nSmoke."),
        ("\n<think></think>Smoke.", "", "Smoke."),
        ("<think>cut </thi", "cut </thi", ""),
        ("Smoke. <think>no</think>", "", "Smoke. <think>no</think>"),
        ("<thin air>", "", "<thin air>"),
        ("<thi", "", "<thi"),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
        ("", "", ""),
    ],
)
@given(data=st.data())
def test_thinking_at_the_beginning_is_divided_off(
    whole: str, thinking: str, answer: str, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=8))
    edges = [0, *sorted(cuts), len(whole)]
    assert divide([whole[a:b] for a, b in itertools.pairwise(edges)]) == (thinking, answer)


def test_what_is_certain_is_not_held_back() -> None:
    marks = ThinkMarks()
    assert list(marks.push("<think>Grey, <")) == [("Grey, ", True)]
    assert list(marks.push("b> ")) == [("<b> ", True)]
    assert list(marks.push("</think>Smo")) == [("", True), ("Smo", False)]
    assert list(marks.push("ke")) == [("ke", False)]
