"""Which pictures are hard, and what counts as labelled in them."""

from pathlib import Path
from typing import Any

import pytest

from qianyan.errors import ConfigError
from qianyan.inspection.exporting.cases import Case, Reason, find_case
from qianyan.inspection.exporting.reviews import PictureReviews, Review, Verdict
from qianyan.inspection.records import Box, Detection, Failure, Hazard, Inspection, SubLabel
from qianyan.labels.photos import LabelledBox

from .examples import FIRE, WORKER, found, inspection, unreadable, vetoed


def said(about: Detection, verdict: Verdict, **more: Any) -> Review:
    return Review(label=about.label, box=about.box, verdict=verdict, **more)


def case(one: Inspection, *reviews: Review, complete: frozenset[Hazard] = frozenset()) -> Case:
    known = PictureReviews({(each.label, each.box): each for each in reviews}, complete)
    return find_case(one, {one.sha256 or "": known}, folder=Path(), model="m")


SURE = inspection("a.jpg", FIRE, WORKER)
UNSURE = found(Hazard.PERSON, SubLabel.UNCERTAIN, 0, 0, 9, 9)
LOW = found(Hazard.FIRE, SubLabel.MINOR, 0, 0, 9, 9, score=0.49)


@pytest.mark.parametrize(
    ("one", "reasons"),
    [
        (SURE, ()),
        (inspection("a.jpg", LOW), (Reason.LOW_SCORE,)),
        (inspection("a.jpg", found(Hazard.FIRE, SubLabel.MINOR, 0, 0, 9, 9, score=None)), ()),
        (vetoed("a.jpg", FIRE), (Reason.VETOED,)),
        (inspection("a.jpg", UNSURE), (Reason.UNCERTAIN,)),
        (unreadable("a.jpg"), (Reason.UNREADABLE,)),
        (Inspection("a.jpg", None, (), error=Failure("endpoint_failed", "It is off.")), ()),
    ],
)
def test_a_picture_is_hard_where_the_model_was_unsure(
    one: Inspection, reasons: tuple[Reason, ...]
) -> None:
    assert case(one).reasons == reasons
    assert case(one).is_chosen("hard") == bool(reasons)
    assert not case(one).is_chosen("reviewed")
    assert case(one).is_chosen("all")


@pytest.mark.parametrize(
    ("review", "is_hard"),
    [
        (said(FIRE, "right"), False),
        (said(FIRE, "right", sub_label=SubLabel.SEVERE), False),
        (said(FIRE, "right", sub_label=SubLabel.MINOR), True),
        (said(FIRE, "wrong"), True),
        (said(FIRE, "moved", moved_to=Box(11, 5, 30, 25)), True),
        (said(LOW, "missed"), True),
        (said(LOW, "right"), True),  # another run saw what this one did not
    ],
)
def test_a_picture_is_hard_where_a_person_contradicts(review: Review, is_hard: bool) -> None:
    assert case(SURE, review).reasons == ((Reason.WRONG,) if is_hard else ())
    assert case(SURE, review).is_chosen("reviewed")


def test_reviewed_boxes_are_labels_and_the_others_predictions() -> None:
    one = case(inspection("a.jpg", FIRE, WORKER, LOW), said(FIRE, "right"))
    assert one.labels == (LabelledBox("fire", (10, 5, 30, 25), None, "severe"),)
    assert one.labelled == frozenset()  # another fire is not judged yet
    assert one.predictions == (
        LabelledBox("person", (40, 10, 60, 49), None, "helmet", 0.8),
        LabelledBox("fire", (0, 0, 9, 9), None, "minor", 0.49),
    )


def test_a_category_is_labelled_once_all_its_detections_are_judged() -> None:
    one = case(SURE, said(FIRE, "wrong"))
    assert one.labelled == {Hazard.FIRE}
    assert one.labels == ()
    assert [box.kind for box in one.predictions] == ["person"]


def test_a_missed_thing_is_a_label_where_nothing_was_reported() -> None:
    one = case(inspection("a.jpg"), said(WORKER, "missed", sub_label=SubLabel.NO_HELMET))
    assert one.labels == (LabelledBox("person", (40, 10, 60, 49), None, "no_helmet"),)
    assert one.labelled == {Hazard.PERSON}


def test_a_wrong_veto_gives_its_box_and_sub_label_back() -> None:
    one = case(vetoed("a.jpg", FIRE), said(FIRE, "right"))
    assert one.labels == (LabelledBox("fire", (10, 5, 30, 25), None, "severe"),)
    assert Reason.WRONG in one.reasons


def test_a_moved_box_keeps_the_sub_label_unless_another_is_said() -> None:
    there = Box(12, 5, 32, 25)
    assert case(SURE, said(FIRE, "moved", moved_to=there)).labels[0].sub_label == "severe"
    other = said(FIRE, "moved", moved_to=there, sub_label=SubLabel.MINOR)
    assert case(SURE, other).labels == (LabelledBox("fire", (12, 5, 32, 25), None, "minor"),)


def test_what_is_complete_leaves_no_predictions_and_judges_a_later_run() -> None:
    nearly = found(Hazard.FIRE, SubLabel.SEVERE, 11, 5, 30, 25)
    truth = said(FIRE, "right")
    agrees = case(inspection("a.jpg", nearly), truth, complete=frozenset({Hazard.FIRE}))
    assert agrees.reasons == ()
    assert agrees.labelled == {Hazard.FIRE}
    assert agrees.predictions == ()
    more = inspection("a.jpg", nearly, found(Hazard.FIRE, SubLabel.MINOR, 70, 5, 90, 25))
    assert case(more, truth, complete=frozenset({Hazard.FIRE})).reasons == (Reason.WRONG,)
    alarm = case(SURE, complete=frozenset({Hazard.FIRE}))
    assert alarm.reasons == (Reason.WRONG,)
    assert alarm.labels == ()


@pytest.mark.parametrize("box", [(10, 5, 101, 25), (10, 5, 30, 51), (30, 5, 10, 25), (-1, 5, 9, 9)])
def test_a_box_outside_its_picture_is_an_error(box: tuple[int, ...]) -> None:
    strange = Detection(Hazard.FIRE, SubLabel.MINOR, Box(*box))
    with pytest.raises(ConfigError, match=r"'site/a.jpg' have the box .* inside its 100x50"):
        case(inspection("a.jpg", strange))
    with pytest.raises(ConfigError, match="have the box"):
        case(SURE, said(strange, "missed"))
