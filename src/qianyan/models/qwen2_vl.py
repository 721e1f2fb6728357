"""Qwen2-VL's vision tower: pictures at their own resolution (arXiv 2409.12191, section 2.1).

Against the first generation (Qwen-VL):
- any size of picture, one token for 2 x 2 patches, instead of 256 tokens for 448 x 448 pixels;
- two-dimensional rotary positions in every block instead of a learned table;
- a patch covers two moments; a still picture shows the same moment twice.

Blocks have LayerNorm and a quick-GELU feed-forward; every frame pair attends to itself alone.
The decoder is Qwen2 with M-RoPE (`vision_language.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qianyan.errors import ConfigError, quote
from qianyan.models import native_pointwise
from qianyan.models.config import (
    MAX_LAYERS,
    require_at_most,
    require_multiple,
    require_positive_integers,
    require_positive_numbers,
)
from qianyan.models.positions import Grid
from qianyan.models.rope import Rope, axial_rope
from qianyan.models.vision import (
    VISION_NORM_EPS,
    PatchEmbed,
    PatchMerger,
    VisionAttention,
    frame_coordinates,
)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Vision tower hyper-parameters, named as in config.json: `hidden_size` is the decoder's.

    The defaults are those of the released models, whose config.json files leave most out.
    """

    hidden_size: int
    embed_dim: int = 1280
    depth: int = 32
    num_heads: int = 16
    mlp_ratio: float = 4
    in_channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    hidden_act: str = "quick_gelu"

    def __post_init__(self) -> None:
        require_positive_integers(
            self,
            "hidden_size",
            "embed_dim",
            "depth",
            "num_heads",
            "in_channels",
            "patch_size",
            "temporal_patch_size",
            "spatial_merge_size",
        )
        require_at_most(self, "depth", MAX_LAYERS)
        require_positive_numbers(self, "mlp_ratio")
        require_multiple(self, "embed_dim", "num_heads")
        if self.hidden_act != "quick_gelu":
            raise ConfigError(
                f"vision hidden_act is {quote(self.hidden_act)}; expected 'quick_gelu'."
            )
        if self.head_dim % 4:
            raise ConfigError(
                f"vision head_dim is {self.head_dim} (embed_dim / num_heads); "
                "expected a multiple of 4."
            )

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.embed_dim // self.num_heads

    @property
    def out_hidden_size(self) -> int:
        """Width of the tokens that the tower gives to the decoder."""
        return self.hidden_size

    @property
    def patch_values(self) -> int:
        """Numbers in one flat patch: channels*time*height*width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    def time_step(self, second_per_grid_t: float) -> float:
        """Give the positions between two temporal patches of a video: 1 at every rate."""
        del second_per_grid_t
        return 1.0


class VisionMLP(nn.Module):
    """Two maps with x * sigmoid(1.702 x) between them (quick GELU, arXiv 1606.08415)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, width)
        self.fc2 = nn.Linear(width, config.embed_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (patches, hidden) to (patches, hidden)."""
        hidden = self.fc1(hidden)
        if native_pointwise.takes(hidden):
            hidden = native_pointwise.quick_gelu(hidden)
        else:
            hidden = hidden * (1.702 * hidden).sigmoid_()  # one large tensor less
        out: Tensor = self.fc2(hidden)
        return out


class VisionBlock(nn.Module):
    """Attention and feed-forward, each added to what it was given."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=VISION_NORM_EPS)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=VISION_NORM_EPS)
        self.attn = VisionAttention(config.embed_dim, config.num_heads)
        self.mlp = VisionMLP(config)

    def forward(self, hidden: Tensor, rope: Rope, lengths: Sequence[int]) -> Tensor:
        """Map (patches, hidden) to (patches, hidden)."""
        hidden = hidden + self.attn(self.norm1(hidden), rope, lengths)
        out: Tensor = hidden + self.mlp(self.norm2(hidden))
        return out


class VisionTower(nn.Module):
    """Patches to tokens, at the picture's own resolution (Qwen2-VL, section 2.1)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.patch_embed = PatchEmbed(config.embed_dim, kernel, config.in_channels)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(
            nn.LayerNorm(config.embed_dim, eps=VISION_NORM_EPS),
            config.embed_dim,
            config.spatial_merge_size**2,
            config.hidden_size,
        )

    def forward(self, pixel_values: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Map the packed patches of all pictures to (units, decoder's hidden), in given order."""
        merge = self.config.spatial_merge_size
        coordinates = torch.cat(
            [
                frame_coordinates(grid, merge=merge).flatten(0, 1).repeat(grid[0], 1)
                for grid in grids
            ]
        )
        rope = axial_rope(coordinates.to(pixel_values.device), self.config.head_dim)
        frames = [h * w for t, h, w in grids for _ in range(t)]
        hidden = self.patch_embed(pixel_values)  # (patches, hidden)
        for block in self.blocks:
            hidden = block(hidden, rope, frames)
        merged: Tensor = self.merger(hidden)  # (units, out_hidden)
        return merged
