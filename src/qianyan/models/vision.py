"""What the vision towers of Qwen2-VL and Qwen2.5-VL share: patches, attention, rope, merging.

Pictures arrive as flat patches, `(patches, channels*time*height*width)`, in merge-block order:
the 2 x 2 patches that become one token lie next to each other ("a unit"). A grid is (t, h, w) in
patches. Source: Qwen2-VL (arXiv 2409.12191), section 2.1.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from qianyan.models.attention import segment_attention
from qianyan.models.positions import Grid
from qianyan.models.rope import Rope, rotate

VISION_NORM_EPS = 1e-6  # fixed in the towers' code; no config.json states it


class PatchEmbed(nn.Module):
    """One linear map per patch, stored as the 3-D convolution it is equal to."""

    def __init__(self, hidden_size: int, kernel: tuple[int, int, int], in_channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, hidden_size, kernel, bias=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map (patches, channels*time*height*width) to (patches, hidden)."""
        return linear(pixel_values.to(self.proj.weight.dtype), self.proj.weight.flatten(1))


class VisionAttention(nn.Module):
    """Bidirectional attention inside segments."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor, rope: Rope, lengths: Sequence[int]) -> Tensor:
        """Map (patches, hidden) to (patches, hidden); `lengths` are the segments' patch counts."""
        qkv = self.qkv(hidden).unflatten(-1, (3, self.num_heads, -1))  # (patches, 3, heads, …)
        query, key, value = qkv.unbind(1)  # (patches, heads, head_dim)
        attended = segment_attention(rotate(query, *rope), rotate(key, *rope), value, lengths)
        out: Tensor = self.proj(attended.flatten(-2))  # (patches, hidden)
        return out


class SplitVisionAttention(nn.Module):
    """The same with a matrix each for query, key and value, as Qwen2.5-Omni's checkpoints have."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(hidden_size, hidden_size)
        self.k = nn.Linear(hidden_size, hidden_size)
        self.v = nn.Linear(hidden_size, hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor, rope: Rope, lengths: Sequence[int]) -> Tensor:
        """Map (patches, hidden) to (patches, hidden); `lengths` are the segments' patch counts."""
        query, key, value = (
            part(hidden).unflatten(-1, (self.num_heads, -1)) for part in (self.q, self.k, self.v)
        )  # (patches, heads, head_dim)
        attended = segment_attention(rotate(query, *rope), rotate(key, *rope), value, lengths)
        out: Tensor = self.proj(attended.flatten(-2))  # (patches, hidden)
        return out


class PatchMerger(nn.Module):
    """Join the patches of each unit into one token of the decoder's width.

    `ln_q` is the norm of the tower's kind for one patch.
    """

    def __init__(self, ln_q: nn.Module, hidden_size: int, unit: int, out_hidden_size: int) -> None:
        super().__init__()
        self.unit = unit
        width = hidden_size * unit
        self.ln_q = ln_q
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, out_hidden_size)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (patches, hidden) to (units, out_hidden)."""
        merged = self.ln_q(hidden).unflatten(0, (-1, self.unit)).flatten(1)  # (units, unit*hidden)
        out: Tensor = self.mlp(merged)
        return out


@lru_cache(maxsize=64)  # a folder of photos has few sizes; the tensors are small
@torch.inference_mode(mode=False)  # a cached inference tensor could not be used in training
def frame_coordinates(grid: Grid, *, merge: int) -> Tensor:
    """Give the (row, column) of each patch of one frame, by unit: (units, merge², 2)."""
    _, h, w = grid
    rows, columns = h // merge, w // merge
    coordinates = torch.cartesian_prod(torch.arange(h), torch.arange(w))  # (h*w, 2)
    coordinates = coordinates.view(rows, merge, columns, merge, 2).transpose(1, 2)
    return coordinates.reshape(rows * columns, merge**2, 2)
