"""The figures of a set of pictures, on cases counted by hand."""

import json

import numpy as np
import pytest

from qianyan.inspection.evaluation.bootstrap import draw_pictures, f1_estimate, interval_of
from qianyan.inspection.evaluation.calibration import reliability
from qianyan.inspection.evaluation.figures import Figures, score
from qianyan.inspection.evaluation.precision import Pair
from qianyan.inspection.evaluation.rates import Rate
from qianyan.inspection.records import Hazard, SubLabel, Usage
from qianyan.labels.matching import BoxCounts

from .examples import BARE, FLAME, HELMET, failed, fire, looked, person, photo


def figures(*pairs: Pair) -> Figures:
    return score(pairs).figures


def test_recall_and_false_alarms_are_over_their_own_pictures() -> None:
    result = figures(
        (photo(FLAME), looked(fire(0))),
        (photo(FLAME), looked()),
        (photo(), looked(fire(0))),
        (photo(), looked()),
        (photo(), looked()),
    )
    assert result.images["fire"].recall == Rate(1, 2)
    assert result.images["fire"].false_alarms == Rate(1, 3)


def test_boxes_have_precision_recall_and_f1() -> None:
    result = figures(
        (photo(FLAME), looked(fire(0), fire(250))), (photo(FLAME), looked(fire(0)))
    ).boxes["fire"]
    assert result.counts == BoxCounts(2, 0, 1)
    assert (result.precision, result.recall) == (Rate(2, 3), Rate(2, 2))
    assert result.f1.value == pytest.approx(0.8)


def test_failed_pictures_are_counted_by_their_code_and_nowhere_else() -> None:
    result = figures(
        (photo(FLAME), looked(fire(0))),
        (photo(FLAME), failed("unreadable_reply")),
        (photo(FLAME), failed("missing")),
    )
    assert (result.pictures, dict(result.failed)) == (3, {"unreadable_reply": 1, "missing": 1})
    assert result.unreadable == Rate(1, 2), "a picture that was never shown has no answer"
    assert result.images["fire"].recall == Rate(1, 1)
    assert result.boxes["fire"].counts.missed == 0


def test_heads_are_counted_by_size_and_bare_ones_apart() -> None:
    result = figures(
        (photo(HELMET, BARE), looked(person(0, SubLabel.HELMET), person(200, SubLabel.UNCERTAIN)))
    )
    assert result.heads.found == Rate(2, 2)
    assert result.heads.right == Rate(1, 2)
    assert result.heads.uncertain == Rate(1, 2)
    assert result.heads.bare_recall == Rate(0, 1)
    assert [one.found.total for one in result.heads_by_size] == [0, 0, 2, 0]  # 44 and 40 px


def test_sub_labels_are_counted_as_said_of_what() -> None:
    result = figures(
        (photo(FLAME), looked(fire(0, said=SubLabel.SEVERE))),
        (photo(FLAME), looked(fire(0))),
        (photo(FLAME), looked()),
    )
    assert result.sub_labels[Hazard.FIRE] == {
        (SubLabel.MINOR, SubLabel.MINOR): 1,
        (SubLabel.MINOR, SubLabel.SEVERE): 1,
        (SubLabel.MINOR, None): 1,
    }
    assert result.sub_label_right[Hazard.FIRE] == Rate(1, 2)


def test_uncertain_answers_and_duplicates_are_shares_of_what_was_reported() -> None:
    result = figures(
        (photo(FLAME), looked(fire(0), fire(4, score=0.1, said=SubLabel.UNCERTAIN), fire(250)))
    )
    assert result.uncertain[Hazard.FIRE] == Rate(1, 3)
    assert result.duplicates == Rate(1, 3)


