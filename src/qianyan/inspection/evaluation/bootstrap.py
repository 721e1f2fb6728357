"""Intervals of figures that are no shares: the pictures are drawn again, a thousand times.

Whole pictures are drawn, not boxes, because boxes of one picture are alike (Efron & Tibshirani,
An Introduction to the Bootstrap, 1993, chapters 13 and 16). The draws are seeded: the same
pictures give the same interval.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qianyan.inspection.evaluation.rates import CONFIDENCE, Estimate
from qianyan.labels.matching import BoxCounts

TIMES = 1000
SEED = 6
_AT_ONCE = 100  # draws whose weights are in memory as floats

Weights = NDArray[np.uint8]
"""(draws, pictures): how often each picture is in each draw."""
Floats = NDArray[np.float64]


def draw_pictures(num_pictures: int, *, times: int = TIMES) -> Weights:
    """Draw as many pictures as there are, with repeats, `times` times."""
    rng = np.random.default_rng(SEED)
    weights = np.empty((times, num_pictures), np.uint8)
    for row in weights:
        row[:] = np.bincount(
            rng.integers(0, max(num_pictures, 1), num_pictures), minlength=num_pictures
        )
    return weights


def interval_of(values: Floats) -> tuple[float, float] | None:
    """Take the middle 95 % of the draws; those without the figure (NaN) are left out."""
    known = values[~np.isnan(values)]
    if not known.size:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(known, (tail, 1 - tail))
    return float(low), float(high)


def drawn_f1(counts: Sequence[BoxCounts], weights: Weights) -> Floats:
    """Compute F1 in every draw from the counts of each picture; NaN where a draw has no box."""
    table = np.array([(one.right, one.missed, one.false) for one in counts], np.float64)
    table = table.reshape(-1, 3)
    parts = [
        weights[start : start + _AT_ONCE].astype(np.float64) @ table
        for start in range(0, len(weights), _AT_ONCE)
    ]
    right, missed, false = np.concatenate(parts).T
    whole = 2 * right + missed + false
    f1: Floats = np.full(len(whole), np.nan)
    np.divide(2 * right, whole, out=f1, where=whole > 0)
    return f1


def f1_estimate(counts: Sequence[BoxCounts], weights: Weights) -> Estimate:
    """Give F1 over all pictures with its interval."""
    whole = sum(counts, BoxCounts())
    if whole.f1 is None:
        return Estimate()
    return Estimate(whole.f1, interval_of(drawn_f1(counts, weights)))
