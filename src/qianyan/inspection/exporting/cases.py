"""Which pictures are hard, and what is known about each: predictions, and what persons said.

A picture is hard where the model was unsure (a low score, a veto, an uncertain sub-label), where
its answer could not be read, and where a person says that it was wrong. A category counts as
labelled in a picture once a person has been through it: said so, or judged every detection of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from qianyan.errors import ConfigError, ReplyError, quote
from qianyan.inspection.exporting.reviews import PictureReviews, Review
from qianyan.inspection.records import Box, Detection, Hazard, Inspection, SubLabel
from qianyan.labels.photos import Corners, LabelledBox

Choice = Literal["hard", "reviewed", "all"]
LOW_SCORE = 0.5
SAME_IOU = 0.5
"""Overlap from which a detection is taken for the thing that a person boxed."""


class Reason(StrEnum):
    """Why a picture is hard."""

    LOW_SCORE = "low_score"
    VETOED = "vetoed"
    UNCERTAIN = "uncertain"
    UNREADABLE = "unreadable_answer"
    WRONG = "reviewed_as_wrong"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One inspected picture with what was said about it; `folder` is its results folder."""

    inspection: Inspection
    folder: Path
    model: str
    reviews: PictureReviews
    reasons: tuple[Reason, ...]

    def is_chosen(self, choice: Choice) -> bool:
        """Whether the picture is among those asked for."""
        if choice == "hard":
            return bool(self.reasons)
        return choice == "all" or bool(self.reviews)

    @property
    def labelled(self) -> frozenset[Hazard]:
        """The kinds that a person has been through."""
        return frozenset(hazard for hazard in Hazard if _is_labelled(self, hazard))

    @property
    def labels(self) -> tuple[LabelledBox, ...]:
        """What persons say is there."""
        return tuple(_labels(self))

    @property
    def predictions(self) -> tuple[LabelledBox, ...]:
        """What was reported of kinds that no person has been through, and nobody has judged."""
        return tuple(
            LabelledBox(
                found.label.value, _corners(found.box), None, found.sub_label.value, found.score
            )
            for found in _unreviewed(self)
            if found.label not in self.labelled
        )


def find_case(
    inspection: Inspection,
    reviews: Mapping[str, PictureReviews],
    *,
    folder: Path,
    model: str,
    low_score: float = LOW_SCORE,
) -> Case:
    """Put a picture's verdict and its reviews together, and say why it is hard.

    Raises ConfigError where a box of either is not inside the picture.
    """
    said = reviews.get(inspection.sha256 or "", PictureReviews())
    _check_boxes(inspection, said)
    reasons = tuple(_reasons(inspection, said, low_score))
    return Case(inspection=inspection, folder=folder, model=model, reviews=said, reasons=reasons)


def _reasons(one: Inspection, said: PictureReviews, low_score: float) -> Iterator[Reason]:
    found = one.detections or ()
    if any(each.score is not None and each.score < low_score for each in found):
        yield Reason.LOW_SCORE
    if one.vetoed:
        yield Reason.VETOED
    if any(each.sub_label is SubLabel.UNCERTAIN for each in found):
        yield Reason.UNCERTAIN
    if one.error is not None and one.error.code == ReplyError.code:
        yield Reason.UNREADABLE
    if _is_wrong(one, said):
        yield Reason.WRONG


def _is_wrong(one: Inspection, said: PictureReviews) -> bool:
    """Tell whether persons contradict the verdict: in a statement, or by what is complete."""
    if any(_contradicts(review, one) for review in said.by_box.values()):
        return True
    return any(_disagrees(one, said, hazard) for hazard in said.complete)


def _contradicts(review: Review, one: Inspection) -> bool:
    if review.verdict != "right":
        return True
    found = _reported(review, one)
    if found is None:  # a veto was wrong, or another run saw what this one may have missed
        return not _lies_among(review.box, _boxes(one, review.label))
    return review.sub_label not in (None, found.sub_label)


def _disagrees(one: Inspection, said: PictureReviews, hazard: Hazard) -> bool:
    """Tell whether what was reported is not what is there, one for one."""
    truths = [truth for each in said.of(hazard) if (truth := each.truth) is not None]
    found = _boxes(one, hazard)
    return not all(_lies_among(truth, found) for truth in truths) or not all(
        _lies_among(box, truths) for box in found
    )


def _is_labelled(case: Case, hazard: Hazard) -> bool:
    if hazard in case.reviews.complete:
        return True
    left = (found for found in _unreviewed(case) if found.label is hazard)
    return bool(case.reviews.of(hazard)) and next(left, None) is None


def _unreviewed(case: Case) -> Iterator[Detection]:
    for found in case.inspection.detections or ():
        if (found.label, found.box) not in case.reviews.by_box:
            yield found


def _labels(case: Case) -> Iterator[LabelledBox]:
    for review in case.reviews.by_box.values():
        if review.truth is not None:
            found = _reported(review, case.inspection) or _rejected(review, case.inspection)
            sub_label = review.sub_label or (found.sub_label if found else None)
            yield LabelledBox(review.label.value, _corners(review.truth), None, sub_label)


def _reported(review: Review, one: Inspection) -> Detection | None:
    """Find the detection that a statement is about."""
    return _same(review, one.detections or ())


def _rejected(review: Review, one: Inspection) -> Detection | None:
    return _same(review, [veto.detection for veto in one.vetoed])


def _same(review: Review, found: Sequence[Detection]) -> Detection | None:
    about = (review.label, review.box)
    return next((each for each in found if (each.label, each.box) == about), None)


def _boxes(one: Inspection, hazard: Hazard) -> list[Box]:
    return [found.box for found in one.detections or () if found.label is hazard]


def _lies_among(box: Box, boxes: Sequence[Box]) -> bool:
    return any(box.iou(other) >= SAME_IOU for other in boxes)


def _corners(box: Box) -> Corners:
    return (box.x1, box.y1, box.x2, box.y2)


def _check_boxes(one: Inspection, said: PictureReviews) -> None:
    """Trust no file: every box lies inside its picture."""
    boxes = [found.box for found in one.detections or ()]
    for review in said.by_box.values():
        boxes += [review.box] if review.truth is None else [review.box, review.truth]
    for box in boxes:
        numbers = box.as_list()
        is_whole = all(type(number) is int for number in numbers)
        if not is_whole or not _is_inside(box, one.width, one.height):
            raise ConfigError(
                f"The results or reviews of {quote(one.source)} have the box {quote(numbers)}; "
                f"expected pixels inside its {one.width}x{one.height}."
            )


def _is_inside(box: Box, width: int | None, height: int | None) -> bool:
    if not 0 <= box.x1 < box.x2 or not 0 <= box.y1 < box.y2:
        return False
    return (width is None or box.x2 <= width) and (height is None or box.y2 <= height)
