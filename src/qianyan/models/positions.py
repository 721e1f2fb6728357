"""Where each token of a prompt stands in time, height and width: M-RoPE's positions.

Source: Qwen2-VL (arXiv 2409.12191, section 2.1); absolute time in videos from Qwen2.5-VL
(arXiv 2502.13923, section 2.1.3). Text counts up on all three axes at once. A vision token adds
its place in the grid to the position at which its picture starts. What follows a picture or video
starts 1 after the largest position so far, on whichever axis that is.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from qianyan.errors import InputError

Grid = tuple[int, int, int]  # t, h, w of a picture or video in patches


def require_grid(grid: Grid, *, merge: int) -> None:
    """Raise InputError unless the grid holds something and its sides are multiples of `merge`."""
    t, h, w = grid
    if min(grid) < 1 or h % merge or w % merge:
        raise InputError(
            f"Grid is {t} x {h} x {w} patches; expected a height and width that are "
            f"multiples of {merge}."
        )


def multimodal_position_ids(
    input_ids: Sequence[int],
    pictures: Mapping[int, Iterable[tuple[Grid, float]]],
    *,
    merge: int,
) -> Tensor:
    """Give (3, tokens) positions for one prompt, starting at 0.

    `pictures` holds, for each token id that stands for vision, the grids in order of appearance,
    each with the positions between two of its temporal patches; `merge` is the side of the square
    of patches that became one token. Raises InputError when tokens and grids do not agree.
    """
    waiting = {token_id: deque(items) for token_id, items in pictures.items()}
    spans = [torch.zeros(3, 0, dtype=torch.long)]
    index = start = 0  # token reached, position reached
    while index < len(input_ids):
        if input_ids[index] in waiting:
            span = _vision_span(input_ids, index, waiting[input_ids[index]], merge)
        else:
            span = _text_span(input_ids, index, waiting)
        spans.append(start + span)
        start = int(spans[-1].max()) + 1
        index += span.shape[1]
    for token_id, left in waiting.items():
        if left:
            raise InputError(
                f"{len(left)} grids have no tokens in the prompt; "
                f"expected a run of id {token_id} for each."
            )
    return torch.cat(spans, dim=1)


def _text_span(input_ids: Sequence[int], index: int, vision: Iterable[int]) -> Tensor:
    """Give (3, count) positions of the text from `index` up to the next vision token."""
    end = index
    while end < len(input_ids) and input_ids[end] not in vision:
        end += 1
    return torch.arange(end - index).expand(3, -1)


def _vision_span(
    input_ids: Sequence[int], index: int, waiting: deque[tuple[Grid, float]], merge: int
) -> Tensor:
    """Give (3, merged_tokens) positions of the picture at `index`, counted from its start."""
    token_id = input_ids[index]
    if not waiting:
        raise InputError(
            f"The prompt holds more pictures than grids were given (token id {token_id}); "
            "expected one grid for each."
        )
    (t, h, w), time_step = waiting.popleft()
    require_grid((t, h, w), merge=merge)
    # The whole product is truncated, not its factors; float32 as in the released code.
    times = (torch.arange(t) * time_step).long()
    span = torch.cartesian_prod(times, torch.arange(h // merge), torch.arange(w // merge)).T
    run = input_ids[index : index + span.shape[1]]
    if list(run) != [token_id] * span.shape[1]:
        raise InputError(
            f"The picture at token {index} needs {span.shape[1]} tokens of id {token_id}; "
            "expected them in one run."
        )
    return span
