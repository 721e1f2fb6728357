"""From a waveform to what a model hears: log-mel frames, one for each 10 ms.

Source: Whisper (arXiv 2212.04356, section 2.2), with the numbers of Qwen2.5-Omni (arXiv 2503.20215,
section 2.2). The released feature extractor pads every sound with silence to 300 seconds and cuts
what is longer. Here nothing is cut: a longer sound is one sound, whose loudest place sets the floor
of all of it; and only as much silence is computed as the last frames reach.
"""

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Self

import numpy as np

from qianyan.errors import ConfigError, quote

FRAMES_TOGETHER = 4096
"""Frames transformed in one go: some 15 MB of windows."""
LEAST_POWER = 1e-10
RANGE_DECADES = 8.0
MIN_FRAMES = 3
"""What one token takes; a shorter sound has none."""


@dataclass(frozen=True, kw_only=True)
class MelConfig:
    """How a checkpoint hears, in the names of preprocessor_config.json.

    Args:
        feature_size: mel bands.
        sampling_rate: samples a second.
        n_fft: samples of one window.
        hop_length: samples between two windows.
        n_samples: of the longest sound that the released extractor does not cut.
    """

    feature_size: int = 128
    sampling_rate: int = 16_000
    n_fft: int = 400
    hop_length: int = 160
    n_samples: int = 4_800_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(
                    f"preprocessor_config.json has {field.name} {quote(value)}; expected a whole "
                    "number of 1 or more."
                )
        if self.n_fft % 2 or not self.feature_size <= self.n_fft < self.n_samples:
            raise ConfigError(
                f"preprocessor_config.json has n_fft {self.n_fft}, feature_size "
                f"{self.feature_size} and n_samples {self.n_samples}; expected an even n_fft "
                "between the two others."
            )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Make the config of preprocessor_config.json's object, or of its part about sound."""
        if data.get("dither") or data.get("padding_value"):
            raise ConfigError(
                "preprocessor_config.json asks for dither or for padding other than silence; "
                "expected 0 for both, as in every released model."
            )
        names = {field.name for field in fields(cls)}
        return cls(**{name: data[name] for name in names if data.get(name) is not None})

    def num_frames(self, num_samples: int) -> int:
        """Count the frames of a waveform."""
        return -(-num_samples // self.hop_length)

    @staticmethod
    def num_tokens(num_frames: int) -> int:
        """Count the tokens that frames become: a pair twice over, the last odd ones dropped."""
        return (num_frames + 1) // 2 // 2


def log_mel(samples: np.ndarray, config: MelConfig) -> np.ndarray:
    """Turn float32 samples between -1 and 1 into (frames, feature_size) float32."""
    count = config.num_frames(len(samples))
    padded = _padded(samples, config)
    windows = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)
    windows = windows[:: config.hop_length][:count]  # (frames, n_fft), not copied
    shape = np.hanning(config.n_fft + 1)[:-1]
    filters = mel_filters(config)
    mel = np.empty((count, config.feature_size), dtype=np.float32)
    for start in range(0, count, FRAMES_TOGETHER):
        spectrum = np.fft.rfft(windows[start : start + FRAMES_TOGETHER] * shape)
        power = spectrum.real**2 + spectrum.imag**2  # (frames, frequencies)
        mel[start : start + FRAMES_TOGETHER] = np.log10(np.maximum(power @ filters, LEAST_POWER))
    np.maximum(mel, mel.max() - RANGE_DECADES, out=mel)
    mel += 4.0
    mel /= 4.0
    return mel


def _padded(samples: np.ndarray, config: MelConfig) -> np.ndarray:
    """Mirror both ends of the waveform; at its end the silence behind it comes first.

    The silence fills the released extractor's 300 seconds, and that end is what is mirrored.
    """
    room, reach = config.n_samples - len(samples), config.n_fft // 2
    silence = np.zeros(min(room, config.n_fft) if room >= 0 else config.n_fft, samples.dtype)
    # Of a long sound one copy is enough: the ends are mirrored apart.
    head = np.concatenate([samples[: reach + 1], silence])[reach:0:-1]
    tail = np.concatenate([samples[-reach - 1 :], silence])[-2 : -reach - 2 : -1]
    return np.concatenate([head, samples, silence, tail])


@lru_cache(maxsize=4)
def mel_filters(config: MelConfig) -> np.ndarray:
    """Give the (frequencies, feature_size) triangles of Slaney's scale, each of area one."""
    highest = config.sampling_rate / 2
    frequencies = np.linspace(0, highest, config.n_fft // 2 + 1)
    corners = _to_hertz(np.linspace(0.0, _to_mel(highest), config.feature_size + 2))
    widths = np.diff(corners)
    slopes = corners - frequencies[:, None]  # (frequencies, feature_size + 2)
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    filters: np.ndarray = triangles * (2 / (corners[2:] - corners[:-2]))
    return filters


def _to_mel(hertz: float) -> float:
    """Slaney's scale: even steps up to 1000 Hz, even ratios above."""
    if hertz < 1000:
        return 3 * hertz / 200
    return 15 + math.log(hertz / 1000) * 27 / math.log(6.4)


def _to_hertz(mel: np.ndarray) -> np.ndarray:
    ratio = 1000 * np.exp(math.log(6.4) / 27 * (mel - 15))
    return np.where(mel >= 15, ratio, 200 * mel / 3)
