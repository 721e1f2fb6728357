"""Rotary position embeddings: three axes for text and pictures, two axes inside the tower.

Source: RoPE (arXiv 2104.09864), M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1) and YaRN
(arXiv 2309.00071). Angles, cosines and sines are float32 whatever the model's dtype, because
positions beyond 256 are not whole numbers in bfloat16.

Rotation is half-split: element i of a head turns together with element i + head_dim/2, so cosines
and sines carry half a head, `(tokens, 1, head_dim/2)`, ready to broadcast over heads.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from qianyan.errors import ConfigError, quote
from qianyan.models import native_pointwise
from qianyan.models.config import require_positive_numbers

VISION_ROPE_THETA = 10_000.0  # fixed in the towers' code; no released config.json states it

ROTATED_TOGETHER = 512
"""Tokens that a CPU turns at a time: what lies between the steps stays in its cache."""

Rope = tuple[Tensor, Tensor]  # cosine and sine


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """The `rope_scaling` object of config.json.

    `mrope_section` says how many of a head's frequencies follow time, height and width, for every
    `rope_type`; None is a text model with one axis. The other fields belong to "yarn".
    """

    mrope_section: tuple[int, ...] | None = None
    rope_type: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        if self.rope_type not in ("default", "yarn"):
            raise ConfigError(f"rope_type is {quote(self.rope_type)}; expected default or yarn.")
        section = self.mrope_section
        if section is not None and (
            not isinstance(section, tuple) or [type(count) for count in section] != [int] * 3
        ):
            raise ConfigError(f"mrope_section is {quote(section)}; expected three integers.")
        require_positive_numbers(self, "factor", "beta_fast", "beta_slow")
        if self.rope_type == "yarn" and not self.original_max_position_embeddings:
            raise ConfigError(
                "rope_scaling of type yarn has no original_max_position_embeddings; "
                "expected the length the model was trained on, for example 32768."
            )

    @property
    def scale(self) -> float:
        """Factor on cosine and sine; scores grow by its square (YaRN, section 3.4)."""
        if self.rope_type == "default":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1.0 else 1.0


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)  # a cached inference tensor could not be used in training
def inverse_frequencies(
    head_dim: int, rope_theta: float, scaling: RopeScaling, device: torch.device
) -> Tensor:
    """Give the (head_dim/2,) float32 angles by which one position turns each pair of elements."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    inv_freq = rope_theta**-exponents
    if scaling.rope_type == "default":
        return inv_freq
    return inv_freq * _yarn_ramp(head_dim, rope_theta, scaling, device)


def _yarn_ramp(
    head_dim: int, rope_theta: float, scaling: RopeScaling, device: torch.device
) -> Tensor:
    """Blend 1 (fast pairs, kept) into 1/factor (slow pairs, interpolated); (head_dim/2,)."""
    length = scaling.original_max_position_embeddings
    assert length is not None

    def pair_with_rotations(rotations: float) -> float:
        return head_dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(rope_theta))

    low = max(math.floor(pair_with_rotations(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_with_rotations(scaling.beta_slow)), head_dim - 1)
    pairs = torch.arange(head_dim // 2, dtype=torch.float32, device=device)
    slow = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
    return (1 - slow) + slow / scaling.factor


def text_rope(position_ids: Tensor, inv_freq: Tensor, scaling: RopeScaling) -> Rope:
    """Give cosine and sine for (axes, tokens) positions, (tokens, 1, head_dim/2).

    With three axes (time, height, width) each drives its own section of the frequencies; where the
    three agree, as in text, this is ordinary RoPE.
    """
    angles = position_ids.float().unsqueeze(-1) * inv_freq  # (axes, tokens, head_dim/2)
    picked = angles[0]
    if scaling.mrope_section is not None:
        sections = torch.split(angles, list(scaling.mrope_section), dim=-1)
        picked = torch.cat([section[axis] for axis, section in enumerate(sections)], dim=-1)
    picked = picked.unsqueeze(1)  # (tokens, 1, head_dim/2)
    return picked.cos() * scaling.scale, picked.sin() * scaling.scale


def axial_rope(coordinates: Tensor, head_dim: int) -> Rope:
    """Give cosine and sine for (patches, 2) rows and columns: half of the pairs each."""
    exponents = torch.arange(0, head_dim, 4, dtype=torch.float32, device=coordinates.device)
    inv_freq = VISION_ROPE_THETA ** -(exponents / head_dim)  # (head_dim/4,)
    angles = coordinates.float().unsqueeze(-1) * inv_freq  # (patches, 2, head_dim/4)
    angles = angles.flatten(1).unsqueeze(1)  # (patches, 1, head_dim/2)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (tokens, heads, head_dim) by its positions, in float32; the dtype stays."""
    if native_pointwise.takes(heads):
        return native_pointwise.rotate(heads, cos, sin)
    if heads.device.type == "cpu" and len(heads) > ROTATED_TOGETHER:
        pieces = (torch.split(each, ROTATED_TOGETHER) for each in (heads, cos, sin))
        return torch.cat([_turn(*piece) for piece in zip(*pieces, strict=True)])
    return _turn(heads, cos, sin)


def _turn(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(heads.dtype)
