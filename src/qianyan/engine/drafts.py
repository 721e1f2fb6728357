"""Guesses at an answer's next tokens: what followed the same tokens before, in prompt or answer.

Knows no torch. Prompt lookup (Saxena, "Prompt Lookup Decoding", 2023; Yang et al., arXiv
2304.04487): answers quote, list and repeat. A pass over the guesses costs little more than one over
the last token alone, and each that comes true saves a pass. Guesses that fail are paid for, so
they begin with one, and their number follows how the last ones did.
"""

from collections.abc import Sequence

NGRAM_SIZES = (5, 4, 3)
"""Tokens that must have stood together before, the most telling first."""
RESTING_TOKENS = 32
"""Tokens without guesses after the last guess failed."""


class Drafts:
    """What one sequence's own past says about its next tokens."""

    def __init__(self, most: int) -> None:
        """Guess at most so many tokens at a time."""
        self._most = most
        self._size = 1
        self._resting_until = 0
        self._token_ids: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> the last place behind it

    @property
    def num_known(self) -> int:
        """Count the tokens of the sequence that were told so far."""
        return len(self._token_ids)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take the sequence's next tokens."""
        for token_id in token_ids:
            # What ends at the last token has nothing behind it yet.
            for size in NGRAM_SIZES:
                if len(self._token_ids) >= size:
                    self._ends[tuple(self._token_ids[-size:])] = len(self._token_ids)
            self._token_ids.append(token_id)

    def propose(self, most: int) -> tuple[int, ...]:
        """Guess the next tokens, at most so many; often none."""
        size = min(most, self._size)
        known = self._token_ids
        if size <= 0 or len(known) < self._resting_until:
            return ()
        ends = (self._ends.get(tuple(known[-n:])) for n in NGRAM_SIZES if len(known) >= n)
        place = next((end for end in ends if end is not None), None)
        if place is None:
            return ()
        # A period shorter than the guess goes on behind the last token.
        period = known[place:]
        return tuple(period[index % len(period)] for index in range(size))

    def note(self, num_drafts: int, num_agreed: int) -> None:
        """Learn how many guesses of a pass came true: try one more than did, twice as many as all.

        After a single one that failed, the next `RESTING_TOKENS` are not guessed.
        """
        if num_drafts == 0:
            return
        if num_agreed == num_drafts:
            self._size = min(2 * num_drafts, self._most)
            return
        self._size = num_agreed + 1
        if num_drafts == 1:
            self._resting_until = len(self._token_ids) + RESTING_TOKENS
