"""Average precision per class, as COCO counts it: pycocotools matches, we draw intervals.

The figure is pycocotools' own (COCOeval: overlaps 0.50, 0.55 … 0.95, recall in 101 steps, at most
100 boxes a picture, all sizes). For the interval the same curve is computed here with a weight for
each picture; with every weight 1 the two agree, which a test holds. A class is scored on the
pictures that were labelled for it. Boxes without a score rank last; a class none of whose boxes has
a score has no order, and so no average precision.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qianyan.errors import ConfigError
from qianyan.inspection.evaluation.bootstrap import Floats, Weights, interval_of
from qianyan.inspection.evaluation.outcomes import BOX_KINDS
from qianyan.inspection.evaluation.rates import UNKNOWN, Estimate
from qianyan.inspection.records import Detection, Hazard, Inspection
from qianyan.labels.photos import Kind, LabelledPhoto

AP_TIMES = 300
"""Draws for the interval of an average precision, each of which needs whole curves."""
MOST_BOXES = 100
_RECALLS = np.linspace(0, 1, 101)

Pair = tuple[LabelledPhoto, Inspection]


@dataclass(frozen=True)
class Ranked:
    """The boxes of one class over all pictures, surest first, and whether each is right."""

    at_50: float
    """pycocotools' figure at an overlap of 0.5."""
    over_all: float
    """pycocotools' figure over the ten overlaps."""
    picture: NDArray[np.int64]
    """(boxes,): the index of each box's picture."""
    is_right: NDArray[np.bool_]
    """(overlaps, boxes)."""
    num_labels: NDArray[np.int64]
    """(pictures,)."""

    def curve_mean(self, weights: Floats) -> tuple[float, float]:
        """Give average precision at 0.5 and over all overlaps, pictures weighed; NaN: no label."""
        labels = float(weights @ self.num_labels)
        if not labels:
            return float("nan"), float("nan")
        weight = weights[self.picture]
        right = np.cumsum(self.is_right * weight, axis=1)  # (overlaps, boxes)
        precision = right / np.maximum(np.cumsum(weight), np.finfo(np.float64).eps)
        best_from = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(best_from, ((0, 0), (0, 1)))
        means = [
            row[np.searchsorted(found / labels, _RECALLS, side="left")].mean()
            for row, found in zip(padded, right, strict=True)
        ]
        return float(means[0]), float(np.mean(means))


@dataclass(frozen=True)
class Precision:
    """Average precision at an overlap of 0.5, and over the ten from 0.5 to 0.95."""

    at_50: Estimate = UNKNOWN
    over_all: Estimate = UNKNOWN


NO_PRECISION = Precision()


def average_precision(
    pairs: Sequence[Pair], weights: Weights
) -> tuple[dict[Kind, Precision], Precision]:
    """Give average precision of each class, and the mean over classes that have one.

    `weights` says how often each of the pairs is in each draw. Raises ConfigError where
    pycocotools is not installed.
    """
    ranked = {kind: rank(pairs, kind) for kind in BOX_KINDS}
    known = {kind: one for kind, one in ranked.items() if one is not None}
    drawn = {
        kind: np.array([one.curve_mean(row.astype(np.float64)) for row in weights[:AP_TIMES]])
        for kind, one in known.items()
    }
    by_kind = {
        kind: Precision(
            Estimate(one.at_50, interval_of(drawn[kind][:, 0])),
            Estimate(one.over_all, interval_of(drawn[kind][:, 1])),
        )
        for kind, one in known.items()
    }
    if not known:
        return by_kind, NO_PRECISION
    means = np.stack(list(drawn.values())).mean(axis=0)  # (draws, 2); NaN where a class had none
    whole = Precision(
        Estimate(float(np.mean([one.at_50 for one in known.values()])), interval_of(means[:, 0])),
        Estimate(
            float(np.mean([one.over_all for one in known.values()])), interval_of(means[:, 1])
        ),
    )
    return by_kind, whole


def rank(pairs: Sequence[Pair], kind: Kind) -> Ranked | None:
    """Match the boxes of one class; None where it has no label, or boxes but none with a score."""
    held = [
        (index, photo, _of_kind(inspection, kind))
        for index, (photo, inspection) in enumerate(pairs)
        if kind in photo.labelled and inspection.detections is not None
    ]
    found = [one for _, _, mine in held for one in mine]
    num_labels = np.zeros(len(pairs), np.int64)
    for index, photo, _ in held:
        num_labels[index] = len(photo.of_kind(kind))
    if not num_labels.any() or (found and all(one.score is None for one in found)):
        return None
    evaluation = _coco(
        [index for index, _, _ in held],
        {
            "labels": [(index, label.box, 0.0) for index, photo, _ in held
                       for label in photo.of_kind(kind)],
            "found": [(index, tuple(one.box.as_list()), one.score or 0.0)
                      for index, _, mine in held for one in mine],
        },
    )  # fmt: skip
    seen = [one for one in evaluation.evalImgs if one is not None and one["dtIds"]]
    scores = np.concatenate([np.empty(0), *(one["dtScores"] for one in seen)])
    order = np.argsort(-scores, kind="mergesort")  # as COCOeval.accumulate
    pictures = [index for one in seen for index in [one["image_id"]] * len(one["dtIds"])]
    matches = [np.empty((10, 0)), *(np.asarray(one["dtMatches"]) for one in seen)]
    curves = evaluation.eval["precision"]
    return Ranked(
        at_50=float(curves[0].mean()),
        over_all=float(curves.mean()),
        picture=np.array(pictures, np.int64)[order],
        is_right=(np.concatenate(matches, axis=1) != 0)[:, order],
        num_labels=num_labels,
    )


def _of_kind(inspection: Inspection, kind: Kind) -> list[Detection]:
    return [one for one in inspection.detections or () if one.label is Hazard(kind)]


def find_pycocotools() -> tuple[Any, Any]:
    """Give COCO and COCOeval; ConfigError where they are not installed."""
    try:
        from pycocotools.coco import COCO  # noqa: PLC0415  (extra: eval)
        from pycocotools.cocoeval import COCOeval  # noqa: PLC0415  (extra: eval)
    except ImportError as error:
        raise ConfigError(
            "Average precision needs pycocotools; install it with pip install 'qianyan[eval]'."
        ) from error
    return COCO, COCOeval


def _coco(pictures: Sequence[int], boxes: Mapping[str, Iterable[Any]]) -> Any:
    """Run COCOeval over one class; boxes are (picture, corners, score)."""
    COCO, COCOeval = find_pycocotools()  # noqa: N806  (classes)
    with redirect_stdout(io.StringIO()):  # it prints how it goes
        read = {}
        for name, listed in boxes.items():
            read[name] = COCO()
            read[name].dataset = {
                "images": [{"id": picture} for picture in pictures],
                "categories": [{"id": 1}],
                "annotations": list(_annotations(listed)),
            }
            read[name].createIndex()
        evaluation = COCOeval(read["labels"], read["found"], "bbox")
        evaluation.params.maxDets = [MOST_BOXES]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _annotations(boxes: Iterable[Any]) -> Iterable[dict[str, Any]]:
    for number, (picture, (x1, y1, x2, y2), score) in enumerate(boxes, start=1):  # 0: not matched
        width, height = x2 - x1, y2 - y1
        yield {
            "id": number,
            "image_id": picture,
            "category_id": 1,
            "bbox": [x1, y1, width, height],
            "area": width * height,
            "iscrowd": 0,
            "score": score,
        }
