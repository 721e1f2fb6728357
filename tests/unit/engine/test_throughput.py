"""Throughput is measured against batch size until it no longer grows, and its limit is named."""

from collections.abc import Callable

import pytest

from qianyan.engine.throughput import (
    LONG_S,
    BatchTiming,
    fastest,
    measure_growth,
    name_growth_limit,
)


def machine(full_at: int, asked: list[int] | None = None) -> Callable[[int], float]:
    """Answer up to `full_at` questions in the time of one; more take in proportion."""

    def time_together(pictures: int) -> float:
        if asked is not None:
            asked.append(pictures)
        return max(1.0, pictures / full_at)

    return time_together


def test_batches_double_until_they_bring_no_more() -> None:
    growth = measure_growth(machine(full_at=4), alone_s=1, most=64, repeats=1)
    assert [one.pictures for one in growth] == [1, 2, 4, 8]
    assert fastest(growth).pictures == 4


def test_the_largest_batch_is_what_was_asked_for() -> None:
    growth = measure_growth(machine(full_at=64), alone_s=1, most=6, repeats=1)
    assert [one.pictures for one in growth] == [1, 2, 4, 6]
    assert growth[-1].pictures_per_minute == pytest.approx(360)


def test_one_question_is_no_batch() -> None:
    assert len(measure_growth(machine(4), alone_s=1, most=1, repeats=3)) == 1


def test_short_batches_are_timed_several_times_and_long_ones_once() -> None:
    short: list[int] = []
    measure_growth(machine(1, short), alone_s=1, most=2, repeats=3)
    assert short == [2, 2, 2]
    long: list[int] = []

    def slow(pictures: int) -> float:
        long.append(pictures)
        return LONG_S * pictures

    measure_growth(slow, alone_s=LONG_S, most=2, repeats=3)
    assert long == [2]


@pytest.mark.parametrize(
    ("rates", "room", "part", "share", "limit"),
    [
        ((1, 2, 4), 100, "vision", 0.8, "asked"),
        ((1, 2, 4), 4, "vision", 0.8, "memory"),
        ((1, 2, 2), 100, "vision", 0.8, "matrix"),
        ((1, 2, 2), 100, "decode", 0.8, "read"),
        ((1, 2, 2), 100, "decode", 0.2, "program"),
        ((1, 2, 1.5), 100, "engine", None, "program"),
    ],
)
def test_what_ends_the_growth_is_named(
    rates: tuple[float, ...], room: int, part: str, share: float | None, limit: str
) -> None:
    growth = [
        BatchTiming(pictures=2**index, seconds=2**index / rate) for index, rate in enumerate(rates)
    ]
    said = name_growth_limit(growth, most=8, room=room, part=part, share=share)
    assert said == limit
