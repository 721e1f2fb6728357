"""All figures of an evaluation: sums over the outcomes of pictures, with their intervals."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qianyan.errors import ReplyError
from qianyan.inspection.evaluation.bootstrap import draw_pictures, f1_estimate
from qianyan.inspection.evaluation.calibration import Reliability, reliability
from qianyan.inspection.evaluation.cost import Cost, cost_of
from qianyan.inspection.evaluation.heads import HEAD_KINDS, HEAD_SIZES, HeadOutcome
from qianyan.inspection.evaluation.outcomes import (
    BOX_KINDS,
    IMAGE_KINDS,
    PictureOutcome,
    SubLabelOutcome,
    score_picture,
)
from qianyan.inspection.evaluation.precision import NO_PRECISION, Pair, Precision, average_precision
from qianyan.inspection.evaluation.rates import Estimate, Rate
from qianyan.inspection.records import SUB_LABELS, Hazard, SubLabel
from qianyan.labels.matching import BoxCounts
from qianyan.labels.photos import Kind

ALL_KINDS: tuple[Kind, ...] = (*BOX_KINDS, *HEAD_KINDS)


@dataclass(frozen=True)
class ImageFigures:
    """By picture: of those that show something, the share found; of the others, false alarms."""

    recall: Rate
    false_alarms: Rate

    def as_record(self) -> dict[str, Any]:
        """Write both rates."""
        return {"recall": self.recall.as_record(), "false_alarms": self.false_alarms.as_record()}


@dataclass(frozen=True)
class BoxFigures:
    """By box of one class; heads are matched by place, so they have no average precision."""

    counts: BoxCounts
    f1: Estimate
    average: Precision = NO_PRECISION

    @property
    def precision(self) -> Rate:
        """Of the reported boxes, those that are right."""
        return Rate(self.counts.right, self.counts.right + self.counts.false)

    @property
    def recall(self) -> Rate:
        """Of the labelled boxes, those that were found."""
        return Rate(self.counts.right, self.counts.right + self.counts.missed)

    def as_record(self) -> dict[str, Any]:
        """Write counts, shares and average precision."""
        return {
            "right": self.counts.right,
            "missed": self.counts.missed,
            "false": self.counts.false,
            "precision": self.precision.as_record(),
            "recall": self.recall.as_record(),
            "f1": self.f1.as_record(),
            **_precision_record(self.average),
        }


def _precision_record(average: Precision) -> dict[str, Any]:
    return {
        "ap_50": average.at_50.as_record(),
        "ap_50_95": average.over_all.as_record(),
    }


@dataclass(frozen=True)
class HeadFigures:
    """Labelled heads: a person reported there; of those, right and uncertain; bare heads alone."""

    found: Rate
    right: Rate
    uncertain: Rate
    bare_recall: Rate
    """Of all bare heads, found or not, those reported as bare."""

    def as_record(self) -> dict[str, Any]:
        """Write the four rates."""
        return {name: getattr(self, name).as_record() for name in self.__dataclass_fields__}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Everything counted over a set of pictures; failed ones are counted apart, never as misses."""

    pictures: int
    failed: Mapping[str, int]
    unreadable: Rate
    images: Mapping[Kind, ImageFigures]
    boxes: Mapping[Kind, BoxFigures]
    mean_precision: Precision
    heads: HeadFigures
    heads_by_size: tuple[HeadFigures, ...]
    sub_labels: Mapping[Hazard, Mapping[tuple[SubLabel, SubLabel | None], int]]
    sub_label_right: Mapping[Hazard, Rate]
    uncertain: Mapping[Hazard, Rate]
    duplicates: Rate
    cost: Cost
    reliability: Reliability
    reliability_by_hazard: Mapping[Hazard, Reliability] = field(default_factory=dict)
    alarm_reliability: Mapping[Hazard, Reliability] = field(default_factory=dict)
    """Of pictures that report a hazard: the surest box's score, and whether it is there."""

    def as_record(self) -> dict[str, Any]:
        """Write the figures as JSON values."""
        return {
            "pictures": self.pictures,
            "looked_at": self.pictures - sum(self.failed.values()),
            "failed": dict(self.failed),
            "unreadable_answers": self.unreadable.as_record(),
            "images": {kind: one.as_record() for kind, one in self.images.items()},
            "boxes": {kind: one.as_record() for kind, one in self.boxes.items()},
            "mean": _precision_record(self.mean_precision),
            "heads": self.heads.as_record(),
            "heads_by_size": [
                {"from_px": low, "to_px": high, **one.as_record()}
                for (low, high), one in zip(head_sizes(), self.heads_by_size, strict=True)
            ],
            "sub_labels": {
                hazard.value: {
                    "right": self.sub_label_right[hazard].as_record(),
                    "confusion": [
                        {"truth": truth.value, "answer": answer and answer.value, "count": count}
                        for (truth, answer), count in self.sub_labels[hazard].items()
                    ],
                }
                for hazard in self.sub_labels
            },
            "uncertain": {hazard.value: one.as_record() for hazard, one in self.uncertain.items()},
            "duplicates": self.duplicates.as_record(),
            "cost": self.cost.as_record(),
            "reliability": {
                "all": self.reliability.as_record(),
                **{
                    hazard.value: one.as_record()
                    for hazard, one in self.reliability_by_hazard.items()
                },
            },
            "reliability_of_pictures": {
                hazard.value: one.as_record() for hazard, one in self.alarm_reliability.items()
            },
        }


