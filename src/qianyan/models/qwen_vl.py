"""The eyes of the first Qwen-VL: OpenCLIP's ViT-bigG and a resampler to 256 tokens a picture.

Source: Qwen-VL (arXiv 2308.12966), section 2.1. Whatever a photo's shape, its picture is a square
of one size, `(pictures, 3, image_size, image_size)`, and becomes `n_queries` tokens.

- A block's `in_proj` holds its rows head by head: each head's query, key and value together. The
  resampler's holds all queries, then all keys, then all values.
- Learned positions are those of a 16 x 16 grid and are stretched to the picture's.
- The resampler adds positions to its queries and keys; its values have none.
- `proj` stands to the right of what it multiplies, untransposed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, linear, scaled_dot_product_attention

from qianyan.errors import ConfigError
from qianyan.models.attention import segment_attention
from qianyan.models.config import (
    MAX_LAYERS,
    require_at_most,
    require_multiple,
    require_positive_integers,
    require_positive_numbers,
)

VISION_NORM_EPS = 1e-6  # fixed in the released code; no config.json states it
LEARNED_SIDE = 16  # side of the grid of `positional_embedding`: 224 / 14 pixels
RESAMPLER_HEAD_DIM = 128  # fixed in the released code


@dataclass(frozen=True, kw_only=True)
class VisualConfig:
    """The `visual` object of config.json, in its own names.

    `image_start_id` is the id of <img>; </img> and <imgpad> are the two after it.
    """

    heads: int
    image_size: int
    image_start_id: int
    layers: int
    mlp_ratio: float
    output_dim: int
    patch_size: int
    width: int
    n_queries: int = 256

    def __post_init__(self) -> None:
        require_positive_integers(
            self,
            "heads",
            "image_size",
            "image_start_id",
            "layers",
            "output_dim",
            "patch_size",
            "width",
            "n_queries",
        )
        require_at_most(self, "layers", MAX_LAYERS)
        require_positive_numbers(self, "mlp_ratio")
        require_multiple(self, "width", "heads")
        require_multiple(self, "image_size", "patch_size")
        if self.output_dim % RESAMPLER_HEAD_DIM:
            raise ConfigError(
                f"visual output_dim is {self.output_dim}; "
                f"expected a multiple of {RESAMPLER_HEAD_DIM}, the size of a resampler's head."
            )
        if math.isqrt(self.n_queries) ** 2 != self.n_queries:
            raise ConfigError(
                f"visual n_queries is {self.n_queries}; expected a square number, such as 256."
            )
        if self.mlp_width < 1:
            raise ConfigError(
                f"visual mlp_ratio is {self.mlp_ratio}; expected a feed-forward that is wider "
                f"than the width {self.width}."
            )

    @property
    def grid_side(self) -> int:
        """Patches along one side of a picture."""
        return self.image_size // self.patch_size

    @property
    def mlp_width(self) -> int:
        """Width of a block's feed-forward."""
        return int(self.width * self.mlp_ratio)


def stretch(positions: Tensor, side: int) -> Tensor:
    """Resize the (positions, width) of a square grid to a grid of `side`, (side*side, width).

    Bicubic, in float32, without smoothing, as the released checkpoints were trained.
    """
    old_side = math.isqrt(len(positions))
    if old_side == side:
        return positions
    grid = positions.float().view(1, old_side, old_side, -1)  # (1, rows, columns, width)
    resized = interpolate(
        grid.permute(0, 3, 1, 2),  # (1, width, rows, columns)
        size=(side, side),
        mode="bicubic",
        align_corners=False,
    )
    return resized.flatten(2)[0].T.to(positions.dtype)  # (side*side, width)


def sine_positions(side: int, width: int) -> Tensor:
    """Give the fixed table of the resampler's positions, (side*side, width).

    The first half of the channels counts columns, the second rows; each is [sine | cosine].
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4) / (width / 4))
    angles = torch.outer(torch.arange(side).float(), frequencies)  # (side, width/4)
    axis = torch.cat((angles.sin(), angles.cos()), dim=1)  # (side, width/2)
    columns = axis.expand(side, -1, -1)  # (side, side, width/2)
    rows = axis.unsqueeze(1).expand(-1, side, -1)
    return torch.cat((columns, rows), dim=-1).flatten(0, 1)  # (side*side, width)


class VisualAttention(nn.Module):
    """Attention in both directions inside each picture."""

    def __init__(self, config: VisualConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.in_proj = nn.Linear(config.width, 3 * config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Map (patches, width) to (patches, width); `lengths` are the pictures' patch counts."""
        heads = self.in_proj(hidden).unflatten(-1, (self.heads, -1))  # (patches, heads, 3*head_dim)
        query, key, value = heads.chunk(3, dim=-1)  # (patches, heads, head_dim)
        attended = segment_attention(query, key, value, lengths)
        out: Tensor = self.out_proj(attended.flatten(-2))  # (patches, width)
        return out


