"""Whether scores can be taken at their word: of boxes with a score of 0.8, are 80 % right?

The expected calibration error is the mean distance between a score and the share that is right,
over bins of equal width, each weighed by its boxes (Guo et al. 2017, arXiv:1706.04599).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qianyan.inspection.evaluation.rates import Rate, rounded

NUM_BINS = 10


@dataclass(frozen=True)
class ScoreBin:
    """The boxes with scores from `low` to `high`: their mean score, and how many are right."""

    low: float
    high: float
    mean_score: float
    right: Rate


@dataclass(frozen=True)
class Reliability:
    """Bins that hold any box, from the least score up, and the expected calibration error."""

    bins: tuple[ScoreBin, ...] = ()

    @property
    def num_boxes(self) -> int:
        """How many boxes have a score."""
        return sum(one.right.total for one in self.bins)

    @property
    def error(self) -> float | None:
        """The expected calibration error, 0..1; None where no box has a score."""
        if not self.bins:
            return None
        apart = (abs(one.mean_score * one.right.total - one.right.hits) for one in self.bins)
        return sum(apart) / self.num_boxes

    def as_record(self) -> dict[str, Any]:
        """Write the curve as JSON values."""
        return {
            "expected_calibration_error": rounded(self.error),
            "boxes": self.num_boxes,
            "bins": [
                {
                    "from": one.low,
                    "to": one.high,
                    "mean_score": rounded(one.mean_score),
                    "right": one.right.as_record(),
                }
                for one in self.bins
            ],
        }


def reliability(scored: Sequence[tuple[float, bool]]) -> Reliability:
    """Put scores, 0..1, and whether each box is right into bins of equal width."""
    held: list[list[tuple[float, bool]]] = [[] for _ in range(NUM_BINS)]
    for score, is_right in scored:
        held[min(int(score * NUM_BINS), NUM_BINS - 1)].append((score, is_right))
    return Reliability(
        tuple(
            ScoreBin(
                low=index / NUM_BINS,
                high=(index + 1) / NUM_BINS,
                mean_score=sum(score for score, _ in inside) / len(inside),
                right=Rate(sum(is_right for _, is_right in inside), len(inside)),
            )
            for index, inside in enumerate(held)
            if inside
        )
    )
