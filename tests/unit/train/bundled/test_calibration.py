"""A detector's scores as shares: fitted curves, and how far they are from what is right."""

from dataclasses import replace

import numpy as np
import pytest

from qianyan.labels.photos import LabelledBox
from qianyan.models.detector import KINDS, DetectorConfig, Kind, Proposal
from qianyan.train.bundled.calibration import (
    LEAST_SLOPE,
    Proposed,
    calibration_error,
    collect,
    fit_calibration,
    fit_curve,
)
from qianyan.train.bundled.detector_scores import Judged

CONFIG = DetectorConfig()


def picture(kind: Kind, score: float, *, is_right: bool) -> Judged:
    """One proposal beside a label of its kind, on it or away from it."""
    box = (0.0, 0.0, 10.0, 10.0) if is_right else (50.0, 50.0, 60.0, 60.0)
    label = LabelledBox(kind, (0.0, 0.0, 10.0, 10.0))
    return Judged((Proposal(kind, box, score),), (label,), frozenset(KINDS))


def timid(count: int, *, seed: int, slope: float = 2.0, offset: float = -0.5) -> list[Judged]:
    """Proposals of fire that are right as often as a known curve says."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.2, 0.9, count)
    shares = 1 / (1 + np.exp(-slope * np.log(scores / (1 - scores)) - offset))
    return [
        picture("fire", float(score), is_right=bool(rng.random() < share))
        for score, share in zip(scores, shares, strict=True)
    ]


def test_the_curve_that_made_the_proposals_is_found_again() -> None:
    slope, offset = fit_curve(collect(timid(4000, seed=1), "fire", lowest=0.0))
    assert slope == pytest.approx(2.0, abs=0.2)
    assert offset == pytest.approx(-0.5, abs=0.15)


def test_calibration_lowers_the_error_on_pictures_it_was_not_fitted_on() -> None:
    fitted = fit_calibration(timid(600, seed=2), [], CONFIG.thresholds)
    unseen = timid(1500, seed=3)
    before = calibration_error(unseen, "fire", CONFIG)
    after = calibration_error(unseen, "fire", replace(CONFIG, calibration=fitted))
    assert before > 0.08
    assert after < before / 2
    assert fitted["smoke"] == pytest.approx((1.0, 0.0)), "nothing was proposed: scores stay"


def test_the_error_is_the_mean_distance_in_bins_of_equal_width() -> None:
    judged = [picture("fire", 0.85, is_right=True), picture("fire", 0.85, is_right=False)]
    judged += [picture("fire", 0.55, is_right=True)]
    assert calibration_error(judged, "fire", CONFIG) == pytest.approx((2 * 0.35 + 0.45) / 3)
    assert np.isnan(calibration_error(judged, "smoke", CONFIG))


def test_a_few_proposals_that_are_all_right_do_not_make_certain() -> None:
    slope, offset = fit_curve(Proposed(np.array([0.4, 0.5, 0.6]), np.ones(3)))
    assert slope < 3
    assert offset < 5


def test_scores_that_mislead_still_keep_their_order() -> None:
    scores = np.linspace(0.1, 0.9, 400)
    slope, _ = fit_curve(Proposed(scores, (scores < 0.5).astype(float)))
    assert slope == LEAST_SLOPE


def test_heads_are_right_at_a_looser_overlap_and_unlabelled_kinds_do_not_count() -> None:
    label = LabelledBox("head", (0.0, 0.0, 10.0, 10.0))
    near = Proposal("head", (0.0, 0.0, 10.0, 4.0), 0.8)  # an overlap of 0.4
    known = Judged((near,), (label,), frozenset(KINDS))
    assert collect([known], "head", lowest=0.5).right.tolist() == [1.0]
    assert collect([known], "head", lowest=0.9).right.size == 0
    unknown = replace(known, labelled=frozenset({"fire"}))
    assert collect([unknown], "head", lowest=0.5).right.size == 0
