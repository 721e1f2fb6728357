"""What somebody says to a model, and shows it meanwhile, as a part of a message that grows.

Sound and frames are cut alike, by blocks of two seconds: a block has 50 tokens of sound and one
temporal patch, behind each other in the prompt (`interleaving.py`). So the part with the complete
blocks is a beginning of every later one, token by token, and what the model computes for it while
somebody still speaks is known when they end.
"""

import math
from typing import Any

import numpy as np
from PIL import Image

from qianyan.errors import InputError
from qianyan.inputs.frames import VideoConfig, VideoRequest, fit_frames
from qianyan.inputs.growing import GrowingSound, SoundSoFar
from qianyan.inputs.images import upright_rgb
from qianyan.inputs.media import MediaLimits
from qianyan.inputs.mel import SECONDS_PER_BLOCK, MelConfig

FRAMES_PER_SECOND = 1
"""Two for each block of sound, which make one temporal patch."""
FRAME_TOKENS = 256
"""Most tokens of two frames; a turn of three minutes keeps within what a video may take."""


class Turn:
    """Takes the sound of a turn, and frames beside it; for one thread at a time."""

    def __init__(
        self,
        sounds: MelConfig | None,
        videos: VideoConfig | None = None,
        *,
        limits: MediaLimits | None = None,
    ) -> None:
        """Start with nothing; `sounds` and `videos` are the processor's, as are the limits.

        Raises InputError for a model that does not hear.
        """
        if sounds is None:
            raise InputError("This model does not hear; expected one that does to speak with it.")
        self._sound = GrowingSound(sounds, (limits or MediaLimits()).audio)
        self._videos = videos
        self._frames: list[Image.Image] = []
        self._request = VideoRequest()
        self._size: tuple[int, int] | None = None
        self._latest: Image.Image | None = None

    @property
    def duration_s(self) -> float:
        """Seconds of sound that have come."""
        return self._sound.duration_s

    @property
    def num_blocks(self) -> int:
        """Count the blocks of two seconds that are complete."""
        return self._sound.num_blocks

    def add_sound(self, samples: np.ndarray, rate_hz: int) -> None:
        """Take the next float32 samples, one channel with a full scale of 1.

        Raises MediaError too_long and too_large.
        """
        self._sound.add(samples, rate_hz)

    def add_frame(self, image: Image.Image) -> None:
        """Take what is seen now that the sound has got so far.

        Of each second the first is kept, and where none comes the last one before stands in. All
        take the size that the first one is seen in. Raises InputError for a model without videos.
        """
        if self._videos is None:
            raise InputError("This model sees no videos; expected sound only.")
        rgb = upright_rgb(image)
        if self._size is None:
            self._size = self._fit(rgb, self._videos)
        seen = rgb.resize(self._size, self._videos.patches.resample)
        place = math.floor(self.duration_s * FRAMES_PER_SECOND)
        self._fill(place, self._latest or seen)
        self._fill(place + 1, seen)
        self._latest = seen

    def part_so_far(self) -> dict[str, Any] | None:
        """Give the complete blocks as a content part; None before the first."""
        sound = self._sound.so_far()
        return None if sound is None else self._part(sound, SECONDS_PER_BLOCK * self.num_blocks)

    def finish(self) -> dict[str, Any]:
        """Give all of it as a content part; nothing can be added any more.

        Raises MediaError too_short for less sound than makes a token.
        """
        sound = self._sound.finish()
        return self._part(sound, self.duration_s)

    def _part(self, sound: SoundSoFar, seconds: float) -> dict[str, Any]:
        if self._latest is None:
            return {"type": "audio", "audio": sound}
        count = math.ceil(seconds * FRAMES_PER_SECOND)
        self._fill(count, self._latest)
        return {
            "type": "video",
            "video": self._frames[:count],
            "fps": float(FRAMES_PER_SECOND),
            "max_pixels": self._request.max_pixels,
            "audio": sound,
        }

    def _fill(self, count: int, image: Image.Image) -> None:
        self._frames += [image] * (count - len(self._frames))

    def _fit(self, rgb: Image.Image, videos: VideoConfig) -> tuple[int, int]:
        """Choose the size of all frames by the first, raising what `fit_frames` does."""
        most = min(FRAME_TOKENS * videos.token_pixels, videos.max_pixels)
        self._request = VideoRequest(max_pixels=most, where="frame")
        size, _ = fit_frames(rgb.size, videos.step, self._request, videos)
        return size
