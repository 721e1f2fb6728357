"""The layers of the speech decoder's flow-matching transformer, and its config.

Source: Qwen2.5-Omni (arXiv 2503.20215, section 2.4) and DiT (arXiv 2212.09748). Tensors are
(halves, frames, hidden); `dit.py` says what the halves are.

What is unusual:
- frames attend within blocks of `block_size` frames. `look_backward_layers` also see the block
  before, `look_ahead_layers` the block behind: so an utterance can be computed stretch by stretch,
  each knowing what the one before it kept (`Stretch`);
- only the first head of each layer is rotated, and neighbouring channels turn together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad, scaled_dot_product_attention, silu

from qianyan.errors import ConfigError
from qianyan.models.config import (
    MAX_LAYERS,
    build,
    require_at_most,
    require_positive_integers,
    require_positive_numbers,
)
from qianyan.models.flatten import json_object, stated
from qianyan.models.omni.reordered import ReorderedLinear
from qianyan.models.omni.speaker_encoder import SpeakerEncoderConfig

NORM_EPS = 1e-6  # fixed in the code; no config.json states it
OTHER_NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
}
"""Our names, config.json's today, and those that older files have in their place."""

KeyValue = tuple[Tensor, Tensor]
Rope = tuple[Tensor, Tensor]  # cosine and sine, (frames, 1, head_dim/2)


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Hyper-parameters, named as in config.json; the defaults are those of the released models."""

    encoder: SpeakerEncoderConfig
    hidden_size: int = 1024
    num_hidden_layers: int = 22
    num_attention_heads: int = 16
    head_dim: int = 64
    ff_mult: int = 2
    emb_dim: int = 512
    enc_emb_dim: int = 192
    num_embeds: int = 8193
    repeats: int = 2
    block_size: int = 24
    look_ahead_layers: tuple[int, ...] = (10,)
    look_backward_layers: tuple[int, ...] = (0, 20)
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        require_positive_integers(
            self,
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "head_dim",
            "ff_mult",
            "emb_dim",
            "enc_emb_dim",
            "num_embeds",
            "repeats",
            "block_size",
        )
        require_at_most(self, "num_hidden_layers", MAX_LAYERS)
        require_positive_numbers(self, "rope_theta")
        if self.head_dim % 2 or self.block_size % self.repeats:
            raise ConfigError(
                f"head_dim is {self.head_dim} and block_size {self.block_size}; expected an even "
                f"number and a multiple of repeats ({self.repeats})."
            )
        for name in ("look_ahead_layers", "look_backward_layers"):
            layers = getattr(self, name)
            if not isinstance(layers, tuple) or any(type(layer) is not int for layer in layers):
                raise ConfigError(f"{name} is no list of integers; expected the layers' numbers.")

    @property
    def mel_dim(self) -> int:
        """Numbers of a mel frame."""
        return self.encoder.mel_dim

    @property
    def block_codes(self) -> int:
        """Codes of one block."""
        return self.block_size // self.repeats

    @property
    def blocks_ahead(self) -> int:
        """Blocks behind a block that its velocity depends on."""
        return len(set(self.look_ahead_layers) & set(range(self.num_hidden_layers)))


def dit_config(data: Mapping[str, Any]) -> DiTConfig:
    """Make the config from config.json's `dit_config`."""
    fields = stated(data)
    for ours, theirs in OTHER_NAMES.items():
        if ours not in fields and theirs in fields:
            fields[ours] = fields[theirs]
    theta = json_object(data, "rope_parameters").get("rope_theta")
    fields |= {} if theta is None else {"rope_theta": theta}
    fields["encoder"] = build(SpeakerEncoderConfig, fields, where="dit_config")
    return build(DiTConfig, fields, where="dit_config")


@dataclass(kw_only=True)
class Stretch:
    """Where frames of one pass stand in their utterance, and what it owes to the pass before.

    Args:
        start: index of the first frame, a multiple of block_size.
        final: frames, whole blocks, after which the next stretch begins.
        before: of each layer that looks back, key and value of the block before `start`; empty at
            the beginning of an utterance.
        after: filled by the pass: what the next stretch needs as its `before`.
    """

    start: int = 0
    final: int = 0
    before: Mapping[int, KeyValue] = field(default_factory=dict)
    after: dict[int, KeyValue] = field(default_factory=dict)


def windows(
    hidden: Tensor, block: int, reach: tuple[int, int], before: Tensor | None = None
) -> Tensor:
    """Give each block of (halves, frames, …) with its neighbours, (halves, blocks, window, …).

    `reach` counts the blocks before and behind. Zeros stand for frames that do not exist; `before`
    is the block before the first.
    """
    back, ahead = reach
    rest = -hidden.shape[1] % block
    if not (back or ahead or rest):
        return hidden.view(len(hidden), -1, block, *hidden.shape[2:])
    padded = pad(hidden, (0, 0, 0, 0, back * block, rest + ahead * block))
    if before is not None:
        padded[:, :block] = before
    return padded.unfold(1, (back + 1 + ahead) * block, block).movedim(-1, 2)


