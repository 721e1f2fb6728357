"""The order in which samples are taken, and streams of packs along it that can be resumed.

Every draw has a number; which sample it is follows from the seed alone. A step takes one pack from
each of `batch` streams, and stream s of n takes the draws s, s + n, s + 2n …: what a step learns
from is the same on one device and on many, and a stream's state is a few numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qianyan.errors import InputError
from qianyan.train.examples import Example
from qianyan.train.packing import Filler

Draw = tuple[int, int]
"""A source, and a sample in it."""
Made = tuple[Example, ...]
"""What one sample gives to learn from: an example, or a pair of them."""


class Draws:
    """The samples of several sources, mixed by weight, epoch after epoch without end."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], *, seed: int) -> None:
        """Raise InputError where there is nothing to draw."""
        self._sizes, self._weights, self._seed = tuple(sizes), tuple(weights), seed
        self.num_samples = sum(self._sizes)
        self.epoch_size = sum(map(_times, self._sizes, self._weights))
        if not self.epoch_size:
            raise InputError("The data holds no sample; expected at least one.")
        self._epochs: dict[int, np.ndarray] = {}

    def __getitem__(self, number: int) -> Draw:
        epoch, place = divmod(number, self.epoch_size)
        if epoch not in self._epochs:
            self._epochs = {key: one for key, one in self._epochs.items() if key == epoch - 1}
            self._epochs[epoch] = self._mixed(epoch)
        source, sample = self._epochs[epoch][place].tolist()
        return source, sample

    def _mixed(self, epoch: int) -> np.ndarray:
        """Lay out an epoch, (epoch_size, 2): source and sample of each draw."""
        random = np.random.default_rng([self._seed, epoch])
        parts = []
        for source, (size, weight) in enumerate(zip(self._sizes, self._weights, strict=True)):
            whole, rest = divmod(_times(size, weight), size) if size else (0, 0)
            chosen = [np.tile(np.arange(size), whole), random.permutation(size)[:rest]]
            samples = np.concatenate(chosen).astype(np.int64)
            parts.append(np.stack([np.full_like(samples, source), samples], axis=1))
        return random.permutation(np.concatenate(parts))


def _times(size: int, weight: float) -> int:
    """Count how many of a source's samples an epoch takes; at least one where there are any."""
    return max(1, round(size * weight)) if size else 0


@dataclass(frozen=True)
class StreamState:
    """Where a stream goes on: its next draw, and the draws that wait to be packed."""

    next_draw: int
    waiting: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Drawn:
    number: int
    examples: Made

    def __len__(self) -> int:
        return sum(map(len, self.examples))


class Stream:
    """One of the streams of a stage; `make` gives None for a sample that cannot be used."""

    def __init__(
        self,
        draws: Draws,
        make: Callable[[Draw], Made | None],
        *,
        state: StreamState,
        stride: int,
        max_tokens: int,
        joins: bool,
    ) -> None:
        self._draws, self._make = draws, make
        self._next, self._stride = state.next_draw, stride
        self._filler = Filler(self._examples(), max_tokens=max_tokens, joins=joins)
        waiting = ((number, make(draws[number])) for number in state.waiting)
        self._filler.waiting = [_Drawn(number, one) for number, one in waiting if one is not None]

    def next(self) -> tuple[list[Example], StreamState]:
        """Give the next pack's examples, and the state after it.

        Raises InputError when none of the samples can be used.
        """
        taken = [example for drawn in self._filler.next() for example in drawn.examples]
        waiting = tuple(drawn.number for drawn in self._filler.waiting)
        return taken, StreamState(self._next, waiting)

    def _examples(self) -> Iterator[_Drawn]:
        bad: set[Draw] = set()  # since the last good one; not tried again before the next
        while len(bad) < self._draws.num_samples:
            number, self._next = self._next, self._next + self._stride
            draw = self._draws[number]
            made = None if draw in bad else self._make(draw)
            if made is None:
                bad.add(draw)
                continue
            bad.clear()
            yield _Drawn(number, made)
        raise InputError(
            "No sample of the data can be used; the warnings before this name the first ones."
        )