def test_cost_is_by_picture_and_leaves_failed_ones_out() -> None:
    usage = Usage(prompt_tokens=100, completion_tokens=10, forwarded_tokens=8, visual_tokens=64)
    cost = figures(
        (photo(), looked(total_s=1.0, usage=usage)),
        (photo(), looked(total_s=3.0, usage=Usage(forwarded_tokens=0))),
        (photo(), failed("missing")),
    ).cost
    assert (cost.mean_s, cost.median_s, cost.p95_s) == (2.0, 2.0, pytest.approx(2.9))
    assert (cost.prompt_tokens, cost.completion_tokens) == (50, 5)
    assert (cost.forwarded_tokens, cost.visual_tokens) == (4, 32)
    unknown = figures((photo(), looked(usage=Usage(forwarded_tokens=None)))).cost
    assert unknown.forwarded_tokens is None


def test_the_calibration_error_is_the_weighed_distance_from_the_diagonal() -> None:
    curve = reliability([(0.9, True), (0.9, True), (0.9, False), (0.1, False), (1.0, True)])
    # 0.9..1: mean 0.925, three of four right; 0.1..0.2: mean 0.1, none right.
    assert [(one.low, one.right) for one in curve.bins] == [(0.1, Rate(0, 1)), (0.9, Rate(3, 4))]
    assert curve.error == pytest.approx((4 * 0.175 + 1 * 0.1) / 5)
    assert reliability([]).error is None


def test_scores_of_unlabelled_hazards_are_in_no_curve() -> None:
    only_persons = photo(labelled=frozenset({"person"}))
    result = figures((only_persons, looked(fire(0))), (photo(FLAME), looked(fire(0, score=0.7))))
    assert result.reliability.num_boxes == 1
    assert result.reliability_by_hazard[Hazard.FIRE].error == pytest.approx(0.3)


def test_an_alarm_is_as_sure_as_its_surest_box_and_right_where_the_hazard_is() -> None:
    result = figures(
        (photo(FLAME), looked(fire(250, score=0.7), fire(300, 300, score=0.4))),
        (photo(), looked(fire(0, score=0.2))),
        (photo(FLAME), looked()),
    )
    curve = result.alarm_reliability[Hazard.FIRE]
    assert [(one.mean_score, one.right) for one in curve.bins] == [
        (0.2, Rate(0, 1)),
        (0.7, Rate(1, 1)),
    ]
    assert curve.error == pytest.approx((0.2 + 0.3) / 2)


def test_the_interval_of_f1_draws_whole_pictures() -> None:
    alike = [BoxCounts(1, 1, 0)] * 20
    mixed = [BoxCounts(1, 0, 0), BoxCounts(0, 1, 1)] * 10
    weights = draw_pictures(20)
    assert f1_estimate(alike, weights).interval == pytest.approx((2 / 3, 2 / 3))
    low, high = f1_estimate(mixed, weights).interval or (1, 0)
    # 20 draws of one half: the middle 95 % of a share is 0.3 to 0.7.
    assert (low, high) == pytest.approx((0.3, 0.7), abs=0.051)
    assert f1_estimate([BoxCounts()], draw_pictures(1)).interval is None


def test_draws_without_the_figure_are_left_out_of_its_interval() -> None:
    assert interval_of(np.array([np.nan, 1.0])) == (1.0, 1.0)
    assert interval_of(np.array([np.nan])) is None


def test_every_draw_has_as_many_pictures_as_there_are() -> None:
    weights = draw_pictures(7)
    assert weights.shape == (1000, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert draw_pictures(0).shape == (1000, 0)


def test_the_record_is_plain_json_and_says_null_where_nothing_was_counted() -> None:
    record = json.loads(json.dumps(figures((photo(FLAME), looked(fire(0)))).as_record()))
    assert record["images"]["fire"]["recall"]["value"] == 1
    assert record["images"]["smoke"]["recall"]["value"] is None
    assert record["boxes"]["fire"]["ap_50"]["value"] == 1
    assert record["mean"]["ap_50_95"]["value"] == 1
    assert record["sub_labels"]["fire"]["confusion"] == [
        {"truth": "minor", "answer": "minor", "count": 1}
    ]
    assert [one["from_px"] for one in record["heads_by_size"]] == [0, 16, 32, 64]