class DiTAttention(nn.Module):
    """Attention in both directions, inside blocks and to those next to them."""

    def __init__(self, config: DiTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.block, self.head_dim = layer, config.block_size, config.head_dim
        self.reach = (
            int(layer in config.look_backward_layers),
            int(layer in config.look_ahead_layers),
        )
        inner = config.num_attention_heads * config.head_dim
        self.to_q = ReorderedLinear(config.hidden_size, inner)
        self.to_k = ReorderedLinear(config.hidden_size, inner)
        self.to_v = ReorderedLinear(config.hidden_size, inner)
        self.to_out = nn.ModuleList([ReorderedLinear(inner, config.hidden_size)])

    def forward(self, hidden: Tensor, rope: Rope, stretch: Stretch) -> Tensor:
        """Map (halves, frames, hidden) to the same shape."""
        query, key, value = (
            part(hidden).unflatten(-1, (-1, self.head_dim))
            for part in (self.to_q, self.to_k, self.to_v)
        )  # (halves, frames, heads, head_dim)
        turn_first_head(query, rope)
        turn_first_head(key, rope)
        if self.reach[0] and stretch.final:
            last = slice(stretch.final - self.block, stretch.final)
            stretch.after[self.layer] = key[:, last].clone(), value[:, last].clone()
        attended = self._attend(query, key, value, stretch)
        out: Tensor = self.to_out[0](attended.flatten(-2))  # (halves, frames, hidden)
        return out

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, stretch: Stretch) -> Tensor:
        halves, frames = query.shape[:2]
        before = stretch.before.get(self.layer, (None, None)) if self.reach[0] else (None, None)
        query, key, value = (
            windows(each, self.block, reach, kept).flatten(0, 1).transpose(1, 2)
            for each, reach, kept in (
                (query, (0, 0), None),
                (key, self.reach, before[0]),
                (value, self.reach, before[1]),
            )
        )  # (halves*blocks, heads, window, head_dim)
        visible = self._visible(frames, before[0] is not None, query.device)
        mask = None if visible is None else visible.repeat(halves, 1)[:, None, None]
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        joined = attended.transpose(1, 2).reshape(halves, -1, *attended.shape[1::2])
        return joined[:, :frames]  # (halves, frames, heads, head_dim)

    def _visible(self, frames: int, has_before: bool, device: torch.device) -> Tensor | None:
        """Tell which keys of each block's window exist, (blocks, window); None for all."""
        back, ahead = self.reach
        if frames % self.block == 0 and not ahead and (has_before or not back):
            return None
        first = 0 if has_before else back * self.block
        total = (-(-frames // self.block) + back + ahead) * self.block
        place = torch.arange(total, device=device)
        exists = (place >= first) & (place < back * self.block + frames)
        return exists.unfold(0, (back + 1 + ahead) * self.block, self.block)


def turn_first_head(heads: Tensor, rope: Rope) -> None:
    """Turn the first of (halves, frames, heads, head_dim) by its positions, where it lies.

    Pairs are neighbours. Its even channels come first then, in query and key alike, which their
    product does not see.
    """
    cos, sin = rope
    even, odd = heads[:, :, :1, 0::2], heads[:, :, :1, 1::2]
    heads[:, :, :1] = torch.cat((even * cos - odd * sin, odd * cos + even * sin), dim=-1)


class AdaptiveNorm(nn.Module):
    """The map from a moment in time to shifts, scales and gates (adaLN-Zero)."""

    def __init__(self, hidden_size: int, count: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, count * hidden_size)
        self.count = count

    def forward(self, time: Tensor) -> Tensor:
        """Map (times, hidden) to (times, count, hidden)."""
        vectors: Tensor = self.linear(silu(time)).unflatten(-1, (self.count, -1))
        return vectors


def adapted(hidden: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise the last axis, without a weight, then scale and shift it by what time says."""
    return torch.addcmul(shift, layer_norm(hidden, hidden.shape[-1:], eps=NORM_EPS), 1 + scale)


class DiTFeedForward(nn.Module):
    """Two linear maps with GELU between them; the names leave room for it and for dropout."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        inner = config.hidden_size * config.ff_mult
        self.ff = nn.Sequential(
            ReorderedLinear(config.hidden_size, inner, gelu=True),
            nn.Identity(),
            nn.Identity(),
            ReorderedLinear(inner, config.hidden_size),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (halves, frames, hidden) to the same shape."""
        out: Tensor = self.ff(hidden)
        return out


class DiTLayer(nn.Module):
    """Attention and feed-forward, each gated and added to what it was given."""

    def __init__(self, config: DiTConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm = AdaptiveNorm(config.hidden_size, 6)
        self.attn = DiTAttention(config, layer)
        self.ff = DiTFeedForward(config)

    def forward(self, hidden: Tensor, moment: Tensor, rope: Rope, stretch: Stretch) -> Tensor:
        """Map (halves, frames, hidden) to the same shape; `moment` is (6, hidden)."""
        shift, scale, gate, ff_shift, ff_scale, ff_gate = moment
        attended = self.attn(adapted(hidden, shift, scale), rope, stretch)
        hidden = torch.addcmul(hidden, gate, attended)
        return torch.addcmul(hidden, ff_gate, self.ff(adapted(hidden, ff_shift, ff_scale)))
