"""From a video file or a list of frames to the few frames a model sees of it.

Decoding goes frame by frame: each wanted frame is resized at once and only the resized ones are
kept, so that memory does not grow with a video's length or resolution. What was taken is kept in
a record without pixels, for reports and for positions in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from qianyan.errors import MediaError
from qianyan.inputs.container import Listing, VideoFile, check_size
from qianyan.inputs.frames import VideoConfig, VideoLimits, VideoRequest, fit_frames
from qianyan.inputs.images import upright_rgb
from qianyan.inputs.timeline import FrameChoice, choose_frames

if TYPE_CHECKING:
    from av import VideoFrame

HDR_CURVES = frozenset({16, 18})  # PQ and HLG, as in AVFrame.color_trc
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class SeenVideo:
    """What a model was shown of a video, without the pixels.

    `photo_wh` and `seen_wh` are a frame's own upright size and the size the model sees it in.
    `fps` is the real rate of the sampled frames, num_frames / duration_s; `duration_s` is the
    length of the stretch they stand for, `timestamps_s` when each of them is on the screen, in
    seconds after the video's first frame. `notes` says what else is worth knowing.
    """

    photo_wh: tuple[int, int]
    seen_wh: tuple[int, int]
    num_frames: int
    fps: float
    source_fps: float
    duration_s: float
    timestamps_s: tuple[float, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SampledVideo:
    """The frames a model is shown, (frames, height, width, 3) uint8, and the record of them."""

    frames: np.ndarray
    record: SeenVideo
    temporal_patch_size: int = 2

    @property
    def second_per_grid_t(self) -> float:
        """Seconds that one temporal patch spans."""
        return self.temporal_patch_size / self.record.fps


def read_video(
    source: bytes | Path,
    request: VideoRequest,
    config: VideoConfig,
    limits: VideoLimits | None = None,
) -> SampledVideo:
    """Sample a video file, held in memory or read from disk piece by piece.

    Raises:
        InputError: the request asks for what this video or the settings do not have.
        MediaError: code not_found, empty_file, not_a_video, unsupported_format, audio_only,
            truncated, no_frames, too_small, too_large, too_narrow, too_long, too_many_frames or
            timeout.
    """
    limits = limits or VideoLimits()
    file = VideoFile(source, limits)
    listing = file.list_frames()
    choice = choose_frames(listing.timeline, request, config, limits)
    gathered = _Gathered(choice, request, config, limits)
    for index, frame in file.decode(listing, sorted(set(choice.indices))):
        gathered.add(index, frame, delay_s=_delay_s(listing, index, frame))
    frames = gathered.finish()
    record = SeenVideo(
        photo_wh=gathered.photo_wh,
        seen_wh=(frames.shape[2], frames.shape[1]),
        num_frames=len(frames),
        fps=choice.fps,
        source_fps=listing.timeline.fps,
        duration_s=choice.duration_s,
        timestamps_s=tuple(round(time_s, 6) for time_s in choice.timestamps_s),
        notes=(*listing.notes, *choice.notes, *gathered.notes),
    )
    return SampledVideo(frames, record, config.step)


def read_frames(
    images: Sequence[Image.Image],
    request: VideoRequest,
    config: VideoConfig,
    limits: VideoLimits | None = None,
) -> SampledVideo:
    """Take a list of pictures as a video; `fps` of the request says how far apart they are.

    All of them are shown; where one is missing to a whole temporal patch, the last is repeated.
    Each is read once and in order, so that a lazy sequence holds one at a time.

    Raises:
        InputError: the request chooses among the frames, which only files allow.
        MediaError: code no_frames, too_many_frames, sizes_differ, too_small, too_large or
            too_narrow.
    """
    limits = limits or VideoLimits()
    _check_list(len(images), request, limits)
    num_frames = len(images) + -len(images) % config.step
    frames = np.empty(0, dtype=np.uint8)
    photo_wh = seen_wh = (0, 0)
    notes: tuple[str, ...] = ()
    for index, image in enumerate(images):
        rgb = upright_rgb(image)
        if not index:
            check_size(*rgb.size, limits)
            photo_wh = rgb.size
            seen_wh, notes = fit_frames(photo_wh, num_frames, request, config)
            frames = np.empty((num_frames, seen_wh[1], seen_wh[0], 3), dtype=np.uint8)
        elif rgb.size != photo_wh:
            raise MediaError(
                f"{request.where}: frame {index + 1} is {rgb.width}x{rgb.height} pixels, the "
                f"first {photo_wh[0]}x{photo_wh[1]}; expected frames of one size.",
                code="sizes_differ",
            )
        frames[index] = np.asarray(rgb.resize(seen_wh, config.patches.resample))
    fps = request.fps or config.fps
    if num_frames > len(images):
        frames[len(images) :] = frames[len(images) - 1]
        notes = (*notes, "odd number of frames: the last is repeated")
    times = tuple(round(index / fps, 6) for index in range(num_frames))
    duration_s = num_frames / fps
    record = SeenVideo(photo_wh, seen_wh, num_frames, fps, fps, duration_s, times, notes)
    return SampledVideo(frames, record, config.step)


def _check_list(count: int, request: VideoRequest, limits: VideoLimits) -> None:
    """Refuse lists without frames or with too many, and keys that only files know."""
    if not count:
        raise MediaError(f"{request.where} holds no frames.", code="no_frames")
    if count > limits.max_frames:
        raise MediaError(
            f"{request.where} holds {count} frames; expected at most {limits.max_frames}.",
            code="too_many_frames",
        )
    for key in ("nframes", "min_frames", "max_frames", "video_start", "video_end"):
        if getattr(request, key) is not None:
            raise request.refused(key, "no such key, as frames given as a list are all shown")
    if request.use_audio_in_video:
        raise request.refused("use_audio_in_video", "false, as frames given as a list are silent")


def _delay_s(listing: Listing, index: int, frame: VideoFrame) -> float:
    """Tell by how much a decoded frame is later than the one that was wanted."""
    if listing.pts is None or frame.pts is None:
        return 0.0
    return float((frame.pts - listing.moment(index)) * listing.time_base)


class _Gathered:
    """The frames of one clip as they are decoded, resized to their one size."""

    def __init__(
        self, choice: FrameChoice, request: VideoRequest, config: VideoConfig, limits: VideoLimits
    ) -> None:
        self.photo_wh = (0, 0)
        self.notes: tuple[str, ...] = ()
        self._choice, self._request, self._config, self._limits = choice, request, config, limits
        self._indices = np.array(choice.indices)
        self._is_there = np.zeros(len(choice.indices), dtype=bool)
        self._frames: np.ndarray | None = None

    def add(self, index: int, frame: VideoFrame, *, delay_s: float) -> None:
        """Resize a decoded frame into every place that shows it."""
        check_size(frame.width, frame.height, self._limits)
        if self._frames is None:
            self._frames = self._start(frame)
        size = self._frames.shape[2], self._frames.shape[1]
        places = self._indices == index
        self._frames[places] = np.asarray(
            _upright(frame).resize(size, self._config.patches.resample)
        )
        self._is_there[places] = delay_s <= 0.5 / self._choice.fps

    def finish(self) -> np.ndarray:
        """Give the frames; where some are missing their neighbours stand in.

        Raises:
            MediaError: code truncated, where more than half are missing.
        """
        there = np.flatnonzero(self._is_there)
        missing = len(self._is_there) - len(there)
        if self._frames is None or missing > len(there):
            raise MediaError(
                f"The video is damaged: {missing} of the {len(self._is_there)} frames wanted "
                "cannot be decoded. Copy or convert it again.",
                code="truncated",
            )
        for place in np.flatnonzero(~self._is_there):
            self._frames[place] = self._frames[there[np.abs(there - place).argmin()]]
        if missing:
            self.notes += (
                f"damaged: {missing} of {len(self._is_there)} frames replaced by a neighbour",
            )
        return self._frames

    def _start(self, frame: VideoFrame) -> np.ndarray:
        """Choose the size, and say what is special, by the first frame."""
        num_frames = len(self._choice.indices)
        self.photo_wh = (frame.width, frame.height)
        if _turn(frame) in {90, 270}:
            self.photo_wh = (frame.height, frame.width)
        seen_wh, notes = fit_frames(self.photo_wh, num_frames, self._request, self._config)
        if frame.interlaced_frame:
            notes += ("interlaced: one field of each frame is shown",)
        if frame.color_trc in HDR_CURVES:
            notes += ("high dynamic range: shown without tone mapping",)
        self.notes = notes
        return np.zeros((num_frames, seen_wh[1], seen_wh[0], 3), dtype=np.uint8)


def _upright(frame: VideoFrame) -> Image.Image:
    """Turn a decoded frame into upright RGB: alpha over white, one field of an interlaced one."""
    has_alpha = any(part.is_alpha for part in frame.format.components)
    # One thread: the converter would start its threads anew for every frame, at ten times the cost.
    pixels = frame.to_ndarray(format="rgba" if has_alpha else "rgb24", threads=1)
    if frame.interlaced_frame:
        pixels = pixels[::2]  # two fields are two moments, which together show combs
    image = Image.fromarray(pixels)
    rgb = upright_rgb(image) if has_alpha else image
    turn = _TURNS.get(_turn(frame))
    return rgb if turn is None else rgb.transpose(turn)


def _turn(frame: VideoFrame) -> int:
    """Tell by how many degrees, counterclockwise, a frame is to be turned to stand upright."""
    return round(frame.rotation / 90) * 90 % 360
