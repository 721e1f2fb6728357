"""Qwen2-VL and Qwen2.5-VL as a whole: a vision tower in front of a decoder with M-RoPE.

Source: Qwen2-VL (arXiv 2409.12191), section 2.1. The generations differ in their tower
(`qwen2_vl.py`, `qwen2_5_vl.py`) and in how the time axis of a video counts; the rest is here.
Text and vision are packed, `(tokens, hidden)`, without a batch axis.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qianyan.errors import ConfigError, InputError
from qianyan.models import qwen2_5_vl, qwen2_vl
from qianyan.models.attention import KVCache
from qianyan.models.language_model import fill_rows
from qianyan.models.layers import Linear
from qianyan.models.positions import (
    Grid,
    Placed,
    Positions,
    continue_after_largest,
    multimodal_position_ids,
    require_grid,
)
from qianyan.models.text import TextConfig, TextModel

VisionConfig = qwen2_vl.VisionConfig | qwen2_5_vl.VisionConfig


@dataclass(frozen=True, kw_only=True)
class VisionLanguageConfig:
    """The whole model: text, vision and the tokens that stand for pictures."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int

    def __post_init__(self) -> None:
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise ConfigError(
                f"vision out_hidden_size is {self.vision.out_hidden_size}; "
                f"expected the text hidden_size, {self.text.hidden_size}."
            )
        if self.text.rope_scaling.mrope_section is None:
            raise ConfigError(
                "rope_scaling has no mrope_section; expected three integers, the frequencies that "
                "follow time, height and width."
            )
        for name in ("image_token_id", "video_token_id", "vision_start_token_id"):
            self.require_token(name)

    def require_token(self, name: str) -> None:
        """Raise ConfigError unless the field `name` is the id of a token of the vocabulary."""
        token_id = getattr(self, name)
        if not isinstance(token_id, int) or not 0 <= token_id < self.text.vocab_size:
            raise ConfigError(
                f"{name} is {token_id}; expected an id below vocab_size ({self.text.vocab_size})."
            )

    @property
    def vision_ids(self) -> frozenset[int]:
        """The tokens that stand for pictures and videos."""
        return frozenset((self.image_token_id, self.video_token_id))


class VisionLanguageModel(nn.Module):
    """The tower, the decoder and the output matrix; a `LanguageModel`.

    Qwen2VLForConditionalGeneration and Qwen2_5_VLForConditionalGeneration.
    """

    def __init__(self, config: VisionLanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = _build_tower(config.vision)
        self.model = TextModel(config.text)
        self.lm_head = Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        if config.text.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def max_position_embeddings(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.config.text.max_model_len

    def place(
        self,
        input_ids: Sequence[int],
        grid_thw: Sequence[Grid] = (),
        second_per_grid_ts: Sequence[float] = (),
    ) -> Positions:
        """Give the time, height and width position of each token of one prompt (3 axes).

        The n-th run of video tokens takes the n-th of `second_per_grid_ts`. Generated tokens
        continue at 1 + the largest position, on all axes. Raises InputError when tokens, grids and
        times do not agree.
        """
        position_ids = multimodal_position_ids(
            input_ids,
            self.config.vision_ids,
            self._placed(input_ids, grid_thw, second_per_grid_ts),
            merge=self.config.vision.spatial_merge_size,
        )
        return continue_after_largest(position_ids)

    def _placed(
        self, input_ids: Sequence[int], grids: Sequence[Grid], seconds: Sequence[float]
    ) -> list[Placed]:
        """Pair grids with what stands for them, walking from one run of tokens to the next."""
        merged = self.config.vision.spatial_merge_size**2
        times = iter(seconds)
        placed: list[Placed] = []
        index = 0
        for t, h, w in grids:
            while index < len(input_ids) and input_ids[index] not in self.config.vision_ids:
                index += 1
            token_id = input_ids[index] if index < len(input_ids) else self.config.image_token_id
            step = 0.0
            if token_id == self.config.video_token_id:
                second_per_grid_t = next(times, None)
                if second_per_grid_t is None:
                    raise InputError(
                        f"There are {len(seconds)} second_per_grid_ts for more videos than that; "
                        "expected one for each."
                    )
                step = self.config.vision.time_step(second_per_grid_t)
            placed.append(Placed(token_id, (t, h, w), step))
            index += t * h * w // merged
        if next(times, None) is not None:
            raise InputError(
                f"There are {len(seconds)} second_per_grid_ts for fewer videos than that; "
                "expected one for each."
            )
        return placed

    def vision_rows(self, input_ids: Tensor) -> Tensor:
        """Give the rows that stand for pictures and videos, in order, (merged_tokens,)."""
        ids = torch.tensor(sorted(self.config.vision_ids), device=input_ids.device)
        return torch.isin(input_ids, ids).nonzero().squeeze(-1)

    def encode_images(self, pixel_values: Tensor, grid_thw: Sequence[Grid]) -> Tensor:
        """Map the packed patches of pictures or videos to their tokens, (merged_tokens, hidden).

        Raises InputError when patches and grids do not agree.
        """
        vision = self.config.vision
        grids = [(int(t), int(h), int(w)) for t, h, w in grid_thw]
        for grid in grids:
            require_grid(grid, merge=vision.spatial_merge_size)
        expected = (sum(t * h * w for t, h, w in grids), vision.patch_values)
        if not grids or tuple(pixel_values.shape) != expected:
            raise InputError(
                f"pixel_values is {tuple(pixel_values.shape)}; expected {expected} "
                f"for {len(grids)} grids."
            )
        features: Tensor = self.visual(pixel_values, grids)
        return features

    def embed(self, input_ids: Tensor, vision_features: Tensor | None = None) -> Tensor:
        """Give (tokens, hidden): word embeddings, with features at the places held for them.

        Features fill the tokens of pictures and videos in order of appearance; None leaves those
        tokens as words, which is right for generated tokens only. Raises InputError when the
        counts differ.
        """
        hidden: Tensor = self.model.embed_tokens(input_ids)
        if vision_features is None:
            return hidden
        return fill_rows(hidden, self.vision_rows(input_ids), vision_features)

    def forward(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        cache: KVCache,
        logits_at: Tensor | None = None,
    ) -> Tensor:
        """Map embedded tokens (tokens, hidden) at (3, tokens) to float32 logits (n, vocab).

        `logits_at` picks the n tokens to score; None scores all of them.
        """
        logits: Tensor = self.lm_head(self.model(hidden, position_ids, cache, logits_at))
        return logits.float()


def _build_tower(config: VisionConfig) -> nn.Module:
    """Make the tower that a config describes."""
    if isinstance(config, qwen2_vl.VisionConfig):
        return qwen2_vl.VisionTower(config)
    return qwen2_5_vl.VisionTower(config)
