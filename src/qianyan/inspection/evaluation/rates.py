"""Shares and figures with the intervals that so few examples allow."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95
CONFIDENCE_Z = 1.96
_STEPS = 60  # of a bisection: more than the digits of a float
DIGITS = 4


@dataclass(frozen=True)
class Rate:
    """`hits` of `total`, with Wilson's interval."""

    hits: int = 0
    total: int = 0

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

    def as_record(self) -> dict[str, Any]:
        """Write the share with its counts and interval."""
        return {
            "value": rounded(self.value),
            "hits": self.hits,
            "total": self.total,
            "interval_95": _interval_record(self.interval),
        }


@dataclass(frozen=True)
class Estimate:
    """A figure that is no share of counts, with the interval that resampled pictures give."""

    value: float | None = None
    interval: tuple[float, float] | None = None

    def as_record(self) -> dict[str, Any]:
        """Write the figure with its interval."""
        return {"value": rounded(self.value), "interval_95": _interval_record(self.interval)}


UNKNOWN = Estimate()


def rounded(value: float | None) -> float | None:
    """Cut a figure to the digits that files carry."""
    return None if value is None else round(value, DIGITS)


def _interval_record(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [round(bound, DIGITS) for bound in interval]


def poisson_interval(count: int) -> tuple[float, float]:
    """Bound the mean of a Poisson count, 95 % exact (Garwood, Biometrika 1936)."""
    tail = (1 - CONFIDENCE) / 2
    highest = count + 10 * math.sqrt(count + 1) + 10
    low = (
        _solve(lambda mean: 1 - _poisson_at_most(count - 1, mean), tail, highest) if count else 0.0
    )
    high = _solve(lambda mean: 1 - _poisson_at_most(count, mean), 1 - tail, highest)
    return low, high


def _solve(rising: Callable[[float], float], wanted: float, high: float) -> float:
    """Find where a rising function of 0..high takes a value."""
    low = 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2


def _poisson_at_most(count: int, mean: float) -> float:
    """Sum the probabilities of 0..count."""
    if mean <= 0:
        return 1.0
    return math.fsum(
        math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1)
    )
