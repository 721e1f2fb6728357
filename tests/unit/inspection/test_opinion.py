"""A letter's log-probabilities become shares of the options."""

import math

import pytest

from qianyan.inspection.opinion import read_opinion
from qianyan.inspection.prompts import load_questions
from qianyan.inspection.vision import Answer, TokenScore

HEAD = load_questions()["head"]


def answer(text: str, top: dict[str, float] | None = None) -> Answer:
    tokens = None
    if top is not None:
        logs = {token: math.log(p) for token, p in top.items()}
        tokens = (TokenScore(text=text, logprob=max(logs.values()), top=logs),)
    return Answer(text=text, seen_wh=(28, 28), tokens=tokens)


def test_shares_are_a_softmax_over_the_letters_alone() -> None:
    opinion = read_opinion(answer("A", {"A": 0.4, "B": 0.1, "The": 0.5}), HEAD)
    assert opinion.is_weighed
    assert opinion.best == "helmet"
    assert opinion.share("helmet") == pytest.approx(0.8)
    assert opinion.share("helmet", "no_helmet") == pytest.approx(1.0)


def test_a_letter_with_a_space_before_it_counts_as_the_letter() -> None:
    opinion = read_opinion(answer(" B", {" B": 0.3, "B": 0.3, "A": 0.2}), HEAD)
    assert opinion.share("no_helmet") == pytest.approx(0.75)


def test_without_log_probabilities_the_named_letter_counts_whole_but_unweighed() -> None:
    opinion = read_opinion(answer("C. The head is hidden."), HEAD)
    assert opinion.best == "uncertain"
    assert not opinion.is_weighed


@pytest.mark.parametrize("text", ["B", " B", "(B)", "**B**", "B 没有戴安全帽", "B没有"])
def test_a_named_letter_is_found_in_its_usual_dress(text: str) -> None:
    assert read_opinion(answer(text), HEAD).best == "no_helmet"


@pytest.mark.parametrize("text", ["", "helmet", "是", "Z", "b", "Certainly"])
def test_an_answer_that_is_no_letter_gives_no_opinion(text: str) -> None:
    opinion = read_opinion(answer(text), HEAD)
    assert opinion.best is None
    assert opinion.share("helmet") == 0.0