class FeedForward(nn.Module):
    """Two linear maps around an exact GELU; the tanh and sigmoid forms are other functions."""

    def __init__(self, config: VisualConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.width, config.mlp_width)
        self.c_proj = nn.Linear(config.mlp_width, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (patches, width) to (patches, width)."""
        out: Tensor = self.c_proj(gelu(self.c_fc(hidden)))
        return out


class VisualBlock(nn.Module):
    """Attention and feed-forward, each added to what it was given."""

    def __init__(self, config: VisualConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, VISION_NORM_EPS)
        self.ln_2 = nn.LayerNorm(config.width, VISION_NORM_EPS)
        self.attn = VisualAttention(config)
        self.mlp = FeedForward(config)

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Map (patches, width) to (patches, width)."""
        hidden = hidden + self.attn(self.ln_1(hidden), lengths)
        out: Tensor = hidden + self.mlp(self.ln_2(hidden))
        return out


class VisualTransformer(nn.Module):
    """The tower's blocks, under the name they have in checkpoints."""

    def __init__(self, config: VisualConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(VisualBlock(config) for _ in range(config.layers))

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Map (patches, width) to (patches, width)."""
        for block in self.resblocks:
            hidden = block(hidden, lengths)
        return hidden


class CrossAttention(nn.Module):
    """Attention from queries to other keys and values, under torch's own parameter names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map (queries, width) to (pictures, queries, width).

        Key and value are (pictures, patches, width).
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            _by_head(linear(given, weight, bias))  # (…, heads, queries or patches, head_dim)
            for given, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        attended = scaled_dot_product_attention(query.expand(len(key), -1, -1, -1), key, value)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


def _by_head(hidden: Tensor) -> Tensor:
    """Cut (…, tokens, width) into (…, heads, tokens, head_dim)."""
    heads: Tensor = hidden.unflatten(-1, (-1, RESAMPLER_HEAD_DIM))  # type: ignore[no-untyped-call]
    return heads.transpose(-3, -2)


class Resampler(nn.Module):
    """One layer of cross-attention: learned queries look at all patches (Qwen-VL, section 2.1)."""

    def __init__(self, config: VisualConfig) -> None:
        super().__init__()
        width = config.output_dim
        table = sine_positions(math.isqrt(config.n_queries), width)
        self.query = nn.Parameter(torch.zeros(config.n_queries, width))
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.kv_proj = (
            nn.Identity() if config.width == width else nn.Linear(config.width, width, bias=False)
        )
        self.attn = CrossAttention(width)
        self.ln_q = nn.LayerNorm(width, VISION_NORM_EPS)
        self.ln_kv = nn.LayerNorm(width, VISION_NORM_EPS)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (pictures, patches, width) to (pictures, n_queries, output_dim)."""
        value = self.ln_kv(self.kv_proj(hidden))  # (pictures, patches, output_dim)
        key = value + stretch(self.pos_embed, math.isqrt(hidden.shape[1]))
        out: Tensor = self.attn(self.ln_q(self.query) + self.pos_embed, key, value)
        return out


class VisionTransformer(nn.Module):
    """Squares to tokens of the decoder's width."""

    def __init__(self, config: VisualConfig) -> None:
        super().__init__()
        self.config = config
        patch, width = config.patch_size, config.width
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.positional_embedding = nn.Parameter(torch.zeros(LEARNED_SIDE**2, width))
        self.ln_pre = nn.LayerNorm(width, VISION_NORM_EPS)
        self.transformer = VisualTransformer(config)
        self.attn_pool = Resampler(config)
        self.ln_post = nn.LayerNorm(config.output_dim, VISION_NORM_EPS)
        self.proj = nn.Parameter(torch.zeros(config.output_dim, config.output_dim))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map (pictures, 3, image_size, image_size) to (pictures*n_queries, output_dim)."""
        side, count = self.config.grid_side, len(pixel_values)
        hidden = self.conv1(pixel_values.to(self.conv1.weight.dtype))  # (pictures, width, y, x)
        hidden = hidden.flatten(2).transpose(1, 2)  # (pictures, patches, width)
        hidden = self.ln_pre(hidden + stretch(self.positional_embedding, side))
        hidden = self.transformer(hidden.flatten(0, 1), (side**2,) * count)  # (patches, width)
        pooled = self.attn_pool(hidden.unflatten(0, (count, -1)))  # (pictures, n_queries, …)
        out: Tensor = self.ln_post(pooled) @ self.proj
        return out.flatten(0, 1)  # (pictures*n_queries, output_dim)
