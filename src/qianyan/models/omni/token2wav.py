"""Qwen2.5-Omni's speech decoder as a checkpoint holds it: codec ids to mel frames to a waveform.

Source: Qwen2.5-Omni (arXiv 2503.20215, section 2.4). Frames are made in `dit.py`, the waveform in
`bigvgan.py`; `speech_decoder.py` speaks with both, piece by piece or at once. Everything is
float32, whatever the checkpoint holds: errors of shorter formats can be heard. A code is two mel
frames of 10 ms, 480 samples at 24 kHz.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qianyan.errors import ConfigError
from qianyan.models.config import build
from qianyan.models.flatten import json_object, stated
from qianyan.models.omni.bigvgan import BigVGAN, BigVGANConfig
from qianyan.models.omni.dit import DiT
from qianyan.models.omni.dit_layers import DiTConfig, dit_config
from qianyan.models.omni.reordered import ReorderedLinear
from qianyan.models.registry import read_config_json, unfilled
from qianyan.models.weights import load_weights, read_tensors

PREFIX = "token2wav."
OTHER_PARTS = ("thinker.", "talker.")
DERIVED = frozenset({"code2wav_dit_model.rotary_embed.inv_freq"})
"""What older tools save although it follows from the config."""


@dataclass(frozen=True, kw_only=True)
class Token2WavConfig:
    """Both parts, named as in config.json without the `_config`."""

    dit: DiTConfig
    bigvgan: BigVGANConfig

    def __post_init__(self) -> None:
        if self.dit.mel_dim != self.bigvgan.mel_dim:
            raise ConfigError(
                f"mel_dim is {self.dit.mel_dim} in dit_config and {self.bigvgan.mel_dim} in "
                "bigvgan_config; expected the same."
            )

    @property
    def samples_per_code(self) -> int:
        """Samples that one code becomes."""
        return self.dit.repeats * self.bigvgan.samples_per_frame


def token2wav_config(data: Mapping[str, Any]) -> Token2WavConfig:
    """Make the config from the config.json of a whole Qwen2.5-Omni.

    Raises ConfigError, also for a model whose config.json says that it does not speak.
    """
    whole = json_object(data, "token2wav_config")
    if not whole or data.get("enable_audio_output") is False:
        raise ConfigError(
            "config.json describes no token2wav_config, or audio output is off; this model cannot "
            "speak. Use a whole Qwen2.5-Omni."
        )
    bigvgan = stated(json_object(whole, "bigvgan_config"))
    dilations = bigvgan.get("resblock_dilation_sizes")
    if isinstance(dilations, list):
        rows = [tuple(row) if isinstance(row, list) else row for row in dilations]
        bigvgan["resblock_dilation_sizes"] = tuple(rows)
    return Token2WavConfig(
        dit=dit_config(json_object(whole, "dit_config")),
        bigvgan=build(BigVGANConfig, bigvgan, where="bigvgan_config"),
    )


class Token2Wav(nn.Module):
    """Both models under the checkpoint's names."""

    def __init__(self, config: Token2WavConfig) -> None:
        super().__init__()
        self.config = config
        self.code2wav_dit_model = DiT(config.dit)
        self.code2wav_bigvgan_model = BigVGAN(config.bigvgan)


def load_token2wav(folder: str | Path, *, device: str | torch.device = "cpu") -> Token2Wav:
    """Load the speech decoder of a Qwen2.5-Omni folder, in float32, ready to run.

    No weight of the other parts is read. Raises ConfigError, and CheckpointError when tensors are
    missing, unexpected or of another shape.
    """
    config = token2wav_config(read_config_json(folder))
    with unfilled():
        model = Token2Wav(config)
    load_weights(
        model,
        read_tensors(folder, skip=OTHER_PARTS),
        renames={PREFIX: ""},
        ignore=DERIVED,
        dtype=torch.float32,
        device=device,
    )
    for module in model.modules():
        if isinstance(module, ReorderedLinear):
            module.reorder()
    return model.eval()
