"""What became of one labelled picture: found or missed, right or wrong, box by box.

Fire and smoke are judged by picture first: annotators box one flame or ten, so a box score cannot
say whether an alarm would have been raised. Only what was labelled in a picture is scored; a fire
photo with unboxed firefighters says nothing about persons. A picture without a verdict has no
outcome but its error: it is counted apart, never as one in which nothing was found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qianyan.errors import ConfigError, quote
from qianyan.inspection.evaluation.heads import (
    HEAD_KINDS,
    HEAD_STATE,
    HeadOutcome,
    corners,
    head_counts,
    head_outcomes,
)
from qianyan.inspection.records import (
    SUB_LABELS,
    Detection,
    Hazard,
    Inspection,
    SubLabel,
    Usage,
)
from qianyan.inspection.results import MEANING
from qianyan.labels.matching import BoxCounts, match_boxes
from qianyan.labels.photos import Kind, LabelledBox, LabelledPhoto, iou

BOX_IOU = 0.5
IMAGE_KINDS: tuple[Kind, ...] = ("fire", "smoke", "person", "head")
"""What a picture as a whole shows or not; a bare head is reported as a person without a hat."""
BOX_KINDS: tuple[Kind, ...] = ("fire", "smoke", "person")


@dataclass(frozen=True, kw_only=True)
class ImageOutcome:
    """Whether a picture shows something, and whether that was reported."""

    present: bool
    reported: bool

    @property
    def is_right(self) -> bool:
        """Whether the report agrees with the label."""
        return self.present is self.reported


@dataclass(frozen=True)
class BoxOutcome:
    """One reported box in a picture that was labelled for its hazard."""

    hazard: Hazard
    score: float | None
    is_right: bool
    is_duplicate: bool
    """Whether it lies on a labelled thing that a surer box has taken."""


@dataclass(frozen=True)
class SubLabelOutcome:
    """What a labelled thing is said to be; `answer` is None where it was not found."""

    hazard: Hazard
    truth: SubLabel
    answer: SubLabel | None


@dataclass(frozen=True, kw_only=True)
class PictureOutcome:
    """One picture; `images` and `boxes` have the kinds that were labelled in it."""

    file: str
    sha256: str | None = None
    error: str | None = None
    total_s: float = 0.0
    usage: Usage = field(default_factory=Usage)
    images: Mapping[Kind, ImageOutcome] = field(default_factory=dict)
    boxes: Mapping[Kind, BoxCounts] = field(default_factory=dict)
    found: tuple[BoxOutcome, ...] = ()
    heads: tuple[HeadOutcome, ...] = ()
    sub_labels: tuple[SubLabelOutcome, ...] = ()
    said: tuple[tuple[Hazard, SubLabel], ...] = ()

    def as_record(self) -> dict[str, Any]:
        """Write what another evaluation of the same picture is compared with."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "error": self.error,
            "total_s": round(self.total_s, 3),
            "images": {
                kind: {"present": one.present, "reported": one.reported}
                for kind, one in self.images.items()
            },
            "boxes": {
                kind: {"right": one.right, "missed": one.missed, "false": one.false}
                for kind, one in self.boxes.items()
            },
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "PictureOutcome":
        """Read back what `as_record` wrote; KeyError or TypeError where it did not."""
        return cls(
            file=record["file"],
            sha256=record["sha256"],
            error=record["error"],
            total_s=record["total_s"],
            images={kind: ImageOutcome(**one) for kind, one in record["images"].items()},
            boxes={kind: BoxCounts(**one) for kind, one in record["boxes"].items()},
        )


def score_picture(photo: LabelledPhoto, inspection: Inspection) -> PictureOutcome:
    """Compare a verdict with what is labelled in its picture."""
    found = inspection.detections
    if found is None:
        code = inspection.error.code if inspection.error else None
        return PictureOutcome(file=photo.file, sha256=inspection.sha256, error=code)
    by_hazard = {
        Hazard(kind): _match(photo, found, Hazard(kind))
        for kind in BOX_KINDS
        if kind in photo.labelled
    }
    heads = head_outcomes(photo, found)
    return PictureOutcome(
        file=photo.file,
        sha256=inspection.sha256,
        total_s=inspection.total_s,
        usage=inspection.usage,
        images={
            kind: ImageOutcome(present=photo.has(kind), reported=_is_reported(found, kind))
            for kind in IMAGE_KINDS
            if kind in photo.labelled
        },
        boxes={
            **{hazard.value: one.counts for hazard, one in by_hazard.items()},
            **head_counts(photo, found, heads),
        },
        found=tuple(box for one in by_hazard.values() for box in one.boxes),
        heads=heads,
        sub_labels=_sub_labels(photo, by_hazard, heads),
        said=tuple((one.label, one.sub_label) for one in found),
    )


