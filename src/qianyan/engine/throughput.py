"""How throughput grows with the number of questions asked together, and what ends its growth."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

CLEAR_GROWTH = 1.05
"""Times the rate of the batch before; a batch that brings less is the last one tried."""
LONG_S = 10.0
"""Batches that take longer are timed once: a stray disturbance weighs little in them."""
BOUND_SHARE = 0.4
"""Of a limit of the machine; below it is the program that binds."""

GrowthLimit = Literal["asked", "memory", "matrix", "read", "program"]


@dataclass(frozen=True, kw_only=True)
class BatchTiming:
    """Several questions together; `seconds` is the median of batches of that size."""

    pictures: int
    seconds: float

    @property
    def pictures_per_minute(self) -> float:
        """Answers by time."""
        return 60 * self.pictures / self.seconds if self.seconds > 0 else 0.0


def measure_growth(
    time_together: Callable[[int], float], *, alone_s: float, most: int, repeats: int
) -> tuple[BatchTiming, ...]:
    """Time 1, 2, 4, 8 … questions together, up to `most`, until it brings no clear growth.

    Args:
        time_together: asks so many questions as one batch and returns the seconds.
        alone_s: what one question takes.
        most: largest batch; below 2 none is asked.
        repeats: batches of each size, unless they take long.
    """
    growth = [BatchTiming(pictures=1, seconds=alone_s)]
    while growth[-1].pictures < most and (len(growth) == 1 or is_growing(growth)):
        pictures = min(2 * growth[-1].pictures, most)
        times = [time_together(pictures)]
        while times[0] < LONG_S and len(times) < repeats:
            times.append(time_together(pictures))
        growth.append(BatchTiming(pictures=pictures, seconds=statistics.median(times)))
    return tuple(growth)


def is_growing(growth: Sequence[BatchTiming]) -> bool:
    """Say whether the last batch was clearly faster than the one before."""
    before, last = growth[-2:]
    return last.pictures_per_minute >= CLEAR_GROWTH * before.pictures_per_minute


def fastest(growth: Sequence[BatchTiming]) -> BatchTiming:
    """Give the batch of the highest rate."""
    return max(growth, key=lambda one: one.pictures_per_minute)


def name_growth_limit(
    growth: Sequence[BatchTiming], *, most: int, room: int, part: str, share: float | None
) -> GrowthLimit:
    """Say what kept throughput from growing further.

    Args:
        growth: what was measured, two batches at least.
        most: the largest batch that was asked for.
        room: questions that the cache has room for.
        part: the part of an answer that takes the most time.
        share: how much of its limit that part reaches.
    """
    if is_growing(growth):
        return "memory" if room < most else "asked"
    if share is None or share < BOUND_SHARE:
        return "program"
    return "read" if part == "decode" else "matrix"
