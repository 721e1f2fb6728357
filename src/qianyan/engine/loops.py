"""Endless repetition: an answer that says the same stretch again and again, found as it grows.

Knows no torch. Exact and without a threshold of likeness: a loop is a stretch of tokens that came
several times in a row, without one other token between. What counts as endless, and why nothing
shorter does, is in docs/decisions/0022.
"""

from dataclasses import dataclass

import numpy as np

DEFAULT_LOOP_TOKENS = 2048
"""Tokens of repetition that end an answer unasked."""
MIN_REPEATS = 4
MAX_PERIOD = 1024


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The shortest stretch that an answer repeated at its end: `period` tokens, `repeats` times."""

    period: int
    repeats: int

    @property
    def num_tokens(self) -> int:
        """Count the repeated tokens, without a last stretch that is not whole."""
        return self.period * self.repeats


class LoopDetector:
    """Watches one sequence; a step costs one comparison of its last `MAX_PERIOD` tokens."""

    def __init__(self, loop_tokens: int) -> None:
        """Find what repeats over at least so many tokens and at least `MIN_REPEATS` times."""
        self._most = min(MAX_PERIOD, loop_tokens // 2)
        # Behind each other twice, so that the last tokens always lie in one run.
        self._ring = np.full(2 * self._most, -1, dtype=np.int64)
        self._at = 0
        # For each period, how many tokens on end equal those one period before them.
        self._runs = np.zeros(self._most, dtype=np.int64)
        periods = np.arange(1, self._most + 1)
        self._needed = np.maximum(loop_tokens, MIN_REPEATS * periods) - periods

    def push(self, token_id: int) -> Loop | None:
        """Take one token; give the loop that is complete with it."""
        # Index p - 1 is the token p places back.
        before = self._ring[self._at : self._at + self._most]
        self._runs = np.where(before == token_id, self._runs + 1, 0)
        self._at = (self._at - 1) % self._most
        self._ring[self._at] = self._ring[self._at + self._most] = token_id
        found = np.flatnonzero(self._runs >= self._needed)
        if not found.size:
            return None
        period = int(found[0]) + 1
        return Loop(period=period, repeats=int(self._runs[period - 1]) // period + 1)
