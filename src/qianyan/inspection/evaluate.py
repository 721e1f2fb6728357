"""How often an inspection is right, against labelled photos: pure functions over finished results.

Fire and smoke are judged by image first: annotators box one flame or ten, so a box score cannot
say whether an alarm would have been raised. Only what was labelled in a photo is scored
(`labeled_categories`); a fire photo with unboxed firefighters says nothing about persons.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qianyan.inspection.records import Box, Detection, Hazard, Inspection, SubLabel
from qianyan.labels.photos import Corners, LabelledBox, LabelledPhoto, iou

BOX_IOU = 0.5
# Data sets disagree on what a head box is (the hat, or the whole head), so a loose overlap counts.
HEAD_IOU = 0.3
HEAD_STATE: dict[str, SubLabel] = {"helmet": SubLabel.HELMET, "head": SubLabel.NO_HELMET}
HEAD_FIGURES = ("found", "right", "uncertain", "bare_right", "bare_recall", "bare_alarms")
CONFIDENCE_Z = 1.96  # 95 %


@dataclass(frozen=True)
class Rate:
    """`hits` of `total`, with the interval that so few examples allow."""

    hits: int
    total: int

    @property
    def value(self) -> float | None:
        """The share, or None where there was nothing to count."""
        return self.hits / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval (Wilson, JASA 1927)."""
        if not self.total:
            return None
        share, z2 = self.hits / self.total, CONFIDENCE_Z**2
        spread = CONFIDENCE_Z * math.sqrt(
            share * (1 - share) / self.total + z2 / (4 * self.total**2)
        )
        centre, scale = share + z2 / (2 * self.total), 1 + z2 / self.total
        return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)

    def __add__(self, other: "Rate") -> "Rate":
        return Rate(self.hits + other.hits, self.total + other.total)


NONE_SEEN = Rate(0, 0)


@dataclass(frozen=True)
class ImageScore:
    """Per photo: was the hazard reported where it is, and where it is not."""

    recall: Rate = NONE_SEEN
    false_alarms: Rate = NONE_SEEN


@dataclass(frozen=True)
class BoxScore:
    """Per box at one overlap; every detection and label is used at most once."""

    true_positives: int = 0
    false_positives: int = 0
    missed: int = 0
    sub_label: Rate = NONE_SEEN

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall, or None where there was nothing at all."""
        whole = 2 * self.true_positives + self.false_positives + self.missed
        return 2 * self.true_positives / whole if whole else None

    def __add__(self, other: "BoxScore") -> "BoxScore":
        return BoxScore(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.missed + other.missed,
            self.sub_label + other.sub_label,
        )


@dataclass(frozen=True)
class HeadScore:
    """Helmet or bare head on the labelled heads that a reported person was matched to.

    `right` counts heads with the right answer, `uncertain` those answered "uncertain" (which are
    not right); `bare_recall` is over all labelled bare heads, found or not, and `bare_alarms` over
    the photos without any: in how many a person is reported without a hard hat.
    """

    found: Rate = NONE_SEEN
    right: Rate = NONE_SEEN
    uncertain: Rate = NONE_SEEN
    bare_right: Rate = NONE_SEEN
    bare_recall: Rate = NONE_SEEN
    bare_alarms: Rate = NONE_SEEN

    def __add__(self, other: "HeadScore") -> "HeadScore":
        return HeadScore(
            self.found + other.found,
            self.right + other.right,
            self.uncertain + other.uncertain,
            self.bare_right + other.bare_right,
            self.bare_recall + other.bare_recall,
            self.bare_alarms + other.bare_alarms,
        )


@dataclass(frozen=True)
class Evaluation:
    """Everything counted over a set of photos; failed photos are counted apart, never as misses."""

    photos: int
    failed: int
    images: dict[Hazard, ImageScore] = field(default_factory=dict)
    boxes: dict[Hazard, BoxScore] = field(default_factory=dict)
    heads: HeadScore = HeadScore()

    def as_record(self) -> dict[str, Any]:
        """Write the evaluation as JSON values."""
        return {
            "photos": self.photos,
            "failed": self.failed,
            "images": {
                hazard.value: {
                    "recall": rate_record(score.recall),
                    "false_alarms": rate_record(score.false_alarms),
                }
                for hazard, score in self.images.items()
            },
            "boxes": {
                hazard.value: {
                    "f1": score.f1,
                    "true_positives": score.true_positives,
                    "false_positives": score.false_positives,
                    "missed": score.missed,
                    "sub_label": rate_record(score.sub_label),
                }
                for hazard, score in self.boxes.items()
            },
            "heads": {name: rate_record(getattr(self.heads, name)) for name in HEAD_FIGURES},
        }


def rate_record(rate: Rate) -> dict[str, Any]:
    """Write a rate with its counts and interval."""
    return {
        "value": rate.value,
        "hits": rate.hits,
        "total": rate.total,
        "interval_95": rate.interval,
    }


def evaluation_table(result: Evaluation) -> str:
    """Set an evaluation as lines of text: share, counts and 95 % interval."""
    lines = [f"{result.photos} photos, {result.failed} failed"]
    for hazard, image in result.images.items():
        f1 = result.boxes[hazard].f1
        lines.append(_row(f"{hazard.value}: photos found", image.recall))
        lines.append(_row(f"{hazard.value}: false alarms", image.false_alarms))
        lines.append(f"{f'{hazard.value}: box F1 at IoU {BOX_IOU}':32}{_percent(f1)}")
        if result.boxes[hazard].sub_label.total:
            lines.append(_row(f"{hazard.value}: sub-label right", result.boxes[hazard].sub_label))
    lines.append(_row("heads: person reported", result.heads.found))
    lines.append(_row("heads: right of those", result.heads.right))
    lines.append(_row("heads: uncertain of those", result.heads.uncertain))
    lines.append(_row("bare heads: right of found", result.heads.bare_right))
    lines.append(_row("bare heads: right of all", result.heads.bare_recall))
    lines.append(_row("bare heads: false alarms", result.heads.bare_alarms))
    return "\n".join(lines)


def _row(name: str, rate: Rate) -> str:
    interval = rate.interval
    spread = f"  ({_percent(interval[0])} – {_percent(interval[1])})" if interval else ""
    return f"{name:32}{_percent(rate.value)}  {rate.hits}/{rate.total}{spread}"


def _percent(share: float | None) -> str:
    return "   none" if share is None else f"{share * 100:6.1f}%"


def _corners(box: Box) -> Corners:
    return (box.x1, box.y1, box.x2, box.y2)


def image_score(photo: LabelledPhoto, found: Sequence[Detection], hazard: Hazard) -> ImageScore:
    """Score one photo for one hazard: reported or not, there or not; nothing when unlabelled."""
    if hazard.value not in photo.labelled:
        return ImageScore()
    reported = any(detection.label is hazard for detection in found)
    if photo.of_kind(hazard.value):
        return ImageScore(recall=Rate(int(reported), 1))
    return ImageScore(false_alarms=Rate(int(reported), 1))


def box_score(photo: LabelledPhoto, found: Sequence[Detection], hazard: Hazard) -> BoxScore:
    """Match a photo's detections of one hazard with its labels, best score first, IoU >= 0.5."""
    if hazard.value not in photo.labelled:
        return BoxScore()
    left = photo.of_kind(hazard.value)
    total, hits, sub_label = len(left), 0, NONE_SEEN
    mine = [detection for detection in found if detection.label is hazard]
    for detection in sorted(mine, key=lambda detection: -(detection.score or 0.0)):
        best = max(left, key=lambda label: iou(label.box, _corners(detection.box)), default=None)
        if best is None or iou(best.box, _corners(detection.box)) < BOX_IOU:
            continue
        left.remove(best)
        hits += 1
        if best.sub_label is not None:
            sub_label += Rate(int(best.sub_label == detection.sub_label), 1)
    return BoxScore(hits, len(mine) - hits, total - hits, sub_label)


