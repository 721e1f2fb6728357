"""One picture against its labels: only what was labelled counts."""

from dataclasses import replace

import pytest

from qianyan.errors import ConfigError
from qianyan.inspection.evaluation.outcomes import (
    ImageOutcome,
    PictureOutcome,
    SubLabelOutcome,
    check_labels,
    labelled_state,
    score_picture,
)
from qianyan.inspection.records import Box, Detection, Hazard, SubLabel
from qianyan.labels.matching import BoxCounts
from qianyan.labels.photos import LabelledBox

from .examples import BARE, FLAME, HELMET, failed, fire, looked, person, photo

PERSON = LabelledBox("person", (0, 100, 100, 400))


def test_what_was_not_looked_for_is_not_scored() -> None:
    outcome = score_picture(
        photo(labelled=frozenset({"person"})), looked(fire(0), person(0, SubLabel.NO_HELMET))
    )
    assert set(outcome.images) == set(outcome.boxes) == {"person"}
    assert [box.hazard for box in outcome.found] == [Hazard.PERSON]
    assert outcome.heads == ()


@pytest.mark.parametrize(("found", "reported"), [((), False), ((fire(290),), True)])
def test_a_picture_counts_as_reported_wherever_the_box_lies(
    found: tuple[Detection, ...], reported: bool
) -> None:
    assert score_picture(photo(FLAME), looked(*found)).images["fire"] == ImageOutcome(
        present=True, reported=reported
    )
    assert score_picture(photo(), looked(*found)).images["fire"] == ImageOutcome(
        present=False, reported=reported
    )


def test_a_bare_head_is_reported_by_a_person_without_a_hat() -> None:
    with_hat = score_picture(photo(BARE), looked(person(200, SubLabel.HELMET)))
    without = score_picture(photo(HELMET), looked(person(0, SubLabel.NO_HELMET)))
    assert with_hat.images["head"] == ImageOutcome(present=True, reported=False)
    assert without.images["head"] == ImageOutcome(present=False, reported=True)


def test_each_label_is_found_once_and_the_second_box_on_it_is_a_duplicate() -> None:
    outcome = score_picture(
        photo(FLAME), looked(fire(5, score=0.4), fire(0, score=0.9), fire(250, score=0.1))
    )
    assert outcome.boxes["fire"] == BoxCounts(1, 0, 2)
    assert [(box.score, box.is_right, box.is_duplicate) for box in outcome.found] == [
        (0.9, True, False),
        (0.4, False, True),
        (0.1, False, False),
    ]


def test_the_surer_box_speaks_for_the_label() -> None:
    sure, unsure = fire(0, score=0.9), fire(0, score=0.2, said=SubLabel.SEVERE)
    outcome = score_picture(photo(FLAME), looked(unsure, sure))
    assert outcome.sub_labels == (SubLabelOutcome(Hazard.FIRE, SubLabel.MINOR, SubLabel.MINOR),)


def test_a_missed_thing_has_no_answer_about_it() -> None:
    assert score_picture(photo(FLAME), looked()).sub_labels == (
        SubLabelOutcome(Hazard.FIRE, SubLabel.MINOR, None),
    )


def test_a_person_wears_what_the_head_says_or_else_what_the_label_says() -> None:
    worker = replace(PERSON, sub_label="佩戴安全帽")
    verdict = looked(person(0, SubLabel.NO_HELMET))
    with_heads = score_picture(photo(worker, HELMET), verdict)
    without = score_picture(photo(worker, labelled=frozenset({"person"})), verdict)
    assert with_heads.sub_labels == without.sub_labels
    assert with_heads.sub_labels == (
        SubLabelOutcome(Hazard.PERSON, SubLabel.HELMET, SubLabel.NO_HELMET),
    )


def test_heads_are_compared_with_the_persons_they_sit_on() -> None:
    outcome = score_picture(
        photo(HELMET, BARE), looked(person(200, SubLabel.NO_HELMET), person(0, SubLabel.HELMET))
    )
    assert [head.is_right for head in outcome.heads] == [True, True]
    assert outcome.boxes["helmet"] == outcome.boxes["head"] == BoxCounts(1, 0, 0)


def test_one_person_answers_for_one_head() -> None:
    outcome = score_picture(photo(HELMET, BARE), looked(person(0, SubLabel.HELMET)))
    assert [head.answer for head in outcome.heads] == [SubLabel.HELMET, None]
    assert outcome.boxes["head"] == BoxCounts(0, 1, 0)


def test_a_hat_that_is_said_to_be_none_is_missed_as_a_hat_and_false_as_a_bare_head() -> None:
    outcome = score_picture(photo(HELMET), looked(person(0, SubLabel.NO_HELMET)))
    assert outcome.boxes["helmet"] == BoxCounts(0, 1, 0)
    assert outcome.boxes["head"] == BoxCounts(0, 0, 1)


def test_uncertain_is_found_but_not_right() -> None:
    (head,) = score_picture(photo(BARE), looked(person(200, SubLabel.UNCERTAIN))).heads
    assert (head.is_found, head.is_right) == (True, False)


@pytest.mark.parametrize(("side", "size"), [(15, 0), (16, 1), (32, 2), (64, 3)])
def test_the_size_of_a_head_is_the_root_of_its_area(side: int, size: int) -> None:
    label = LabelledBox("head", (0, 0, side, side))
    assert score_picture(photo(label), looked()).heads[0].size == size


def test_a_picture_without_a_verdict_has_its_error_and_nothing_else() -> None:
    outcome = score_picture(photo(FLAME), failed("unreadable_reply"))
    assert outcome == PictureOutcome(file="a.jpg", error="unreadable_reply")


def test_an_outcome_is_read_back_as_far_as_comparisons_need_it() -> None:
    outcome = score_picture(photo(FLAME, HELMET), looked(fire(0), total_s=1.5))
    again = PictureOutcome.from_record(outcome.as_record())
    assert (again.images, again.boxes) == (outcome.images, outcome.boxes)
    assert again.as_record() == outcome.as_record()


@pytest.mark.parametrize("word", ["minor", "轻微"])
def test_a_label_says_severity_as_an_id_or_in_words(word: str) -> None:
    assert labelled_state(LabelledBox("fire", (0, 0, 1, 1), sub_label=word)) is SubLabel.MINOR


@pytest.mark.parametrize("word", ["helmet", "huge"])
def test_a_word_that_is_none_of_the_hazards_is_refused_by_name(word: str) -> None:
    with pytest.raises(ConfigError, match=f"call a fire '{word}'; expected minor"):
        labelled_state(LabelledBox("fire", (0, 0, 1, 1), sub_label=word))


def test_labels_without_any_class_of_ours_are_refused() -> None:
    with pytest.raises(ConfigError, match="have no class that could be scored"):
        check_labels([photo(labelled=frozenset())])


def test_a_box_just_under_one_half_is_false() -> None:
    near = Detection(Hazard.FIRE, SubLabel.MINOR, Box(34, 0, 134, 100), 0.5, "detector")
    assert score_picture(photo(FLAME), looked(near)).boxes["fire"] == BoxCounts(0, 1, 1)
