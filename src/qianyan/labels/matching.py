"""Which found box is which labelled one, and the counts that follow from it.

Both are matched as COCO does (cocoeval.py, evaluateImg): found boxes in order, the surest first;
each takes the label that it overlaps most among those that are still free.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qianyan.labels.photos import Corners, iou


@dataclass(frozen=True)
class BoxCounts:
    """Found, missed and false boxes of one kind."""

    right: int = 0
    missed: int = 0
    false: int = 0

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None where there was nothing at all."""
        whole = 2 * self.right + self.missed + self.false
        return 2 * self.right / whole if whole else None

    def __add__(self, other: "BoxCounts") -> "BoxCounts":
        return BoxCounts(
            self.right + other.right, self.missed + other.missed, self.false + other.false
        )


def match_boxes(
    found: Sequence[Corners], wanted: Sequence[Corners], *, overlap: float
) -> list[tuple[int, int]]:
    """Pair found boxes, best first, with labelled ones that overlap enough; each is used once."""
    pairs: list[tuple[int, int]] = []
    free = list(range(len(wanted)))
    for index, box in enumerate(found):
        best = max(free, key=lambda label: iou(box, wanted[label]), default=None)
        if best is not None and iou(box, wanted[best]) >= overlap:
            pairs.append((index, best))
            free.remove(best)
    return pairs
