"""Average precision: pycocotools' own, and our curve for intervals equal to it."""

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qianyan.errors import ConfigError
from qianyan.inspection.evaluation.bootstrap import draw_pictures
from qianyan.inspection.evaluation.precision import Pair, average_precision, rank
from qianyan.inspection.records import Box, Detection, Hazard, SubLabel
from qianyan.labels.photos import LabelledBox

from .examples import FLAME, failed, fire, looked, photo

ONE_EACH: list[Pair] = [
    (photo(FLAME), looked(fire(0, score=0.9))),
    (photo(), looked(fire(200, score=0.8))),
    (photo(FLAME), looked(fire(2, score=0.7))),
]


def test_average_precision_of_a_case_by_hand() -> None:
    # Right, false, right of two labels: precision 1 up to a recall of 0.5, then 2/3.
    by_kind, _ = average_precision(ONE_EACH, draw_pictures(3))
    assert by_kind["fire"].at_50.value == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert set(by_kind) == {"fire"}, "a class without a label has no figure"


def random_pairs(seed: int, number: int) -> list[Pair]:
    rng = np.random.default_rng(seed)
    pairs: list[Pair] = []
    for index in range(number):
        labels = []
        found = []
        for _ in range(int(rng.integers(0, 4))):
            x, y = (int(one) for one in rng.integers(0, 300, 2))
            labels.append(LabelledBox("fire", (x, y, x + 60, y + 50)))
            if rng.random() < 0.8:
                dx, dy = (int(one) for one in rng.integers(0, 25, 2))
                box = Box(x + dx, y + dy, x + dx + 60, y + dy + 50)
                found.append(Detection(Hazard.FIRE, SubLabel.MINOR, box, float(rng.random())))
        if rng.random() < 0.5:
            found.append(fire(int(rng.integers(0, 300)), score=float(rng.random())))
        pairs.append((photo(*labels, name=f"{index}.jpg"), looked(*found)))
    return pairs


def coco_figures(pairs: list[Pair], folder: Path) -> list[float]:
    """Write files as any user of COCO does, and have pycocotools score them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = [{"id": index, "width": 400, "height": 400} for index in range(len(pairs))]
    labels, found = [], []
    for index, (labelled, verdict) in enumerate(pairs):
        for one in labelled.boxes:
            x1, y1, x2, y2 = one.box
            bbox = [x1, y1, x2 - x1, y2 - y1]
            labels.append({"id": len(labels) + 1, "image_id": index, "category_id": 7,
                           "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0})  # fmt: skip
        for each in verdict.detections or ():
            bbox = [each.box.x1, each.box.y1, each.box.width, each.box.height]
            found.append({"image_id": index, "category_id": 7, "bbox": bbox, "score": each.score})
    (folder / "gt.json").write_text(
        json.dumps({"images": images, "annotations": labels, "categories": [{"id": 7}]})
    )
    truth = COCO(str(folder / "gt.json"))
    evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(one) for one in evaluation.stats]


@pytest.mark.parametrize("seed", range(3))
def test_both_figures_are_those_of_pycocotools_over_files(seed: int, tmp_path: Path) -> None:
    pairs = random_pairs(seed, 40)
    stats = coco_figures(pairs, tmp_path)
    by_kind, mean = average_precision(pairs, draw_pictures(len(pairs)))
    assert by_kind["fire"].over_all.value == pytest.approx(stats[0], abs=1e-12)
    assert by_kind["fire"].at_50.value == pytest.approx(stats[1], abs=1e-12)
    assert mean.at_50.value == by_kind["fire"].at_50.value


@pytest.mark.parametrize("seed", range(3))
def test_the_weighed_curve_with_every_weight_one_is_pycocotools_curve(seed: int) -> None:
    ranked = rank(random_pairs(seed, 40), "fire")
    assert ranked is not None
    means = ranked.curve_mean(np.ones(40))
    assert means == pytest.approx((ranked.at_50, ranked.over_all), abs=1e-12)


def test_the_interval_holds_the_figure_and_is_the_same_again() -> None:
    pairs = random_pairs(5, 60)
    first, _ = average_precision(pairs, draw_pictures(60))
    again, _ = average_precision(pairs, draw_pictures(60))
    assert first == again
    low, high = first["fire"].at_50.interval or (1, 0)
    assert low < (first["fire"].at_50.value or 0) < high


def test_boxes_without_any_score_have_no_average_precision() -> None:
    assert rank([(photo(FLAME), looked(fire(0, score=None)))], "fire") is None


def test_labels_that_nothing_was_found_for_have_an_average_precision_of_zero() -> None:
    ranked = rank([(photo(FLAME), looked())], "fire")
    assert ranked is not None
    assert (ranked.at_50, ranked.over_all) == (0, 0)
    assert ranked.curve_mean(np.ones(1)) == (0, 0)


def test_a_picture_without_a_verdict_counts_neither_way() -> None:
    with_failed, _ = average_precision([*ONE_EACH, (photo(FLAME), failed("x"))], draw_pictures(4))
    without, _ = average_precision(ONE_EACH, draw_pictures(3))
    assert with_failed["fire"].at_50.value == without["fire"].at_50.value


def test_a_missing_pycocotools_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"pip install 'qianyan\[eval\]'"):
        rank(ONE_EACH, "fire")
