"""Found boxes and labelled ones: who belongs to whom, and what is counted."""

import pytest

from qianyan.labels.matching import BoxCounts, match_boxes

LABEL = (0.0, 0.0, 100.0, 100.0)


def test_the_first_found_box_takes_the_label() -> None:
    assert match_boxes([(5, 0, 105, 100), LABEL], [LABEL], overlap=0.5) == [(0, 0)]


def test_a_taken_label_leaves_the_next_best_to_the_next_box() -> None:
    near = (20.0, 0.0, 120.0, 100.0)
    assert match_boxes([LABEL, LABEL], [near, LABEL], overlap=0.5) == [(0, 1), (1, 0)]


@pytest.mark.parametrize(("shift", "pairs"), [(33, [(0, 0)]), (34, [])])  # IoU 0.504 and 0.493
def test_a_box_counts_from_the_overlap_on(shift: int, pairs: list[tuple[int, int]]) -> None:
    assert match_boxes([(shift, 0, shift + 100, 100)], [LABEL], overlap=0.5) == pairs


def test_f1_is_none_where_there_was_nothing_and_zero_where_nothing_was_right() -> None:
    assert BoxCounts().f1 is None
    assert BoxCounts(0, 1, 1).f1 == 0
    assert (BoxCounts(2, 1, 0) + BoxCounts(1, 0, 1)).f1 == pytest.approx(6 / 8)
