"""Shares with intervals, against published values."""

import pytest

from qianyan.inspection.evaluation.rates import Estimate, Rate, poisson_interval


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"), [(0, 10, 0.0, 0.278), (8, 10, 0.490, 0.943)]
)
def test_the_interval_of_a_share_is_wilsons(hits: int, total: int, low: float, high: float) -> None:
    interval = Rate(hits, total).interval
    assert interval == pytest.approx((low, high), abs=0.001)
    assert Rate(0, 0).interval is None


@pytest.mark.parametrize(
    ("count", "low", "high"), [(0, 0.0, 3.689), (1, 0.0253, 5.572), (10, 4.795, 18.390)]
)
def test_the_interval_of_a_count_is_garwoods(count: int, low: float, high: float) -> None:
    assert poisson_interval(count) == pytest.approx((low, high), abs=0.001)


def test_nothing_counted_is_written_as_null_and_never_as_zero() -> None:
    assert Rate().as_record() == {"value": None, "hits": 0, "total": 0, "interval_95": None}
    assert Estimate().as_record() == {"value": None, "interval_95": None}
