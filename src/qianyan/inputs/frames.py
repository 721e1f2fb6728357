"""What may be asked of a video, within which limits, and the size of its frames.

The keys and the rule for the size are those of the checkpoints' authors (Qwen2-VL, section 2.1;
qwen-vl-utils 0.0.14). All frames of a clip share one size. Everything here is arithmetic.

Differences from qwen-vl-utils, on purpose:
- The cap on a clip's tokens holds always. There the least area of a frame wins over it: 768
  frames come to 384 * 128 * 1.05 tokens whatever total was asked. Here frames get smaller.
- Frames given as a list are sized in the same blocks as a file's; there in blocks twice as large.
- Values outside their range are errors that name the key; there some are silently changed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from qianyan.errors import ConfigError, InputError, MediaError, quote
from qianyan.inputs.images import MAX_RATIO, smart_resize
from qianyan.inputs.patches import PatchConfig

MAX_FPS = 120.0


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """How a checkpoint wants its videos.

    Args:
        patches: how frames are cut; its own area limits are for pictures and not used here.
        total_tokens: most tokens of one clip: 16384 for Qwen2-VL, 24576 for Qwen2.5-VL.
        fps: frames a second where a part does not say.
        min_frames: least number of frames, where the clip has so many.
        max_frames: largest number of frames where a part does not say.
        min_pixels: least area of a frame, where total_tokens leaves room for it.
        max_pixels: largest area of a frame.
    """

    patches: PatchConfig
    total_tokens: int
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28

    def __post_init__(self) -> None:
        if self.total_tokens < 1 or not 0 < self.fps <= MAX_FPS:
            raise ConfigError(
                f"total_tokens is {self.total_tokens} and fps {self.fps:g}; expected at least one "
                f"token and an fps above 0, at most {MAX_FPS:g}."
            )
        if not 0 < self.min_frames <= self.max_frames or self.max_frames < self.step:
            raise ConfigError(
                f"min_frames is {self.min_frames} and max_frames {self.max_frames}; expected "
                f"0 < min_frames <= max_frames, and max_frames at least {self.step}."
            )
        if not 0 < self.min_pixels <= self.max_pixels or self.max_pixels < self.token_pixels:
            raise ConfigError(
                f"min_pixels is {self.min_pixels} and max_pixels {self.max_pixels}; expected "
                f"0 < min_pixels <= max_pixels, and max_pixels at least {self.token_pixels}."
            )

    @property
    def step(self) -> int:
        """Frames that share one temporal patch; clips have a multiple of it."""
        return self.patches.temporal_patch_size

    @property
    def token_pixels(self) -> int:
        """Area in pixels of the square that becomes one token."""
        return self.patches.factor**2

    @property
    def total_pixels(self) -> int:
        """The cap on tokens as qwen-vl-utils counts it: frames of one patch count once."""
        return self.total_tokens * self.token_pixels


@dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """What is accepted as a video.

    Args:
        max_duration_s: longest stretch that is sampled, after video_start and video_end.
        max_side_px: longest side of a frame.
        max_pixels: largest area of a frame; 8K is within it.
        min_side_px: shortest side of a frame.
        max_frames: most frames that a part may ask for or a list may hold.
        max_source_frames: most frames a file may have.
        max_read_s: longest time that reading one video may take.
    """

    max_duration_s: float = 4 * 3600.0
    max_side_px: int = 16_384
    max_pixels: int = 36_000_000
    min_side_px: int = 8
    max_frames: int = 2048
    max_source_frames: int = 4_000_000
    max_read_s: float = 600.0


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """What a content part asks for, in the keys of qwen-vl-utils; None leaves the default.

    `use_audio_in_video` is whether the video is heard as well: None where it has sound and the
    model can hear it.

    `where` is the part's place in the request ("messages[0].content[1]"), for error sentences.

    Raises:
        InputError: a value that can never be right; names its key.
    """

    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    use_audio_in_video: bool | None = None
    where: str = "video"

    def __post_init__(self) -> None:
        for key in ("nframes", "min_frames", "max_frames", "min_pixels", "max_pixels"):
            self._check_count(key)
        self._check_count("total_pixels")
        if not isinstance(self.use_audio_in_video, bool | None):
            raise self.refused("use_audio_in_video", "true or false")
        for key in ("fps", "video_start", "video_end"):
            self._check_number(key)
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise self.refused("fps", f"a number above 0, at most {MAX_FPS:g}")
        if self.fps is not None and self.nframes is not None:
            raise self.refused("nframes", "either fps or nframes, not both")
        if self.video_start is not None and self.video_start < 0:
            raise self.refused("video_start", "seconds from the beginning, 0 or more")
        if self.video_end is not None and self.video_end <= (self.video_start or 0):
            raise self.refused("video_end", "seconds from the beginning, later than video_start")

    @classmethod
    def from_part(cls, part: Mapping[str, Any], where: str) -> Self:
        """Take the keys this class knows out of a content part."""
        return cls(**{key: part[key] for key in VIDEO_KEYS if key in part}, where=where)

    def refused(self, key: str, expected: str) -> InputError:
        """Make the error that says what a key's value should have been."""
        return InputError(
            f"{self.where}.{key} is {quote(getattr(self, key))}; expected {expected}."
        )

    def _check_count(self, key: str) -> None:
        value = getattr(self, key)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise self.refused(key, "a whole number of 1 or more")

    def _check_number(self, key: str) -> None:
        value = getattr(self, key)
        if value is None:
            return
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self.refused(key, "a number")


