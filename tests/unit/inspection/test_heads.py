"""Which head belongs to which person."""

import pytest

from qianyan.inspection.heads import find_figures
from qianyan.models.detector import Proposal

PHOTO_WH = (1000, 800)


def person(
    x: float, y: float, *, wide: float = 100, high: float = 300, score: float = 0.8
) -> Proposal:
    return Proposal("person", (x, y, x + wide, y + high), score)


def helmet(x: float, y: float, *, side: float = 40, score: float = 0.7) -> Proposal:
    return Proposal("helmet", (x, y, x + side, y + side), score)


def head(x: float, y: float, *, side: float = 40, score: float = 0.7) -> Proposal:
    return Proposal("head", (x, y, x + side, y + side), score)


def test_a_head_at_the_top_of_a_body_is_its_head() -> None:
    (figure,) = find_figures([person(100, 100), helmet(130, 95)], PHOTO_WH)
    assert figure.box == (100, 100, 200, 400)
    assert figure.head is not None
    assert figure.head.helmet == 0.7
    assert figure.head_region == (130, 95, 170, 135)


def test_a_helmet_held_in_the_hand_is_not_worn_and_no_person() -> None:
    (figure,) = find_figures([person(100, 100), helmet(160, 300)], PHOTO_WH)
    assert figure.head is None
    assert figure.head_region[1] == 100, "the top of the body is looked at instead"


def test_a_helmet_in_the_hand_does_not_replace_the_bare_head() -> None:
    (figure,) = find_figures([person(100, 100), helmet(160, 300), head(130, 98)], PHOTO_WH)
    assert figure.head is not None
    assert figure.head.bare > figure.head.helmet


def test_neighbours_keep_their_own_heads() -> None:
    proposals = [person(100, 100), person(180, 100), helmet(130, 98), head(210, 98)]
    left, right = sorted(find_figures(proposals, PHOTO_WH), key=lambda one: one.box[0])
    assert left.head is not None
    assert left.head.helmet
    assert not left.head.bare
    assert right.head is not None
    assert right.head.bare
    assert not right.head.helmet


def test_each_head_goes_to_one_person_only() -> None:
    figures = find_figures([person(100, 100), person(150, 104), helmet(140, 98)], PHOTO_WH)
    assert len(figures) == 2
    assert sum(figure.head is not None for figure in figures) == 1


def test_a_head_without_a_body_is_a_person_with_shoulders_inside_the_photo() -> None:
    (figure,) = find_figures([head(0, 780, side=60)], PHOTO_WH)
    x1, y1, x2, y2 = figure.box
    assert x1 == 0
    assert y1 == 780
    assert x2 > 60
    assert y2 <= 800


def test_helmet_and_head_in_the_same_place_are_one_head_with_two_scores() -> None:
    (figure,) = find_figures([helmet(100, 100, score=0.4), head(102, 101, score=0.6)], PHOTO_WH)
    assert figure.head is not None
    assert (figure.head.helmet, figure.head.bare) == (0.4, 0.6)


def test_a_near_head_before_a_far_body_is_not_that_bodys() -> None:
    figures = find_figures([person(100, 100, wide=30, high=90), head(85, 80, side=60)], PHOTO_WH)
    assert len(figures) == 2


@pytest.mark.parametrize("kind", ["fire", "smoke"])
def test_other_kinds_are_left_alone(kind: str) -> None:
    proposal = Proposal(kind, (0, 0, 10, 10), 0.9)  # type: ignore[arg-type]
    assert find_figures([proposal], PHOTO_WH) == []


def test_the_most_certain_person_comes_first() -> None:
    figures = find_figures([person(0, 0, score=0.3), person(500, 0, score=0.9)], PHOTO_WH)
    assert [figure.score for figure in figures] == [0.9, 0.3]


def test_a_weak_head_is_believed_on_a_body_but_not_alone() -> None:
    limits = {"helmet": 0.3, "head": 0.3}
    proposals = [person(100, 100), helmet(130, 95, score=0.15), helmet(700, 95, score=0.15)]
    (figure,) = find_figures(proposals, PHOTO_WH, alone=limits)
    assert figure.head is not None
    assert figure.head.helmet == 0.15
    assert len(find_figures([helmet(700, 95, score=0.35)], PHOTO_WH, alone=limits)) == 1


def test_a_headless_body_on_a_more_certain_figure_is_its_echo() -> None:
    proposals = [person(100, 100), helmet(130, 95), person(110, 200, high=180, score=0.4)]
    assert len(find_figures(proposals, PHOTO_WH)) == 1
    apart = [person(100, 100), helmet(130, 95), person(170, 100, score=0.4)]
    assert len(find_figures(apart, PHOTO_WH)) == 2