def head_sizes() -> list[tuple[int, int | None]]:
    """List the bounds of each size of heads in pixels; the last has no upper one."""
    return list(zip((0, *HEAD_SIZES), (*HEAD_SIZES, None), strict=True))


@dataclass(frozen=True)
class Scored:
    """The figures of an evaluation, and the outcomes of its pictures in the order of the labels."""

    figures: Figures
    outcomes: tuple[PictureOutcome, ...]


def score(pairs: Sequence[Pair]) -> Scored:
    """Score pictures against their labels."""
    outcomes = tuple(score_picture(photo, inspection) for photo, inspection in pairs)
    weights = draw_pictures(len(outcomes))
    averages, mean = average_precision(pairs, weights)
    boxes = {}
    for kind in ALL_KINDS:
        counts = [one.boxes.get(kind, BoxCounts()) for one in outcomes]
        boxes[kind] = BoxFigures(
            sum(counts, BoxCounts()), f1_estimate(counts, weights), averages.get(kind, NO_PRECISION)
        )
    heads = [head for one in outcomes for head in one.heads]
    found = [box for one in outcomes for box in one.found]
    said = [pair for one in outcomes for pair in one.said]
    sub_labels = [pair for one in outcomes for pair in one.sub_labels]
    failed = Counter(one.error for one in outcomes if one.error is not None)
    unreadable = failed[ReplyError.code]
    answered = len(outcomes) - failed.total()
    scored = [(box.hazard, box.score, box.is_right) for box in found if box.score is not None]
    figures = Figures(
        pictures=len(outcomes),
        failed=dict(failed),
        unreadable=Rate(unreadable, answered + unreadable),
        images={kind: _image_figures(outcomes, kind) for kind in IMAGE_KINDS},
        boxes=boxes,
        mean_precision=mean,
        heads=_head_figures(heads),
        heads_by_size=tuple(
            _head_figures([head for head in heads if head.size == index])
            for index in range(len(head_sizes()))
        ),
        sub_labels={hazard: _confusion(sub_labels, hazard) for hazard in Hazard},
        sub_label_right={hazard: _right(sub_labels, hazard) for hazard in Hazard},
        uncertain={
            hazard: _share(sub is SubLabel.UNCERTAIN for label, sub in said if label is hazard)
            for hazard in Hazard
        },
        duplicates=_share(box.is_duplicate for box in found),
        cost=cost_of([one for one in outcomes if one.error is None]),
        reliability=reliability([(score, is_right) for _, score, is_right in scored]),
        reliability_by_hazard={
            hazard: reliability([(score, ok) for label, score, ok in scored if label is hazard])
            for hazard in Hazard
        },
        alarm_reliability={
            hazard: reliability(list(_alarms(outcomes, hazard))) for hazard in Hazard
        },
    )
    return Scored(figures, outcomes)


def _alarms(outcomes: Sequence[PictureOutcome], hazard: Hazard) -> Iterator[tuple[float, bool]]:
    """Give the surest score of each picture that reports a hazard, and whether it shows it."""
    for one in outcomes:
        scores = [box.score for box in one.found if box.hazard is hazard and box.score is not None]
        if scores:
            yield max(scores), one.images[hazard.value].present


def _share(hits: Iterable[bool]) -> Rate:
    listed = list(hits)
    return Rate(sum(listed), len(listed))


def _image_figures(outcomes: Sequence[PictureOutcome], kind: Kind) -> ImageFigures:
    seen = [one.images[kind] for one in outcomes if kind in one.images]
    return ImageFigures(
        recall=_share(one.reported for one in seen if one.present),
        false_alarms=_share(one.reported for one in seen if not one.present),
    )


def _head_figures(heads: Sequence[HeadOutcome]) -> HeadFigures:
    found = [one for one in heads if one.is_found]
    return HeadFigures(
        found=_share(one.is_found for one in heads),
        right=_share(one.is_right for one in found),
        uncertain=_share(one.answer is SubLabel.UNCERTAIN for one in found),
        bare_recall=_share(one.is_right for one in heads if one.truth is SubLabel.NO_HELMET),
    )


def _confusion(
    outcomes: Sequence[SubLabelOutcome], hazard: Hazard
) -> dict[tuple[SubLabel, SubLabel | None], int]:
    """Count what was said of what, in the order of the hazard's sub-labels."""
    counted = Counter((one.truth, one.answer) for one in outcomes if one.hazard is hazard)
    states = SUB_LABELS[hazard]
    return {
        (truth, answer): counted[truth, answer]
        for truth in states
        for answer in (*states, None)
        if counted[truth, answer]
    }


def _right(outcomes: Sequence[SubLabelOutcome], hazard: Hazard) -> Rate:
    """Give the share of found things about which the right thing was said."""
    return _share(
        one.answer is one.truth
        for one in outcomes
        if one.hazard is hazard and one.answer is not None
    )