def head_score(photo: LabelledPhoto, found: Sequence[Detection]) -> HeadScore:
    """Match reported persons with labelled heads one to one, then compare helmet or no helmet."""
    if not photo.labelled >= {"helmet", "head"}:
        return HeadScore()
    persons = [detection for detection in found if detection.label is Hazard.PERSON]
    heads = photo.of_kind("helmet", "head")
    pairs = sorted(
        (distance, person, head)
        for person, detection in enumerate(persons)
        for head, label in enumerate(heads)
        if (distance := _head_distance(_corners(detection.box), label)) is not None
    )
    matched: dict[int, int] = {}
    taken: set[int] = set()
    for _, person, head in pairs:
        if person not in taken and head not in matched:
            matched[head] = person
            taken.add(person)
    score = HeadScore()
    if not photo.of_kind("head"):
        is_alarm = any(one.sub_label is SubLabel.NO_HELMET for one in persons)
        score = HeadScore(bare_alarms=Rate(int(is_alarm), 1))
    for head, label in enumerate(heads):
        answer = persons[matched[head]].sub_label if head in matched else None
        score += _one_head(HEAD_STATE[label.kind], answer)
    return score


def _one_head(truth: SubLabel, answer: SubLabel | None) -> HeadScore:
    is_right = int(answer is truth)
    is_bare = truth is SubLabel.NO_HELMET
    if answer is None:
        return HeadScore(found=Rate(0, 1), bare_recall=Rate(0, 1) if is_bare else NONE_SEEN)
    return HeadScore(
        found=Rate(1, 1),
        right=Rate(is_right, 1),
        uncertain=Rate(int(answer is SubLabel.UNCERTAIN), 1),
        bare_right=Rate(is_right, 1) if is_bare else NONE_SEEN,
        bare_recall=Rate(is_right, 1) if is_bare else NONE_SEEN,
    )


def _head_distance(person: Corners, label: LabelledBox) -> float | None:
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


def evaluate(pairs: Iterable[tuple[LabelledPhoto, Inspection]]) -> Evaluation:
    """Score photos against their labels; a photo without a verdict counts as failed only."""
    photos = failed = 0
    images = dict.fromkeys(Hazard, ImageScore())
    boxes = dict.fromkeys(Hazard, BoxScore())
    heads = HeadScore()
    for photo, inspection in pairs:
        photos += 1
        if inspection.detections is None:
            failed += 1
            continue
        for hazard in Hazard:
            image = image_score(photo, inspection.detections, hazard)
            images[hazard] = ImageScore(
                images[hazard].recall + image.recall,
                images[hazard].false_alarms + image.false_alarms,
            )
            boxes[hazard] += box_score(photo, inspection.detections, hazard)
        heads += head_score(photo, inspection.detections)
    return Evaluation(photos, failed, images, boxes, heads)
