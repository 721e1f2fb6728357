"""Qwen2.5-VL: a windowed vision tower in front of the Qwen2.5 decoder (arXiv 2502.13923).

Against Qwen2-VL:
- the tower uses RMSNorm and a gated feed-forward with biases;
- most of its blocks attend inside windows of 112 x 112 pixels, four over the whole frame;
- the time axis of a video counts real time: `tokens_per_second` positions each second.

Pictures arrive as flat patches, `(patches, channels*time*height*width)`, in merge-block order:
the 2 x 2 patches that become one token lie next to each other ("a unit"). A grid is (t, h, w) in
patches. Text and vision are packed, `(tokens, hidden)`, without a batch axis.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from qianyan.errors import ConfigError, InputError, quote
from qianyan.models.attention import KVCache, segment_attention
from qianyan.models.config import (
    require_multiple,
    require_positive_integers,
    require_positive_numbers,
    require_silu,
)
from qianyan.models.layers import MLP, RMSNorm
from qianyan.models.positions import Grid, multimodal_position_ids, require_grid
from qianyan.models.rope import Rope, axial_rope, rotate
from qianyan.models.text import TextConfig, TextModel

VISION_NORM_EPS = 1e-6  # fixed in the tower's code; no config.json states it


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Vision tower hyper-parameters, named as in config.json.

    The defaults are those of the released models, whose config.json files leave some out.
    """

    hidden_size: int
    tokens_per_second: float
    depth: int = 32
    num_heads: int = 16
    intermediate_size: int = 3420
    out_hidden_size: int = 3584
    in_channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    hidden_act: str = "silu"

    def __post_init__(self) -> None:
        require_positive_integers(
            self,
            "hidden_size",
            "depth",
            "num_heads",
            "intermediate_size",
            "out_hidden_size",
            "in_channels",
            "patch_size",
            "temporal_patch_size",
            "spatial_merge_size",
            "window_size",
        )
        require_positive_numbers(self, "tokens_per_second")
        require_multiple(self, "hidden_size", "num_heads")
        require_silu(self.hidden_act)
        if self.head_dim % 4:
            raise ConfigError(
                f"vision head_dim is {self.head_dim} (hidden_size / num_heads); "
                "expected a multiple of 4."
            )
        if self.window_size % (self.patch_size * self.spatial_merge_size):
            raise ConfigError(
                f"window_size is {self.window_size}; expected a multiple of "
                f"{self.patch_size * self.spatial_merge_size}, the side of one merged token."
            )
        indexes = self.fullatt_block_indexes
        if not isinstance(indexes, tuple) or not set(indexes) <= set(range(self.depth)):
            raise ConfigError(
                f"fullatt_block_indexes is {quote(indexes)}; "
                f"expected block numbers below the depth {self.depth}."
            )

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_values(self) -> int:
        """Numbers in one flat patch: channels*time*height*width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def window_side(self) -> int:
        """Side of an attention window in merged tokens."""
        return self.window_size // self.spatial_merge_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class Qwen2_5_VLConfig:
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
        for name in ("image_token_id", "video_token_id", "vision_start_token_id"):
            token_id = getattr(self, name)
            if not isinstance(token_id, int) or not 0 <= token_id < self.text.vocab_size:
                raise ConfigError(
                    f"{name} is {token_id}; expected an id below vocab_size "
                    f"({self.text.vocab_size})."
                )


@dataclass(frozen=True)
class GridLayout:
    """How the patches of one picture or video are listed and who sees whom.

    `order` lists its units window by window; `coordinates` are the (row, column) of each patch in
    that order; `windows` and `frames` are the patch counts of consecutive attention segments.
    """

    order: Tensor  # (units,)
    coordinates: Tensor  # (patches, 2)
    windows: tuple[int, ...]
    frames: tuple[int, ...]


@lru_cache(maxsize=64)  # a folder of photos has few sizes; the tensors are small
@torch.inference_mode(mode=False)  # a cached inference tensor could not be used in training
def lay_out(grid: Grid, *, merge: int, side: int) -> GridLayout:
    """Cut one grid into windows of `side` x `side` units (Qwen2.5-VL, section 2.1.1).

    Windows at the right and bottom edges are smaller; nothing is padded.
    """
    t, h, w = grid
    rows, columns = h // merge, w // merge
    units = torch.arange(rows * columns).view(rows, columns)
    windows = [
        units[top : top + side, left : left + side].flatten()
        for top in range(0, rows, side)
        for left in range(0, columns, side)
    ]
    order = torch.cat(windows)  # one frame
    coordinates = torch.cartesian_prod(torch.arange(h), torch.arange(w))  # (h*w, 2)
    coordinates = coordinates.view(rows, merge, columns, merge, 2).transpose(1, 2)
    coordinates = coordinates.reshape(rows * columns, merge**2, 2)[order]  # (units, merge², 2)
    frame_starts = torch.arange(t).unsqueeze(1) * rows * columns
    return GridLayout(
        order=(frame_starts + order).flatten(),
        coordinates=coordinates.flatten(0, 1).repeat(t, 1),
        windows=tuple(len(window) * merge**2 for window in windows) * t,
        frames=(h * w,) * t,
    )


class PatchEmbed(nn.Module):
    """One linear map per patch, stored as the 3-D convolution it is equal to."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel, bias=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map (patches, channels*time*height*width) to (patches, hidden)."""
        return linear(pixel_values.to(self.proj.weight.dtype), self.proj.weight.flatten(1))


