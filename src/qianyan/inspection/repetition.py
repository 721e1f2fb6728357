"""Notice a model that has begun to repeat itself.

Detection answers run into loops: the same box again and again, a box that moves by the same step,
a group of boxes that returns (QwenLM/Qwen3-VL#718, #1611). Few real scenes look like that.
"""

from collections.abc import Hashable, Sequence
from itertools import pairwise

MIN_SAME = 4
MIN_STEPS = 6
MIN_ROUNDS = 3
NEAR = 2.0
"""Distance in the model's own units up to which two coordinates are taken for the same."""
MIN_TAIL_CHARS = 60
MAX_TAIL_CHARS = 3_000

LabelledBox = tuple[str, tuple[float, ...]]


def is_repeating(boxes: Sequence[LabelledBox]) -> bool:
    """Tell whether boxes, in the order written, repeat, march in equal steps, or come in rounds."""
    return (
        _longest_run(boxes) >= MIN_SAME
        or _marches(boxes)
        or _num_rounds(boxes, least=MIN_STEPS) >= MIN_ROUNDS
    )


def ends_in_loop(text: str) -> bool:
    """Tell whether the end of a text is one piece written at least three times over."""
    return _num_rounds(text[-MAX_TAIL_CHARS:], least=MIN_TAIL_CHARS) >= MIN_ROUNDS


def _is_near(one: LabelledBox, other: LabelledBox) -> bool:
    return one[0] == other[0] and all(
        abs(a - b) <= NEAR for a, b in zip(one[1], other[1], strict=True)
    )


def _longest_run(boxes: Sequence[LabelledBox]) -> int:
    longest = run = min(len(boxes), 1)
    for before, box in pairwise(boxes):
        run = run + 1 if _is_near(before, box) else 1
        longest = max(longest, run)
    return longest


def _marches(boxes: Sequence[LabelledBox]) -> bool:
    """Tell whether MIN_STEPS boxes follow each other at exactly the same distance."""
    steps = [
        (before[0], box[0], *(b - a for a, b in zip(before[1], box[1], strict=True)))
        for before, box in pairwise(boxes)
    ]
    run = 1
    for before, step in pairwise(steps):
        run = run + 1 if before == step else 1
        if run + 1 >= MIN_STEPS:
            return True
    return False


def _num_rounds(pieces: Sequence[Hashable], *, least: int) -> int:
    """Count how often a round was gone through at the end, in at least `least` pieces together.

    Prefix function of the reversed sequence (Knuth, Morris, Pratt): linear time.
    """
    backward = pieces[::-1]
    border = [0] * len(backward)
    most = 1
    for index in range(1, len(backward)):
        size = border[index - 1]
        while size and backward[index] != backward[size]:
            size = border[size - 1]
        border[index] = size + (backward[index] == backward[size])
        if index + 1 >= least:
            most = max(most, (index + 1) // (index + 1 - border[index]))
    return most
