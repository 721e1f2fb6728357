"""Where each token of a prompt stands: plain counting for text, M-RoPE for text with pictures.

Source: Qwen2-VL (arXiv 2409.12191, section 2.1); absolute time in videos from Qwen2.5-VL
(arXiv 2502.13923, section 2.1.3). Text counts up on all three axes at once. A vision token adds
its place in the grid to the position at which its picture starts. What follows a picture or video
starts 1 after the largest position so far, on whichever axis that is.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qianyan.errors import InputError

Grid = tuple[int, int, int]  # t, h, w of a picture or video in patches


@dataclass(frozen=True)
class Positions:
    """The positions of a prompt, and where its answer goes on.

    `prompt` is (axes, prompt_tokens). The first token after it stands at `next`, and every further
    one `step` beyond, both (axes,).
    """

    prompt: Tensor
    next: Tensor
    step: Tensor

    def at(self, start: int, stop: int) -> Tensor:
        """Give (axes, stop - start): tokens start to stop of prompt and answer taken together."""
        num_prompt_tokens = self.prompt.shape[1]
        placed = self.prompt[:, start:stop]
        begin = max(start, num_prompt_tokens)
        if begin >= stop:
            return placed
        count = torch.arange(begin - num_prompt_tokens, stop - num_prompt_tokens)
        answered = self.next.unsqueeze(1) + self.step.unsqueeze(1) * count
        return torch.cat([placed, answered], dim=1)


def continue_after_largest(prompt: Tensor) -> Positions:
    """Let the answer count up on every axis from 1 + the largest position of the prompt."""
    ones = torch.ones(len(prompt), dtype=torch.long)
    start = int(prompt.max()) + 1 if prompt.numel() else 0
    return Positions(prompt, start * ones, ones)


def plain_positions(num_tokens: int) -> Positions:
    """Count up from 0 on one axis."""
    return continue_after_largest(torch.arange(num_tokens).unsqueeze(0))


@dataclass(frozen=True)
class Placed:
    """A picture or video of a prompt: the token that stands for it, its patches, and its times.

    `time_step` is the number of positions between two of its temporal patches.
    """

    token_id: int
    grid: Grid
    time_step: float


def require_grid(grid: Grid, *, merge: int) -> None:
    """Raise InputError unless the grid holds something and its sides are multiples of `merge`."""
    t, h, w = grid
    if min(grid) < 1 or h % merge or w % merge:
        raise InputError(
            f"Grid is {t} x {h} x {w} patches; expected a height and width that are "
            f"multiples of {merge}."
        )


def multimodal_position_ids(
    input_ids: Sequence[int], vision_ids: frozenset[int], placed: Sequence[Placed], *, merge: int
) -> Tensor:
    """Give (3, tokens) positions for one prompt, starting at 0.

    Args:
        input_ids: the prompt.
        vision_ids: the tokens that stand for pictures and videos.
        placed: the pictures and videos in order of appearance.
        merge: side of the square of patches that became one token.

    Raises:
        InputError: tokens and grids do not agree.
    """
    waiting = deque(placed)
    spans = [torch.zeros(3, 0, dtype=torch.long)]
    index = start = 0  # token reached, position reached
    while index < len(input_ids):
        if input_ids[index] in vision_ids:
            span = _vision_span(input_ids, index, waiting, merge)
        else:
            span = _text_span(input_ids, index, vision_ids)
        spans.append(start + span)
        start = int(spans[-1].max()) + 1
        index += span.shape[1]
    if waiting:
        raise InputError(
            f"{len(waiting)} grids have no tokens in the prompt; "
            f"expected a run of id {waiting[0].token_id} next."
        )
    return torch.cat(spans, dim=1)


def _text_span(input_ids: Sequence[int], index: int, vision_ids: frozenset[int]) -> Tensor:
    """Give (3, count) positions of the text from `index` up to the next vision token."""
    end = index
    while end < len(input_ids) and input_ids[end] not in vision_ids:
        end += 1
    return torch.arange(end - index).expand(3, -1)


def _vision_span(
    input_ids: Sequence[int], index: int, waiting: deque[Placed], merge: int
) -> Tensor:
    """Give (3, merged_tokens) positions of the picture at `index`, counted from its start."""
    if not waiting:
        raise InputError(
            f"The prompt holds more pictures than grids were given (token id {input_ids[index]}); "
            "expected one grid for each."
        )
    item = waiting.popleft()
    require_grid(item.grid, merge=merge)
    t, h, w = item.grid
    # The whole product is truncated, not its factors; float32 as in the released code.
    times = (torch.arange(t) * item.time_step).long()
    span = torch.cartesian_prod(times, torch.arange(h // merge), torch.arange(w // merge)).T
    run = input_ids[index : index + span.shape[1]]
    if list(run) != [item.token_id] * span.shape[1]:
        raise InputError(
            f"The picture at token {index} needs {span.shape[1]} tokens of id {item.token_id}; "
            "expected them in one run."
        )
    return span
