"""The flow-matching transformer (DiT) that turns Qwen2.5-Omni's codec ids into mel frames.

Source: Qwen2.5-Omni (arXiv 2503.20215, section 2.4), DiT (arXiv 2212.09748) and F5-TTS
(arXiv 2410.06885), whose shape it has. It gives the velocity of noisy mel frames at a time between
0 and 1; `flow.py` follows that velocity from noise to speech.

Tensors are (halves, frames, hidden). The halves are the two that guidance compares: the first
knows codes and voice, the second knows neither. Frames are those of one utterance.

What neither the frames' noise nor their time changes is computed once: the voice, what is added to
the noisy frames (`know`), and what each moment in time does to the layers (`modulate`).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from qianyan.models.omni.dit_layers import (
    AdaptiveNorm,
    DiTConfig,
    DiTLayer,
    Rope,
    Stretch,
    adapted,
)
from qianyan.models.omni.speaker_encoder import SpeakerEncoder

TIME_CHANNELS = 256  # these are fixed in the code; no config.json states them
TIME_SCALE = 1000.0
MAX_TIMESCALE = 10_000.0
NULL_CODE = 0  # stands for "no code is known"


class Voice(NamedTuple):
    """Who speaks: what was heard of it (halves, enc_dim), and its vector (halves, enc_emb_dim)."""

    heard: Tensor
    cond: Tensor


class Modulation(NamedTuple):
    """What one moment in time does: to each layer (layers, 6, hidden), to the end (2, hidden)."""

    layers: Tensor
    final: Tensor


class TimeEmbedding(nn.Module):
    """Moments between 0 and 1 as vectors: sinusoids, then two linear maps."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(
            nn.Linear(TIME_CHANNELS, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, times: Tensor) -> Tensor:
        """Map (times,) to (times, hidden)."""
        half = TIME_CHANNELS // 2
        steps = torch.arange(half, device=times.device, dtype=torch.float32)
        inv_timescales = torch.exp(-math.log(MAX_TIMESCALE) / (half - 1) * steps)
        angles = TIME_SCALE * times.unsqueeze(1) * inv_timescales  # (times, half)
        out: Tensor = self.time_mlp(torch.cat((angles.sin(), angles.cos()), dim=-1))
        return out


class CodecEmbedding(nn.Module):
    """Codec ids as vectors, each for as many mel frames as a code lasts."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.repeats = config.repeats
        self.codec_embed = nn.Embedding(config.num_embeds + 1, config.emb_dim)

    def forward(self, codes: Tensor) -> Tensor:
        """Map (halves, codes) to (halves, frames, emb_dim)."""
        vectors: Tensor = self.codec_embed(codes)
        return vectors.repeat_interleave(self.repeats, dim=1)


class InputEmbedding(nn.Module):
    """Noisy mel frames with what is known of the speech, as vectors of the transformer's width."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.mel_dim = config.mel_dim
        known = config.encoder.enc_dim + config.emb_dim + config.enc_emb_dim
        self.proj = nn.Linear(config.mel_dim + known, config.hidden_size)
        self.spk_encoder = SpeakerEncoder(config.encoder)

    def know(self, embedded: Tensor, voice: Voice) -> Tensor:
        """Map embedded codes (halves, frames, emb_dim) to what is added to the noisy frames."""
        heard, cond = (each.unsqueeze(1).expand(-1, embedded.shape[1], -1) for each in voice)
        joined = torch.cat((heard, embedded, cond), dim=-1)
        return linear(joined, self.proj.weight[:, self.mel_dim :], self.proj.bias)

    def forward(self, noisy: Tensor, known: Tensor) -> Tensor:
        """Map (frames, mel) to (halves, frames, hidden)."""
        return known + linear(noisy, self.proj.weight[:, : self.mel_dim])


class DiT(nn.Module):
    """Velocities of noisy mel frames, with and without knowing what is said and by whom."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.time_embed = TimeEmbedding(config.hidden_size)
        self.text_embed = CodecEmbedding(config)
        self.input_embed = InputEmbedding(config)
        self.transformer_blocks = nn.ModuleList(
            DiTLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm_out = AdaptiveNorm(config.hidden_size, 2)
        self.proj_out = nn.Linear(config.hidden_size, config.mel_dim)

    def listen(self, ref_mel: Tensor, cond: Tensor) -> Voice:
        """Take in a voice: mel frames of it (frames, mel), and its vector (enc_emb_dim,)."""
        heard = self.input_embed.spk_encoder(torch.stack((ref_mel, torch.zeros_like(ref_mel))))
        return Voice(heard, torch.stack((cond, torch.zeros_like(cond))))

    def know(self, codes: Tensor, voice: Voice) -> Tensor:
        """Give what is known of the frames of (codes,), (halves, frames, hidden)."""
        both = torch.stack((codes, torch.full_like(codes, NULL_CODE)))
        return self.input_embed.know(self.text_embed(both), voice)

    def modulate(self, times: Tensor) -> list[Modulation]:
        """Give what each of (times,) does."""
        moments = self.time_embed(times)
        layers = torch.stack([layer.attn_norm(moments) for layer in self._layers], dim=1)
        return [Modulation(*each) for each in zip(layers, self.norm_out(moments), strict=True)]

    def forward(
        self, noisy: Tensor, known: Tensor, modulation: Modulation, stretch: Stretch
    ) -> Tensor:
        """Map noisy frames (frames, mel) to their velocities (halves, frames, mel)."""
        hidden = self.input_embed(noisy, known)
        rope = self._rope(stretch.start, len(noisy), noisy.device)
        for layer, moment in zip(self._layers, modulation.layers, strict=True):
            hidden = layer(hidden, moment, rope, stretch)
        scale, shift = modulation.final
        velocity: Tensor = self.proj_out(adapted(hidden, shift, scale))
        return velocity

    @property
    def _layers(self) -> list[DiTLayer]:
        return list(self.transformer_blocks)  # type: ignore[arg-type]

    def _rope(self, start: int, frames: int, device: torch.device) -> Rope:
        """Give cosine and sine of the frames' positions."""
        head_dim = self.config.head_dim
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        places = torch.arange(start, start + frames, dtype=torch.float32, device=device)
        angles = places.view(-1, 1, 1) * self.config.rope_theta**-exponents
        return angles.cos(), angles.sin()
