"""Qwen2.5-Omni's ears: a Whisper encoder that listens in blocks of two seconds.

Source: Qwen2.5-Omni (arXiv 2503.20215, section 2.2); layers as in Whisper (arXiv 2212.04356).
A clip is cut into blocks of 2 x n_window mel frames. Inside the encoder a block knows nothing of
the others: convolutions, positions and attention all start anew. So blocks are encoded some at a
time, whatever the length of the clip, and what is heard of one stays right when more follows.

Against Whisper:
- positions restart at 0 in every block, and attention stays inside it;
- pairs of places are averaged at the end, so that one token stands for 40 ms;
- the norm comes after that, and a map to the decoder's width behind it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from qianyan.errors import ConfigError, InputError, quote
from qianyan.models.attention import segment_attention
from qianyan.models.config import (
    MAX_LAYERS,
    require_at_most,
    require_multiple,
    require_positive_integers,
)

BLOCKS_TOGETHER = 32
"""Blocks encoded in one go: some 50 MB of activations for the released sizes in float32."""
MAX_TIMESCALE = 10_000.0  # fixed in the code; no config.json states it
HALF_MARGIN = 1000  # how far below the largest float16 a layer's output is held


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """Audio encoder hyper-parameters, named as in config.json.

    The defaults are those of the released models, whose config.json files leave some out.
    """

    output_dim: int
    num_mel_bins: int = 128
    d_model: int = 1280
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    n_window: int = 100
    max_source_positions: int = 1500
    activation_function: str = "gelu"
    scale_embedding: bool = False

    def __post_init__(self) -> None:
        require_positive_integers(
            self,
            "output_dim",
            "num_mel_bins",
            "d_model",
            "encoder_layers",
            "encoder_attention_heads",
            "encoder_ffn_dim",
            "n_window",
            "max_source_positions",
        )
        require_at_most(self, "encoder_layers", MAX_LAYERS)
        require_multiple(self, "d_model", "encoder_attention_heads")
        if self.d_model % 2 or self.d_model < 4:
            raise ConfigError(f"d_model is {self.d_model}; expected an even number of at least 4.")
        if self.n_window % 2 or self.n_window > self.max_source_positions:
            raise ConfigError(
                f"n_window is {self.n_window}; expected an even number up to "
                f"max_source_positions ({self.max_source_positions})."
            )
        if self.activation_function != "gelu" or self.scale_embedding is not False:
            raise ConfigError(
                f"activation_function is {quote(self.activation_function)} and scale_embedding "
                f"{quote(self.scale_embedding)}; expected 'gelu' and false, as in every released "
                "model."
            )

    @property
    def block_frames(self) -> int:
        """Mel frames of one block: two seconds of 10 ms each."""
        return 2 * self.n_window

    def num_tokens(self, num_frames: int) -> int:
        """Count the tokens that a clip of so many mel frames takes; 0 for less than 3."""
        return (num_frames + 1) // 2 // 2


@lru_cache(maxsize=4)
@torch.inference_mode(mode=False)  # a cached inference tensor could not be used in training
def sinusoids(length: int, channels: int, device: torch.device) -> Tensor:
    """Give the (length, channels) float32 table of positions: sines, then cosines."""
    half = channels // 2
    inv_timescales = torch.exp(-math.log(MAX_TIMESCALE) / (half - 1) * torch.arange(half).float())
    angles = torch.arange(length).unsqueeze(1) * inv_timescales  # (length, channels/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(device)


class AudioAttention(nn.Module):
    """Attention in both directions inside blocks; the key has no bias (Whisper)."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.num_heads = config.encoder_attention_heads
        self.k_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Map (places, d_model) to (places, d_model); `lengths` are the blocks' places."""
        query, key, value = (
            part(hidden).unflatten(-1, (self.num_heads, -1))
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )  # (places, heads, head_dim)
        attended = segment_attention(query, key, value, lengths)
        out: Tensor = self.out_proj(attended.flatten(-2))  # (places, d_model)
        return out


class AudioLayer(nn.Module):
    """Attention and feed-forward, each added to what it was given."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.self_attn = AudioAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Map (places, d_model) to (places, d_model)."""
        hidden = hidden + self.self_attn(self.self_attn_layer_norm(hidden), lengths)
        hidden = hidden + self.fc2(gelu(self.fc1(self.final_layer_norm(hidden))))
        if hidden.dtype == torch.float16:
            most = torch.finfo(torch.float16).max - HALF_MARGIN
            hidden = hidden.clamp(-most, most)
        return hidden


class AudioEncoder(nn.Module):
    """Mel frames to tokens of the decoder's width, 25 a second."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, padding=1)
        self.audio_bos_eos_token = nn.Embedding(2, config.output_dim)  # saved, and never used
        self.layers = nn.ModuleList(AudioLayer(config) for _ in range(config.encoder_layers))
        self.ln_post = nn.LayerNorm(config.d_model)
        self.proj = nn.Linear(config.d_model, config.output_dim)

    def forward(self, input_features: Tensor, num_frames: Sequence[int]) -> Tensor:
        """Map the packed mel frames of all clips, (frames, mel), to (tokens, output_dim).

        `num_frames` are the clips' frame counts. Raises InputError when the two do not agree, or a
        clip has fewer than 3 frames, which make no token.
        """
        expected = (sum(num_frames), self.config.num_mel_bins)
        if tuple(input_features.shape) != expected or not num_frames:
            raise InputError(
                f"input_features is {tuple(input_features.shape)}; expected {expected} "
                f"for {len(num_frames)} sounds."
            )
        if self.config.num_tokens(min(num_frames)) < 1:
            raise InputError(
                f"A sound has {min(num_frames)} mel frames; expected at least 3 (30 ms)."
            )
        lengths = [length for count in num_frames for length in self._block_lengths(count)]
        blocks = torch.split(input_features.to(self.conv1.weight.dtype), lengths)
        # Devices that train together wait for one another at each layer: all run it once a pass.
        together = len(blocks) if self.training else BLOCKS_TOGETHER
        return torch.cat(
            [
                self._encode(blocks[start : start + together])
                for start in range(0, len(blocks), together)
            ]
        )

    def _block_lengths(self, num_frames: int) -> list[int]:
        """Cut one clip into blocks; the last may be shorter."""
        whole, rest = divmod(num_frames, self.config.block_frames)
        return [self.config.block_frames] * whole + [rest] * (rest > 0)

    def _encode(self, blocks: Sequence[Tensor]) -> Tensor:
        """Map some blocks, each (frames, mel), to (tokens, output_dim)."""
        places = [self._convolve(block) for block in blocks]
        lengths = [len(own) for own in places]
        hidden = torch.cat(places)  # (places, d_model)
        for layer in self.layers:
            hidden = layer(hidden, lengths)
        pairs = [own[: len(own) // 2 * 2] for own in torch.split(hidden, lengths)]
        pooled = torch.cat(pairs).view(-1, 2, self.config.d_model).mean(dim=1)  # (tokens, d_model)
        out: Tensor = self.proj(self.ln_post(pooled))
        return out

    def _convolve(self, block: Tensor) -> Tensor:
        """Map one block (frames, mel) to its places (frames/2, d_model), which know where they are.

        One block at a time: what lies between the convolutions stays small.
        """
        hidden = gelu(self.conv1(block.t().unsqueeze(0)))  # (1, d_model, frames)
        hidden = gelu(self.conv2(hidden)).squeeze(0).t()  # (places, d_model)
        table = sinusoids(self.config.n_window, self.config.d_model, hidden.device)
        return hidden + table[: len(hidden)].to(hidden.dtype)
