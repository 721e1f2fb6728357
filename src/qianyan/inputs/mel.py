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
SECONDS_PER_BLOCK = 2
"""What a model's ears take in at once: a block's features depend on its own frames alone."""
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
    mel = _log_power(_padded(samples, config), config.num_frames(len(samples)), config)
    return _scaled(mel, mel.max())


class GrowingMel:
    """Log-mel frames of a sound that is still being made, by blocks that do not change any more.

    A block is complete when the samples are there that its last window reaches. Its floor is fixed
    then, by the loudest place up to its end: a louder one later raises the floor from its own block
    on. So the frames are `log_mel`'s where the loudest place lies in the first block. Otherwise
    they differ in what lies more than RANGE_DECADES below the loudest place of the whole, and there
    by a quarter of the decades at most between that place and the loudest one heard before.
    """

    def __init__(self, config: MelConfig) -> None:
        self.blocks: list[np.ndarray] = []
        self._config = config
        self._block_frames = SECONDS_PER_BLOCK * config.sampling_rate // config.hop_length
        self._waiting = np.zeros(0, dtype=np.float32)  # from the next block's first window on
        self._num_samples = 0
        self._loudest = -math.inf

    def add(self, samples: np.ndarray) -> None:
        """Take the next float32 samples."""
        self._num_samples += len(samples)
        self._waiting = np.concatenate([self._waiting, samples])
        step = self._block_frames * self._config.hop_length
        most = step - self._config.hop_length + self._config.n_fft
        while len(self._waiting) >= most - (0 if self.blocks else self._config.n_fft // 2):
            if not self.blocks:
                self._mirror()
            self._keep(self._waiting, self._block_frames)
            self._waiting = self._waiting[step:]

    def finish(self) -> np.ndarray:
        """Give the (frames, feature_size) of all of it; nothing can be added any more."""
        left = self._config.num_frames(self._num_samples) - self._block_frames * len(self.blocks)
        if not self.blocks:
            self._waiting = _padded(self._waiting, self._config)
        if left:
            silence = np.zeros(self._config.n_fft, dtype=np.float32)
            self._keep(np.concatenate([self._waiting, silence]), left)
        return np.concatenate(self.blocks)

    def _mirror(self) -> None:
        head = self._waiting[self._config.n_fft // 2 : 0 : -1]
        self._waiting = np.concatenate([head, self._waiting])

    def _keep(self, padded: np.ndarray, count: int) -> None:
        mel = _log_power(padded, count, self._config)
        self._loudest = max(self._loudest, float(mel.max()))
        self.blocks.append(_scaled(mel, self._loudest))


def _log_power(padded: np.ndarray, count: int, config: MelConfig) -> np.ndarray:
    """Give the logarithms (count, feature_size) of the power in each band of each window."""
    windows = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)
    windows = windows[:: config.hop_length][:count]  # (frames, n_fft), not copied
    shape = np.hanning(config.n_fft + 1)[:-1]
    filters = mel_filters(config)
    mel = np.empty((count, config.feature_size), dtype=np.float32)
    for start in range(0, count, FRAMES_TOGETHER):
        spectrum = np.fft.rfft(windows[start : start + FRAMES_TOGETHER] * shape)
        power = spectrum.real**2 + spectrum.imag**2  # (frames, frequencies)
        mel[start : start + FRAMES_TOGETHER] = np.log10(np.maximum(power @ filters, LEAST_POWER))
    return mel


def _scaled(mel: np.ndarray, loudest: float) -> np.ndarray:
    """Raise what is too far below the loudest place, and bring all to a model's range, in place."""
    np.maximum(mel, loudest - RANGE_DECADES, out=mel)
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
