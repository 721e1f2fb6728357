"""Which moments of a video a model is shown.

The rule is that of the checkpoints' authors (Qwen2-VL, section 2.1; qwen-vl-utils 0.0.14): two
frames a second unless asked otherwise, an even number of them, spread evenly from the first frame
to the last. Everything here is arithmetic on the times that a file gives its frames.

Differences from qwen-vl-utils, on purpose:
- Indices are rounded from exact fractions. There they pass through float32, which past some
  thousands of frames is off by one frame here and there, differently on different processors.
- Frames that do not come at a constant rate are chosen by time, not by number.
- A single frame is a clip of that frame twice; there it is an error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np

from qianyan.errors import MediaError
from qianyan.inputs.frames import VideoConfig, VideoLimits, VideoRequest

FALLBACK_FPS = 25.0  # where a file says nothing about its rate


@dataclass(frozen=True)
class Timeline:
    """When a video's frames are shown: seconds after the first one, ascending.

    `fps` is the constant rate, or the average where the rate is not constant.
    """

    times_s: np.ndarray
    fps: float
    duration_s: float
    is_constant: bool

    @classmethod
    def counted(cls, count: int, rate: Fraction | float) -> Self:
        """Make the timeline of frames that carry no times of their own."""
        fps = float(rate)
        return cls(np.arange(count) / fps, fps, count / fps, is_constant=True)

    @classmethod
    def timed(
        cls, pts: np.ndarray, time_base: Fraction, rates: Sequence[Fraction], last_s: float
    ) -> Self:
        """Make the timeline of frames with times, telling constant rates from varying ones.

        Args:
            pts: presentation times, ascending, no two alike, in units of `time_base`.
            time_base: seconds of one unit.
            rates: what the file says its rate is, most credible first.
            last_s: seconds the last frame is shown, 0 where unknown.
        """
        times_s = (pts - pts[0]) * float(time_base)
        if len(pts) == 1:
            rate = 1 / last_s if last_s > 0 else float(next(iter(rates), FALLBACK_FPS))
            return cls(times_s, rate, 1 / rate, is_constant=True)
        measured = (len(pts) - 1) / (Fraction(int(pts[-1] - pts[0])) * time_base)
        for rate in map(float, (*rates, round(measured), measured)):
            # Within half a frame everywhere, counting frames finds the same moments as timing.
            if rate > 0 and np.abs(times_s * rate - np.arange(len(pts))).max() <= 0.5:
                return cls(times_s, rate, len(pts) / rate, is_constant=True)
        last_s = last_s if last_s > 0 else float(np.median(np.diff(times_s)))
        duration_s = float(times_s[-1]) + last_s
        return cls(times_s, len(pts) / duration_s, duration_s, is_constant=False)


@dataclass(frozen=True)
class FrameChoice:
    """The frames to take of a timeline, by index, and when each is on the screen.

    `duration_s` is the length of the stretch they stand for. An index may come up twice.
    """

    indices: tuple[int, ...]
    timestamps_s: tuple[float, ...]
    duration_s: float
    notes: tuple[str, ...] = ()

    @property
    def fps(self) -> float:
        """The real rate of the choice, frames a second."""
        return len(self.indices) / self.duration_s


def choose_frames(
    timeline: Timeline, request: VideoRequest, config: VideoConfig, limits: VideoLimits
) -> FrameChoice:
    """Choose the frames that a model is shown.

    At a constant rate these are the indices of qwen-vl-utils: round(linspace(first, last, n)).
    Otherwise n moments are spread evenly over the stretch, and each shows the frame that is on
    the screen then.

    Raises:
        InputError: a key of the request is outside what this video has or the settings allow.
        MediaError: code too_long.
    """
    if request.video_start is not None and request.video_start >= timeline.duration_s:
        raise request.refused(
            "video_start", f"less than the video's {timeline.duration_s:.6g} seconds"
        )
    stretch = _counted_stretch if timeline.is_constant else _timed_stretch
    first, last, duration_s = stretch(timeline, request)
    if duration_s > limits.max_duration_s:
        raise MediaError(
            f"The video is {duration_s / 3600:.2f} hours long; expected at most "
            f"{limits.max_duration_s / 3600:g}. Ask for a part of it with video_start and "
            "video_end.",
            code="too_long",
        )
    count = last - first + 1
    num_frames = count_frames(count, duration_s, request, config, limits)
    notes = ("only one frame: shown twice",) if count == 1 else ()
    if timeline.is_constant:
        indices = spread(first, last, num_frames)
        times = tuple(float(timeline.times_s[index]) for index in indices)
        return FrameChoice(indices, times, duration_s, notes)
    start_s = request.video_start or 0.0
    until_s = max(start_s, min(float(timeline.times_s[-1]), start_s + duration_s))
    moments = np.linspace(start_s, until_s, num_frames)
    shown = np.searchsorted(timeline.times_s, moments + 1e-6, side="right") - 1
    return FrameChoice(
        tuple(shown.tolist()),
        tuple(moments.tolist()),
        duration_s,
        ("variable frame rate: chosen by time", *notes),
    )


def _counted_stretch(timeline: Timeline, request: VideoRequest) -> tuple[int, int, float]:
    """Find the first and last frame asked for, and their seconds, at a constant rate."""
    total = len(timeline.times_s)
    start_s = min(request.video_start or 0.0, timeline.duration_s)
    first = math.ceil(start_s * timeline.fps)
    last = total - 1
    if request.video_end is not None:
        end_s = min(request.video_end, timeline.duration_s)
        last = min(math.floor(end_s * timeline.fps), last)
    if first > last:  # between two frames the earlier one is on the screen
        first = last
    return first, last, (last - first + 1) / timeline.fps


def _timed_stretch(timeline: Timeline, request: VideoRequest) -> tuple[int, int, float]:
    """Find the first and last frame on the screen in the stretch asked for, and its seconds."""
    start_s = request.video_start or 0.0
    end_s = min(request.video_end or math.inf, timeline.duration_s)
    shown = np.searchsorted(timeline.times_s, (start_s, end_s), side="right") - 1
    return int(shown[0]), int(shown[1]), end_s - start_s


def count_frames(
    available: int,
    duration_s: float,
    request: VideoRequest,
    config: VideoConfig,
    limits: VideoLimits,
) -> int:
    """Count the frames to take of `available` ones (qwen-vl-utils, smart_nframes)."""
    step = config.step
    _check_frame_keys(request, config, limits)
    if request.nframes is not None:
        asked = round(request.nframes / step) * step
        most = max(available, step)
        if not step <= asked <= most:
            raise request.refused("nframes", f"{step} to {most}, which this video has")
        return asked
    highest = config.max_frames if request.max_frames is None else request.max_frames
    lowest = config.min_frames if request.min_frames is None else request.min_frames
    wanted = max(duration_s * (request.fps or config.fps), math.ceil(lowest / step) * step)
    wanted = min(wanted, math.floor(highest / step) * step, available)
    return max(math.floor(wanted / step) * step, step)


def _check_frame_keys(request: VideoRequest, config: VideoConfig, limits: VideoLimits) -> None:
    """Refuse numbers of frames outside the limits."""
    highest = config.max_frames if request.max_frames is None else request.max_frames
    for key, least in (("nframes", 1), ("max_frames", config.step)):
        value = getattr(request, key)
        if value is not None and not least <= value <= limits.max_frames:
            raise request.refused(key, f"{least} to {limits.max_frames}")
    if request.min_frames is not None and request.min_frames > highest:
        raise request.refused("min_frames", f"at most max_frames, {highest}")


def spread(first: int, last: int, count: int) -> tuple[int, ...]:
    """Spread `count` indices evenly from `first` to `last`, both included: round(linspace).

    Exact: an even count never meets a half, so there is no tie to break.
    """
    gaps = max(count - 1, 1)
    length = last - first
    return tuple(first + (2 * index * length + gaps) // (2 * gaps) for index in range(count))
