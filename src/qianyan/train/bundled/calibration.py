"""What a detector's scores are worth: the share of its boxes that are right, as a curve by kind.

Platt scaling (Platt 1999): slope and offset on log-odds, by maximum likelihood over proposals that
are right or not. A weak prior holds both where there are few. Fitted on pictures that neither
training nor the report has seen; the order of scores, and so every threshold, stays as it is.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qianyan.labels.matching import match_boxes
from qianyan.models.detector import KINDS, LEAST_SCORE, DetectorConfig, Kind
from qianyan.train.bundled.detector_scores import Judged

FITS: dict[Kind, float] = {"fire": 0.5, "smoke": 0.5, "person": 0.5, "helmet": 0.3, "head": 0.3}
SLOPE_PRIOR, OFFSET_PRIOR = 1.0, 0.1
LEAST_SLOPE = 0.1
NEWTON_STEPS = 50
BINS = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Proposed:
    """Scores of proposals of one kind, and 1 where a proposal is right."""

    scores: Floats
    right: Floats


def collect(judged: list[Judged], kind: Kind, *, lowest: float) -> Proposed:
    """Take the proposals of one kind from pictures that were labelled for it.

    Right is what overlaps a label of its kind by FITS; heads are labelled loosely, so less will do.
    """
    scores: list[float] = []
    right: list[float] = []
    for each in judged:
        if kind not in each.labelled:
            continue
        found = [p for p in each.proposals if p.kind == kind and p.score >= lowest]
        wanted = [labelled.box for labelled in each.boxes if labelled.kind == kind]
        pairs = match_boxes([one.box for one in found], wanted, overlap=FITS[kind])
        hits = {index for index, _ in pairs}
        scores += [one.score for one in found]
        right += [float(index in hits) for index in range(len(found))]
    return Proposed(np.array(scores), np.array(right))


def fit_curve(proposed: Proposed) -> tuple[float, float]:
    """Find slope and offset by Newton's method; (1, 0) where nothing was proposed."""
    held = np.clip(proposed.scores, LEAST_SCORE, 1 - LEAST_SCORE)
    inputs = np.stack([np.log(held / (1 - held)), np.ones_like(held)])
    start = np.array([1.0, 0.0])
    prior = np.array([SLOPE_PRIOR, OFFSET_PRIOR])
    curve = start.copy()
    for _ in range(NEWTON_STEPS):
        share = 1 / (1 + np.exp(-curve @ inputs))
        slant = inputs @ (share - proposed.right) + prior * (curve - start)
        bend = (inputs * (share * (1 - share))) @ inputs.T + np.diag(prior)
        curve = curve - np.linalg.solve(bend, slant)
    return max(float(curve[0]), LEAST_SLOPE), float(curve[1])


def fit_calibration(
    photos: list[Judged], scenes: list[Judged], thresholds: dict[str, float]
) -> dict[str, tuple[float, float]]:
    """Fit the curve of every kind on photos and scenes together, from its threshold up."""
    return {
        kind: fit_curve(collect([*photos, *scenes], kind, lowest=thresholds[kind]))
        for kind in KINDS
    }


def calibration_error(judged: list[Judged], kind: Kind, config: DetectorConfig) -> float:
    """Measure how far shares are from what is right, on average over proposals that are believed.

    Proposals at the kind's threshold and above, in BINS of equal width (Guo et al., arXiv
    1706.04599); nan where there are none.
    """
    found = collect(judged, kind, lowest=config.thresholds[kind])
    if not found.scores.size:
        return float("nan")
    shares = np.array([config.probability(kind, float(score)) for score in found.scores])
    bins = np.minimum((shares * BINS).astype(int), BINS - 1)
    gaps = [abs(float((shares - found.right)[bins == one].sum())) for one in range(BINS)]
    return sum(gaps) / found.scores.size
