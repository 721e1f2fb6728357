"""TMRoPE: where the tokens of a prompt with text, pictures, videos and sound stand.

Source: Qwen2.5-Omni (arXiv 2503.20215, section 2.2). The time axis counts 40 ms steps: a sound has
a token for each, and a video's temporal patches stand at the steps of their moments. What follows
an item starts 1 after the largest position of it, as in M-RoPE (`models/positions.py`).

A video with its sound is one item, `<audio_bos>`, both kinds of token mixed, `<audio_eos>`, between
the video's own marks. The two streams start at the same position; how the prompt mixes them is
`inputs/interleaving.py`'s affair, as a token's kind and number say where it stands. The two marks
before it share a position and the two after it do, which is 1 after the item's last token: where
the other stream reaches further, what follows stands on its positions (so in the released code).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qianyan.errors import InputError
from qianyan.models.positions import Grid, require_grid


@dataclass(frozen=True, kw_only=True)
class OmniTokens:
    """The ids of the tokens that positions depend on; each is an id of the vocabulary."""

    image: int
    video: int
    audio: int
    audio_end: int
    audio_start: int


@dataclass(frozen=True, kw_only=True)
class OmniGrids:
    """What stands behind the tokens of one prompt.

    Args:
        grid_thw: of all pictures and videos, in order of appearance.
        second_per_grid_ts: of all videos, the seconds between two temporal patches.
        merge: side of the square of patches that became one token.
        ids_per_second: positions of one second.
    """

    grid_thw: Sequence[Grid]
    second_per_grid_ts: Sequence[float]
    merge: int
    ids_per_second: float


def tmrope_position_ids(input_ids: Sequence[int], tokens: OmniTokens, grids: OmniGrids) -> Tensor:
    """Give (3, tokens) positions for one prompt, starting at 0.

    Raises InputError when tokens, grids and times do not agree.
    """
    return _Walk(input_ids, tokens, grids).positions()


class _Walk:
    """One walk over a prompt, from span to span."""

    def __init__(self, input_ids: Sequence[int], tokens: OmniTokens, grids: OmniGrids) -> None:
        self._ids, self._tokens = input_ids, tokens
        self._merge, self._ids_per_second = grids.merge, grids.ids_per_second
        self._grids = deque(grids.grid_thw)
        self._seconds = deque(grids.second_per_grid_ts)

    def positions(self) -> Tensor:
        spans = [torch.zeros(3, 0, dtype=torch.long)]
        index = start = 0  # token reached, position reached
        while index < len(self._ids):
            token_id = self._ids[index]
            if self._is_sounding(index):
                span = self._sounding_video(index)
                # The next token, the video's own end mark, shares the last position.
                rise = int(span[0, -1])
            elif token_id in (self._tokens.image, self._tokens.video):
                span = self._vision(index)
                rise = int(span.max()) + 1
            else:
                span = torch.arange(self._text_length(index)).expand(3, -1)
                rise = span.shape[1]
            spans.append(start + span)
            start += rise
            index += span.shape[1]
        if self._grids or self._seconds:
            raise InputError(
                f"{len(self._grids)} grids and {len(self._seconds)} second_per_grid_ts have no "
                "tokens in the prompt; expected a run of tokens for each."
            )
        return torch.cat(spans, dim=1)

    def _is_sounding(self, index: int) -> bool:
        """Whether the mark of a video's sound stands here: a video begins right behind it."""
        return (
            0 < index < len(self._ids) - 1
            and self._ids[index] == self._tokens.audio_start
            and self._ids[index + 1] == self._tokens.video
        )

    def _text_length(self, index: int) -> int:
        """Count the tokens up to the next item, those of plain sounds included."""
        end = index
        while end < len(self._ids) and not (
            self._ids[end] in (self._tokens.image, self._tokens.video) or self._is_sounding(end)
        ):
            end += 1
        return end - index

    def _vision(self, index: int) -> Tensor:
        """Give the (3, merged_tokens) of the picture or silent video at `index`, from its start."""
        token_id = self._ids[index]
        span = self._grid_span(token_id)
        if list(self._ids[index : index + span.shape[1]]) != [token_id] * span.shape[1]:
            raise InputError(
                f"The picture at token {index} needs {span.shape[1]} tokens of id {token_id}; "
                "expected them in one run."
            )
        return span

    def _grid_span(self, token_id: int) -> Tensor:
        """Take the next grid: the (3, merged_tokens) of a picture or of a video, from its start."""
        is_video = token_id == self._tokens.video
        if not self._grids or (is_video and not self._seconds):
            raise InputError(
                f"The prompt holds more pictures than grids and times were given (token id "
                f"{token_id}); expected a grid for each, and second_per_grid_ts for each video."
            )
        grid = self._grids.popleft()
        require_grid(grid, merge=self._merge)
        t, h, w = grid
        seconds = torch.tensor(self._seconds.popleft() if is_video else 0.0, dtype=torch.float32)
        # Products in this order, in float32, and truncated at the end, as in the released code.
        times = (torch.arange(t) * seconds * self._ids_per_second).long()
        rows, columns = torch.arange(h // self._merge), torch.arange(w // self._merge)
        return torch.cartesian_prod(times, rows, columns).T

    def _sounding_video(self, index: int) -> Tensor:
        """Give the (3, tokens) of a video and its sound with both sound marks, from its start."""
        end = index + 1
        while end < len(self._ids) and self._ids[end] in (self._tokens.video, self._tokens.audio):
            end += 1
        span = self._grid_span(self._tokens.video)
        kinds = torch.tensor(self._ids[index + 1 : end])
        is_video = kinds == self._tokens.video
        closes = end < len(self._ids) and self._ids[end] == self._tokens.audio_end
        if int(is_video.sum()) != span.shape[1] or not closes:
            raise InputError(
                f"The video with sound at token {index} needs {span.shape[1]} tokens of id "
                f"{self._tokens.video} before the end of its sound (id {self._tokens.audio_end})."
            )
        mixed = torch.empty(3, len(kinds), dtype=torch.long)
        mixed[:, is_video] = span
        mixed[:, ~is_video] = torch.arange(int((~is_video).sum()))
        last = mixed[:, -1:].max().expand(3, 1)
        return torch.cat([torch.full((3, 1), -1), mixed, last + 1], dim=1)
