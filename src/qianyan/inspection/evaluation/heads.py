"""Hard hats: which reported person a labelled head belongs to, and whether the answer is right.

A person is reported as a whole, a head is labelled as a hat or a head, so boxes cannot be compared
by their overlap: a head belongs to the person in whose box it lies nearest to the middle of the
upper edge.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qianyan.inspection.records import Box, Detection, Hazard, SubLabel
from qianyan.labels.matching import BoxCounts
from qianyan.labels.photos import Corners, Kind, LabelledBox, LabelledPhoto, iou

# Data sets disagree on what a head box is (the hat, or the whole head), so a loose overlap counts.
HEAD_IOU = 0.3
HEAD_KINDS: tuple[Kind, Kind] = ("helmet", "head")
HEAD_STATE: dict[str, SubLabel] = {"helmet": SubLabel.HELMET, "head": SubLabel.NO_HELMET}
HEAD_SIZES = (16, 32, 64)
"""Bounds in pixels of the photo between sizes of heads, as the root of the labelled area."""


@dataclass(frozen=True)
class HeadOutcome:
    """One labelled head: its side in pixels, what it wears, what was said; None: nobody there."""

    side_px: float
    truth: SubLabel
    answer: SubLabel | None

    @property
    def is_found(self) -> bool:
        """Whether a person was reported there."""
        return self.answer is not None

    @property
    def is_right(self) -> bool:
        """Whether the answer is what the head wears."""
        return self.answer is self.truth

    @property
    def size(self) -> int:
        """The size's index in HEAD_SIZES, from the smallest on."""
        return sum(self.side_px >= bound for bound in HEAD_SIZES)


def head_outcomes(photo: LabelledPhoto, found: Sequence[Detection]) -> tuple[HeadOutcome, ...]:
    """Match reported persons with labelled heads one to one; empty where heads were not labelled.

    Both kinds must have been looked for: where only hats were, a bare head is no false answer.
    """
    if not photo.labelled >= set(HEAD_KINDS):
        return ()
    persons = _persons(found)
    heads = photo.of_kind(*HEAD_KINDS)
    matched = _match(persons, heads)
    return tuple(
        HeadOutcome(
            side_px=_side(label),
            truth=HEAD_STATE[label.kind],
            answer=persons[matched[index]].sub_label if index in matched else None,
        )
        for index, label in enumerate(heads)
    )


def head_counts(
    photo: LabelledPhoto, found: Sequence[Detection], outcomes: Sequence[HeadOutcome]
) -> dict[Kind, BoxCounts]:
    """Count hats and bare heads as boxes: right, missed, and said where there is no such head."""
    if not photo.labelled >= set(HEAD_KINDS):
        return {}
    answers = [one.sub_label for one in _persons(found)]
    counts: dict[Kind, BoxCounts] = {}
    for kind in HEAD_KINDS:
        state = HEAD_STATE[kind]
        labelled = [one for one in outcomes if one.truth is state]
        right = sum(one.is_right for one in labelled)
        counts[kind] = BoxCounts(right, len(labelled) - right, answers.count(state) - right)
    return counts


def corners(box: Box) -> Corners:
    """Write a box as labels have them."""
    return (box.x1, box.y1, box.x2, box.y2)


def _persons(found: Sequence[Detection]) -> list[Detection]:
    return [one for one in found if one.label is Hazard.PERSON]


def _match(persons: Sequence[Detection], heads: Sequence[LabelledBox]) -> dict[int, int]:
    """Give each head its person, nearest pairs first."""
    pairs = sorted(
        (distance, person, head)
        for person, detection in enumerate(persons)
        for head, label in enumerate(heads)
        if (distance := _distance(corners(detection.box), label)) is not None
    )
    matched: dict[int, int] = {}
    taken: set[int] = set()
    for _, person, head in pairs:
        if person not in taken and head not in matched:
            matched[head] = person
            taken.add(person)
    return matched


def _distance(person: Corners, label: LabelledBox) -> float | None:
    """Say how far a head is from where this person's head should be; None when it is not theirs.

    0 is the middle of the person's upper edge, 1 a whole height or width away.
    """
    head = label.head_box or label.box
    x, y = (head[0] + head[2]) / 2, (head[1] + head[3]) / 2
    inside = person[0] <= x <= person[2] and person[1] <= y <= person[3]
    if not inside and iou(person, head) < HEAD_IOU:
        return None
    width, height = person[2] - person[0], person[3] - person[1]
    return abs(x - (person[0] + person[2]) / 2) / width + abs(y - person[1]) / height


def _side(label: LabelledBox) -> float:
    x1, y1, x2, y2 = label.head_box or label.box
    return math.sqrt((x2 - x1) * (y2 - y1))
