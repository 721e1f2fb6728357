"""A sound that is heard while it is made: what there is of it so far, by blocks that stay.

A file is a sound as a whole, and its loudest place sets one floor for all of it (`log_mel`). Who
listens to somebody speaking cannot wait for that place: here each block of two seconds keeps the
floor that it had when it was complete (`GrowingMel`). So what was computed for a part holds for
the whole, and the same sound gives the same frames however it came in.
"""

from dataclasses import dataclass

import numpy as np

from qianyan.errors import MediaError
from qianyan.inputs.mel import SECONDS_PER_BLOCK, GrowingMel, MelConfig
from qianyan.inputs.sound import AudioLimits, HeardAudio
from qianyan.inputs.waveform import Levels, RateChange


@dataclass(frozen=True, eq=False)
class SoundSoFar:
    """What is heard of a sound: log-mel frames (frames, feature_size) float32, and their record.

    In process, an `audio` part of a message may hold one, and so may a list of frames beside it.
    """

    frames: np.ndarray
    record: HeardAudio


class GrowingSound:
    """Takes a sound piece by piece; for one thread at a time."""

    def __init__(self, config: MelConfig, limits: AudioLimits | None = None) -> None:
        """Start with silence of no length; `config` is the model's."""
        self._config, self._limits = config, limits or AudioLimits()
        self._mel, self._levels = GrowingMel(config), Levels()
        self._rate = RateChange(config.sampling_rate)
        self._num_samples = 0

    @property
    def duration_s(self) -> float:
        """Seconds that have come, as far as they have changed their rate."""
        return self._num_samples / self._config.sampling_rate

    @property
    def num_blocks(self) -> int:
        """Count the blocks of two seconds that are complete."""
        return len(self._mel.blocks)

    def add(self, samples: np.ndarray, rate_hz: int) -> None:
        """Take the next float32 samples, one channel with a full scale of 1.

        Raises MediaError too_large for a rate, and too_long for a sound, beyond the limits.
        """
        if not 0 < rate_hz <= self._limits.max_rate_hz:
            raise MediaError(
                f"The sound has {rate_hz} samples a second; expected 1 to "
                f"{self._limits.max_rate_hz}.",
                code="too_large",
            )
        if self.duration_s + len(samples) / rate_hz > self._limits.max_duration_s:
            raise MediaError(
                f"The sound is longer than {self._limits.max_duration_s / 60:g} minutes, the most "
                "that is heard at once.",
                code="too_long",
            )
        samples = np.nan_to_num(samples.astype(np.float32, copy=False)).clip(-1, 1)
        self._levels.watch(samples[None], rate_hz)
        self._take(self._rate.change(samples, rate_hz))

    def so_far(self) -> SoundSoFar | None:
        """Give the complete blocks; None before the first."""
        if not self._mel.blocks:
            return None
        seconds = float(SECONDS_PER_BLOCK * self.num_blocks)
        return SoundSoFar(np.concatenate(self._mel.blocks), self._record(seconds))

    def finish(self) -> SoundSoFar:
        """Give all of it; nothing can be added any more.

        Raises MediaError too_short for less than makes a token.
        """
        self._take(self._rate.finish())
        if self.duration_s < self._limits.min_duration_s:
            raise MediaError(
                f"The sound is {self.duration_s:.4f} seconds long; expected at least "
                f"{self._limits.min_duration_s:g}.",
                code="too_short",
            )
        return SoundSoFar(self._mel.finish(), self._record(self.duration_s))

    def _take(self, pieces: list[np.ndarray]) -> None:
        for piece in pieces:
            self._num_samples += len(piece)
            self._mel.add(piece)

    def _record(self, duration_s: float) -> HeardAudio:
        levels = self._levels
        return HeardAudio(duration_s, levels.rate_hz, levels.channels, levels.notes())
