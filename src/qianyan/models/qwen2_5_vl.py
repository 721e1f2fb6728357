"""Qwen2.5-VL's vision tower: windowed attention, RMSNorm, gated feed-forward (arXiv 2502.13923).

Against Qwen2-VL:
- the tower uses RMSNorm and a gated feed-forward with biases;
- most of its blocks attend inside windows of 112 x 112 pixels, four over the whole frame;
- the time axis of a video counts real time: `tokens_per_second` positions each second.

The decoder is Qwen2.5 with M-RoPE (`vision_language.py`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from qianyan.errors import ConfigError, quote
from qianyan.models.config import (
    MAX_LAYERS,
    require_at_most,
    require_booleans,
    require_multiple,
    require_positive_integers,
    require_positive_numbers,
    require_silu,
)
from qianyan.models.layers import MLP, RMSNorm
from qianyan.models.positions import Grid
from qianyan.models.rope import Rope, axial_rope
from qianyan.models.vision import (
    VISION_NORM_EPS,
    PatchEmbed,
    PatchMerger,
    SplitVisionAttention,
    VisionAttention,
    frame_coordinates,
)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Vision tower hyper-parameters, named as in config.json.

    The defaults are those of the released models, whose config.json files leave some out.
    `splits_qkv` is a fact of the generation, which config.json does not state: Qwen2.5-Omni's tower
    has a matrix each for query, key and value.
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
    splits_qkv: bool = False

    def __post_init__(self) -> None:
        require_booleans(self, "splits_qkv")
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
        require_at_most(self, "depth", MAX_LAYERS)
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

    def time_step(self, second_per_grid_t: float) -> float:
        """Give the positions between two temporal patches that lie some seconds apart."""
        return self.tokens_per_second * second_per_grid_t


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

    Windows at the right and bottom edges are smaller; nothing is padded. Windows of one size lie
    together, so that attention takes them as they lie.
    """
    t, h, w = grid
    rows, columns = h // merge, w // merge
    units = torch.arange(rows * columns).view(rows, columns)
    windows = [
        units[top : top + side, left : left + side].flatten()
        for top in range(0, rows, side)
        for left in range(0, columns, side)
    ]
    windows.sort(key=len, reverse=True)
    order = torch.cat(windows)  # one frame
    coordinates = frame_coordinates(grid, merge=merge)[order]  # (units, merge², 2)
    frame_starts = torch.arange(t).unsqueeze(1) * rows * columns
    return GridLayout(
        order=(frame_starts + order).flatten(),
        coordinates=coordinates.flatten(0, 1).repeat(t, 1),
        windows=tuple(len(window) * merge**2 for window in windows) * t,
        frames=(h * w,) * t,
    )


class VisionBlock(nn.Module):
    """Attention and feed-forward, each added to what it was given."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, VISION_NORM_EPS)
        self.norm2 = RMSNorm(config.hidden_size, VISION_NORM_EPS)
        attention = SplitVisionAttention if config.splits_qkv else VisionAttention
        self.attn = attention(config.hidden_size, config.num_heads)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, bias=True)

    def forward(self, hidden: Tensor, rope: Rope, lengths: Sequence[int]) -> Tensor:
        """Map (patches, hidden) to (patches, hidden)."""
        hidden = hidden + self.attn(self.norm1(hidden), rope, lengths)
        out: Tensor = hidden + self.mlp(self.norm2(hidden))
        return out


class VisionTower(nn.Module):
    """Patches to tokens, at the picture's own resolution (Qwen2.5-VL, section 2.1.1)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.patch_embed = PatchEmbed(config.hidden_size, kernel, config.in_channels)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(
            RMSNorm(config.hidden_size, VISION_NORM_EPS),
            config.hidden_size,
            config.spatial_merge_size**2,
            config.out_hidden_size,
        )

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
