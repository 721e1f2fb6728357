"""What the engine asks of every architecture: place, embed, look, and one forward pass.

A pass is `embed`, then the call; what lies between two passes of one sequence is the cache's.
Everything is packed: sequences lie one after another, without a batch axis.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from qianyan.errors import InputError
from qianyan.models.attention import KVCache
from qianyan.models.positions import Grid, Positions


class LanguageModel(Protocol):
    """A model that continues token ids, with or without pictures among them."""

    @property
    def max_position_embeddings(self) -> int:
        """Most tokens of prompt and answer together."""

    def place(
        self,
        input_ids: Sequence[int],
        grid_thw: Sequence[Grid] = (),
        second_per_grid_ts: Sequence[float] = (),
    ) -> Positions:
        """Say where the tokens of one prompt stand.

        `grid_thw` are the grids of all pictures and videos in order of appearance;
        `second_per_grid_ts` holds, for each video, the seconds between two temporal patches.
        Raises InputError when tokens, grids and times do not agree.
        """

    def vision_rows(self, input_ids: Tensor) -> Tensor:
        """Give the rows of a prompt that vision features fill, in order, (merged_tokens,)."""

    def encode_images(self, pixel_values: Tensor, grid_thw: Sequence[Grid]) -> Tensor:
        """Map the packed pixels of pictures and videos to (merged_tokens, hidden).

        Raises InputError when pixels and grids do not agree, or the model reads text only.
        """

    def embed(self, input_ids: Tensor, vision_features: Tensor | None = None) -> Tensor:
        """Give (tokens, hidden): word embeddings, with features at the places held for them.

        Features fill their tokens in order of appearance; None leaves those tokens as words, which
        is right for generated tokens only. Raises InputError when the counts differ.
        """

    def __call__(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        cache: KVCache,
        logits_at: Tensor | None = None,
    ) -> Tensor:
        """Map embedded tokens (tokens, hidden) at (axes, tokens) to float32 logits (n, vocab).

        `logits_at` picks the n tokens to score; None scores all of them.
        """


def fill_rows(hidden: Tensor, rows: Tensor, features: Tensor) -> Tensor:
    """Put features (rows, hidden) of pictures or sounds at their rows of a prompt's embeddings.

    Raises InputError when there are more or fewer of them than rows.
    """
    if len(rows) != len(features):
        raise InputError(
            f"The prompt holds {len(rows)} places for features; "
            f"expected {len(features)}, one for each feature."
        )
    return hidden.index_put((rows,), features.to(hidden.dtype))


def refuse_pictures() -> InputError:
    """Say that a model reads text only."""
    return InputError("This model reads text only; it sees no pictures or videos.")