def _is_reported(found: Sequence[Detection], kind: Kind) -> bool:
    if kind == "head":
        return any(one.sub_label is HEAD_STATE[kind] for one in found)
    return any(one.label.value == kind for one in found)


@dataclass(frozen=True)
class _Matched:
    """The labels and reported boxes of one hazard, and which belong together."""

    labels: Sequence[LabelledBox]
    detections: Sequence[Detection]
    pairs: Mapping[int, int]
    """From the index of a label to that of its detection."""

    @property
    def counts(self) -> BoxCounts:
        right = len(self.pairs)
        return BoxCounts(right, len(self.labels) - right, len(self.detections) - right)

    @property
    def boxes(self) -> list[BoxOutcome]:
        right = set(self.pairs.values())
        return [
            BoxOutcome(
                one.label,
                one.score,
                is_right=index in right,
                is_duplicate=index not in right and self._is_on_a_label(one),
            )
            for index, one in enumerate(self.detections)
        ]

    def _is_on_a_label(self, found: Detection) -> bool:
        return any(iou(label.box, corners(found.box)) >= BOX_IOU for label in self.labels)


def _match(photo: LabelledPhoto, found: Sequence[Detection], hazard: Hazard) -> _Matched:
    labels = photo.of_kind(hazard.value)
    mine = [one for one in found if one.label is hazard]
    mine.sort(key=lambda one: -(one.score or 0.0))
    pairs = match_boxes(
        [corners(one.box) for one in mine], [label.box for label in labels], overlap=BOX_IOU
    )
    return _Matched(labels, mine, {label: detection for detection, label in pairs})


def _sub_labels(
    photo: LabelledPhoto, by_hazard: Mapping[Hazard, _Matched], heads: Sequence[HeadOutcome]
) -> tuple[SubLabelOutcome, ...]:
    """Pair what labels say beside the kind with what was answered; heads say it of persons."""
    outcomes = [SubLabelOutcome(Hazard.PERSON, head.truth, head.answer) for head in heads]
    has_heads = photo.labelled >= set(HEAD_KINDS)
    for hazard, matched in by_hazard.items():
        if hazard is Hazard.PERSON and has_heads:
            continue
        for index, label in enumerate(matched.labels):
            truth = labelled_state(label)
            if truth is not None:
                answer = matched.pairs.get(index)
                said = None if answer is None else matched.detections[answer].sub_label
                outcomes.append(SubLabelOutcome(hazard, truth, said))
    return tuple(outcomes)


def labelled_state(label: LabelledBox) -> SubLabel | None:
    """Read what a label says beside the kind, in either language or as an id; None: nothing.

    Raises ConfigError for a word that is not one of this hazard's.
    """
    if label.sub_label is None or label.kind not in BOX_KINDS:
        return None
    allowed = SUB_LABELS[Hazard(label.kind)]
    known = MEANING.get(label.sub_label) or next(
        (one for one in allowed if one.value == label.sub_label), None
    )
    if known not in allowed:
        raise ConfigError(
            f"The labels call a {label.kind} {quote(label.sub_label)}; expected "
            f"{', '.join(one.value for one in allowed)}, or nothing."
        )
    return known


def check_labels(photos: Sequence[LabelledPhoto]) -> None:
    """Refuse labels that could not be scored, before a model is asked about hours of pictures."""
    if not any(photo.labelled for photo in photos):
        raise ConfigError(
            f"The labels of {len(photos)} pictures have no class that could be scored; expected "
            "one of fire, smoke, person, helmet and head."
        )
    for photo in photos:
        for label in photo.boxes:
            labelled_state(label)
