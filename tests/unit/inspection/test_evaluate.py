"""Scores against labels: only what was labelled counts, and counts are shown."""

import json
from pathlib import Path

import pytest

from qianyan.inspection.evaluate import (
    Rate,
    box_score,
    evaluate,
    evaluation_table,
    head_score,
    image_score,
)
from qianyan.inspection.records import Box, Detection, Failure, Hazard, Inspection, SubLabel
from qianyan.labels.photos import KINDS, Kind, LabelledBox, LabelledPhoto

ALL: frozenset[Kind] = frozenset(KINDS)


def photo(*boxes: LabelledBox, labelled: frozenset[Kind] = ALL) -> LabelledPhoto:
    return LabelledPhoto(Path("a.jpg"), 400, 400, labelled, boxes)


def fire(x: int, y: int, side: int = 100, *, score: float = 0.5) -> Detection:
    return Detection(Hazard.FIRE, SubLabel.MINOR, Box(x, y, x + side, y + side), score, "detector")


def person(x: int, sub_label: SubLabel) -> Detection:
    return Detection(Hazard.PERSON, sub_label, Box(x, 100, x + 100, 400))


FLAME = LabelledBox("fire", (0, 0, 100, 100), sub_label="minor")


def test_a_hazard_that_was_not_looked_for_is_not_scored() -> None:
    unlabelled = photo(labelled=frozenset({"person"}))
    assert image_score(unlabelled, [fire(0, 0)], Hazard.FIRE).false_alarms.total == 0
    assert box_score(unlabelled, [fire(0, 0)], Hazard.FIRE).false_positives == 0
    assert head_score(unlabelled, [person(0, SubLabel.HELMET)]).found.total == 0


def test_image_level_recall_and_false_alarms_are_over_their_own_photos() -> None:
    assert image_score(photo(FLAME), [], Hazard.FIRE).recall == Rate(0, 1)
    assert image_score(photo(FLAME), [fire(900, 900)], Hazard.FIRE).recall == Rate(1, 1)
    assert image_score(photo(), [fire(0, 0)], Hazard.FIRE).false_alarms == Rate(1, 1)
    assert image_score(photo(), [], Hazard.FIRE).false_alarms == Rate(0, 1)


def test_each_label_is_found_at_most_once() -> None:
    score = box_score(photo(FLAME), [fire(0, 0), fire(5, 5)], Hazard.FIRE)
    assert (score.true_positives, score.false_positives, score.missed) == (1, 1, 0)
    assert score.f1 == pytest.approx(2 / 3)


@pytest.mark.parametrize(("shift", "hits"), [(33, 1), (34, 0)])  # IoU 0.504 and 0.493
def test_a_box_counts_from_an_overlap_of_one_half(shift: int, hits: int) -> None:
    assert box_score(photo(FLAME), [fire(shift, 0)], Hazard.FIRE).true_positives == hits


def test_the_better_score_takes_the_label() -> None:
    sure = Detection(Hazard.FIRE, SubLabel.MINOR, Box(0, 0, 100, 100), 0.9, "detector")
    unsure = Detection(Hazard.FIRE, SubLabel.SEVERE, Box(0, 0, 100, 100), 0.2, "detector")
    assert box_score(photo(FLAME), [unsure, sure], Hazard.FIRE).sub_label == Rate(1, 1)


HELMET = LabelledBox("helmet", (30, 95, 70, 115), head_box=(30, 95, 70, 145))
BARE = LabelledBox("head", (230, 100, 270, 140))


def test_heads_are_compared_with_the_persons_they_sit_on() -> None:
    score = head_score(
        photo(HELMET, BARE), [person(200, SubLabel.NO_HELMET), person(0, SubLabel.HELMET)]
    )
    assert (score.found, score.right) == (Rate(2, 2), Rate(2, 2))
    assert score.bare_recall == Rate(1, 1)


def test_uncertain_is_found_but_not_right() -> None:
    score = head_score(photo(BARE), [person(200, SubLabel.UNCERTAIN)])
    assert (score.found, score.right, score.uncertain) == (Rate(1, 1), Rate(0, 1), Rate(1, 1))
    assert score.bare_recall == Rate(0, 1)


def test_a_bare_head_that_nobody_reported_counts_against_recall_only() -> None:
    score = head_score(photo(BARE), [])
    assert (score.found, score.right, score.bare_recall) == (Rate(0, 1), Rate(0, 0), Rate(0, 1))


def test_a_person_reported_bare_where_nobody_is_is_a_false_alarm_of_that_photo() -> None:
    reported = [person(0, SubLabel.NO_HELMET), person(200, SubLabel.NO_HELMET)]
    assert head_score(photo(HELMET), reported).bare_alarms == Rate(1, 1)
    assert head_score(photo(HELMET), []).bare_alarms == Rate(0, 1)
    assert head_score(photo(HELMET, BARE), reported).bare_alarms.total == 0


def test_one_person_answers_for_one_head() -> None:
    score = head_score(photo(HELMET, BARE), [person(0, SubLabel.HELMET)])
    assert score.found == Rate(1, 2)


def test_a_failed_photo_is_counted_as_failed_and_nowhere_else() -> None:
    failed = Inspection(
        source="a", detections=None, checked=tuple(Hazard), error=Failure("x", "No.")
    )
    result = evaluate([(photo(FLAME), failed)])
    assert (result.photos, result.failed) == (1, 1)
    assert result.images[Hazard.FIRE].recall.total == 0


def test_an_evaluation_prints_shares_with_counts_and_intervals() -> None:
    looked = Inspection(source="a", detections=(fire(0, 0),), checked=tuple(Hazard))
    result = evaluate([(photo(FLAME), looked)] * 4)
    table = evaluation_table(result)
    assert "fire: photos found" in table
    assert "100.0%  4/4  (  51.0% –  100.0%)" in table
    assert json.loads(json.dumps(result.as_record()))["boxes"]["fire"]["f1"] == 1.0


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"), [(0, 10, 0.0, 0.278), (8, 10, 0.490, 0.943)]
)
def test_the_interval_is_wilsons(hits: int, total: int, low: float, high: float) -> None:
    interval = Rate(hits, total).interval
    assert interval == pytest.approx((low, high), abs=0.001)
    assert Rate(0, 0).interval is None