VIDEO_KEYS = frozenset(field.name for field in fields(VideoRequest)) - {"where"}


def fit_frames(
    photo_wh: tuple[int, int], num_frames: int, request: VideoRequest, config: VideoConfig
) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Pick the one size (width, height) of a clip's frames; also says what had to give way.

    num_frames / step * width * height never exceeds the clip's total_pixels, so its tokens never
    exceed total_tokens.

    Raises:
        InputError: an area outside what the settings allow.
    """
    lowest, highest, capped = _frame_areas(num_frames, request, config)
    width, height = photo_wh
    if max(photo_wh) > MAX_RATIO * min(photo_wh):
        raise MediaError(
            f"The video is {width}x{height} pixels, a strip; expected sides of at most "
            f"{MAX_RATIO}:1.",
            code="too_narrow",
        )
    factor, most = config.patches.factor, min(highest, capped)
    new_height, new_width = smart_resize(
        height, width, factor=factor, min_pixels=min(lowest, most), max_pixels=most
    )
    if new_height * new_width > most:
        new_height, new_width = _squeezed(height, width, most=most, factor=factor)
    stated = request.min_pixels is not None and new_height * new_width < request.min_pixels
    notes = (f"min_pixels not kept, to stay within {config.total_tokens} tokens",) if stated else ()
    return (new_width, new_height), notes


def _squeezed(height: int, width: int, *, most: int, factor: int) -> tuple[int, int]:
    """Fit a size that enlarging, or a side of one block, took past `most`: (height, width)."""
    scale = math.sqrt(most / (height * width))
    new_height = max(math.floor(height * scale / factor) * factor, factor)
    new_width = max(math.floor(width * scale / factor) * factor, factor)
    if new_height * new_width <= most:
        return new_height, new_width
    room = most // factor**2 * factor  # a strip of one block's thickness: shorten it
    return (factor, room) if width > height else (room, factor)


def _frame_areas(
    num_frames: int, request: VideoRequest, config: VideoConfig
) -> tuple[int, int, int]:
    """Work out the least area of a frame, the largest, and the share it has of the clip's cap."""
    if request.max_pixels is not None and not (
        config.token_pixels <= request.max_pixels <= config.max_pixels
    ):
        raise request.refused("max_pixels", f"{config.token_pixels} to {config.max_pixels}")
    highest = request.max_pixels or config.max_pixels
    if request.min_pixels is not None and request.min_pixels > highest:
        raise request.refused("min_pixels", f"at most max_pixels, {highest}")
    least = num_frames // config.step * config.token_pixels
    if request.total_pixels is not None and not (
        least <= request.total_pixels <= config.total_pixels
    ):
        raise request.refused(
            "total_pixels", f"{least} to {config.total_pixels} for {num_frames} frames"
        )
    if least > config.total_pixels:
        raise InputError(
            f"{request.where} comes to {num_frames} frames; expected at most "
            f"{config.total_tokens * config.step}, one token for each {config.step}. "
            "Ask for fewer with max_frames."
        )
    capped = (request.total_pixels or config.total_pixels) * config.step // num_frames
    return request.min_pixels or config.min_pixels, highest, capped