class VisionAttention(nn.Module):
    """Bidirectional attention inside segments."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, rope: Rope, lengths: Sequence[int]) -> Tensor:
        """Map (patches, hidden) to (patches, hidden); `lengths` are the segments' patch counts."""
        qkv = self.qkv(hidden).unflatten(-1, (3, self.num_heads, -1))  # (patches, 3, heads, …)
        query, key, value = qkv.unbind(1)  # (patches, heads, head_dim)
        attended = segment_attention(rotate(query, *rope), rotate(key, *rope), value, lengths)
        out: Tensor = self.proj(attended.flatten(-2))  # (patches, hidden)
        return out


class VisionBlock(nn.Module):
    """Attention and feed-forward, each added to what it was given."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, VISION_NORM_EPS)
        self.norm2 = RMSNorm(config.hidden_size, VISION_NORM_EPS)
        self.attn = VisionAttention(config)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, bias=True)

    def forward(self, hidden: Tensor, rope: Rope, lengths: Sequence[int]) -> Tensor:
        """Map (patches, hidden) to (patches, hidden)."""
        hidden = hidden + self.attn(self.norm1(hidden), rope, lengths)
        out: Tensor = hidden + self.mlp(self.norm2(hidden))
        return out


class PatchMerger(nn.Module):
    """Join the patches of each unit into one token of the decoder's width."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.unit = config.spatial_merge_size**2
        width = config.hidden_size * self.unit
        self.ln_q = RMSNorm(config.hidden_size, VISION_NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.out_hidden_size)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (patches, hidden) to (units, out_hidden)."""
        merged = self.ln_q(hidden).unflatten(0, (-1, self.unit)).flatten(1)  # (units, unit*hidden)
        out: Tensor = self.mlp(merged)
        return out


class VisionTower(nn.Module):
    """Patches to tokens, at the picture's own resolution (Qwen2.5-VL, section 2.1.1)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def forward(self, pixel_values: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Map the packed patches of all pictures to (units, out_hidden), in the given order.

        Units are put in window order once, before the blocks, and back after the merger.
        """
        layouts = [
            lay_out(grid, merge=self.config.spatial_merge_size, side=self.config.window_side)
            for grid in grids
        ]
        device, unit = pixel_values.device, self.config.spatial_merge_size**2
        order = _pack([layout.order for layout in layouts]).to(device)
        coordinates = torch.cat([layout.coordinates for layout in layouts]).to(device)
        windows = tuple(length for layout in layouts for length in layout.windows)
        frames = tuple(length for layout in layouts for length in layout.frames)

        rope = axial_rope(coordinates, self.config.head_dim)
        hidden = self.patch_embed(pixel_values)  # (patches, hidden)
        hidden = hidden.unflatten(0, (-1, unit))[order].flatten(0, 1)  # (patches, hidden)
        for index, block in enumerate(self.blocks):
            whole_frame = index in self.config.fullatt_block_indexes
            hidden = block(hidden, rope, frames if whole_frame else windows)
        merged: Tensor = self.merger(hidden)  # (units, out_hidden)
        return merged[order.argsort()]


def _pack(orders: Iterable[Tensor]) -> Tensor:
    """Join index lists that each start at 0 into one over the packed whole."""
    packed, start = [], 0
    for order in orders:
        packed.append(order + start)
        start += len(order)
    return torch.cat(packed)


class Qwen2_5_VLForConditionalGeneration(nn.Module):
    """The vision tower, the decoder and the output matrix.

    A pass is `embed`, then `forward`; what lies between two passes of one sequence is the cache's.
    """

    def __init__(self, config: Qwen2_5_VLConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = VisionTower(config.vision)
        self.model = TextModel(config.text)
        self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        if config.text.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

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

    def embed(
        self,
        input_ids: Tensor,
        image_features: Tensor | None = None,
        video_features: Tensor | None = None,
    ) -> Tensor:
        """Give (tokens, hidden): word embeddings, with features at the places held for them.

        Features fill their tokens in order of appearance; None leaves those tokens as words, which
        is right for generated tokens only. Raises InputError when the counts differ.
        """
        hidden: Tensor = self.model.embed_tokens(input_ids)
        for noun, token_id, features in (
            ("image", self.config.image_token_id, image_features),
            ("video", self.config.video_token_id, video_features),
        ):
            if features is None:
                continue
            places = (input_ids == token_id).nonzero().squeeze(-1)  # (merged_tokens,)
            if len(places) != len(features):
                raise InputError(
                    f"The prompt holds {len(places)} {noun} tokens; "
                    f"expected {len(features)}, one for each of the {noun} features."
                )
            hidden = hidden.index_put((places,), features.to(hidden.dtype))
        return hidden

    def position_ids(
        self,
        input_ids: Sequence[int],
        image_grid_thw: Sequence[Grid] = (),
        video_grid_thw: Sequence[Grid] = (),
        second_per_grid_ts: Sequence[float] = (),
    ) -> Tensor:
        """Give (3, tokens): the time, height and width position of each token of one prompt.

        `second_per_grid_ts` holds, for each video, the seconds between two temporal patches: its
        time counts `tokens_per_second`. Generated tokens continue at 1 + the largest position, on
        all axes. Raises InputError when tokens, grids and times do not agree.
        """
        if len(second_per_grid_ts) != len(video_grid_thw):
            raise InputError(
                f"second_per_grid_ts has {len(second_per_grid_ts)} entries; "
                f"expected one for each of {len(video_grid_thw)} videos."
            )
        vision = self.config.vision
        steps = [vision.tokens_per_second * seconds for seconds in second_per_grid_ts]
        pictures = {
            self.config.image_token_id: [(grid, 0.0) for grid in image_grid_thw],
            self.config.video_token_id: list(zip(video_grid_thw, steps, strict=True)),
        }
        return multimodal_position_ids(input_ids, pictures, merge=vision.spatial_merge_size)

    def forward(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        cache: KVCache,
        logits_at: Tensor | None = None,
    ) -> Tensor:
        """Map embedded tokens (tokens, hidden) to float32 logits (n, vocab).

        `logits_at` picks the n tokens to score; None scores all of them.
        """
        hidden = self.model(hidden, position_ids, cache)
        if logits_at is not None:
            hidden = hidden[logits_at]
        logits: Tensor = self.lm_head(hidden)
        return logits.float()
