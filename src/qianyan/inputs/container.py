"""Video files: what frames they hold, and the wanted ones decoded.

A file is read twice: once to list its packets, which decodes nothing and gives the time of every
frame even where the index is broken or absent, and once to decode, which jumps to key frames where
frames in between are not wanted.

Files come from strangers (`av_file.py`): sizes are checked before anything is decoded and again by
the decoder itself; one deadline covers all reading.
"""

from __future__ import annotations

import bisect
import os
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qianyan.errors import MediaError, quote
from qianyan.inputs.av_file import import_av, open_container
from qianyan.inputs.frames import VideoLimits
from qianyan.inputs.timeline import FALLBACK_FPS, Timeline

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

SEEK_FRAMES = 12  # what a jump costs, counted in frames decoded in the same time
THREADS = 4
COUNTED_FORMATS = frozenset({"avi"})  # constant rate by definition, and no times of showing
REORDERED_FRAMES = 16  # how far codecs store frames out of order at the most
CODECS = (
    "h264,hevc,vp8,vp9,av1,libdav1d,mpeg4,mpeg2video,mpeg1video,msmpeg4v1,msmpeg4v2,msmpeg4,h261,"
    "h263,h263p,flv,wmv1,wmv2,wmv3,vc1,mjpeg,prores,dnxhd,theora,gif,rawvideo,qtrle,png,ffv1,"
    "ffvhuff,huffyuv,utvideo,dvvideo,svq3,cinepak"
)


@dataclass(frozen=True)
class Listing:
    """What a video file holds, by frame in the order of showing.

    `keys` are the indices of frames that decoding can start at, each with the packet's pts and
    dts. `pts` is None where the file gives its frames no times; then frames are told by number.
    """

    timeline: Timeline
    pts: np.ndarray | None
    keys: tuple[int, ...] = ()
    key_times: tuple[tuple[int, int | None], ...] = ()
    time_base: Fraction = Fraction(1)
    notes: tuple[str, ...] = ()

    def moment(self, index: int) -> int:
        """What a decoded frame must have reached to be the frame of that index."""
        return index if self.pts is None else int(self.pts[index])


@dataclass(frozen=True)
class Run:
    """Wanted frames decoded in one go: from a key frame, or from where the reader stands."""

    key: int | None  # index into Listing.keys
    wanted: tuple[int, ...]


class VideoFile:
    """One video, in memory or on disk, read within its limits."""

    def __init__(self, source: bytes | Path, limits: VideoLimits) -> None:
        """Take the source; nothing is read yet."""
        self._source = source
        self._limits = limits
        self._deadline = time.monotonic() + limits.max_read_s
        self._is_torn = False
        self._av = import_av("video")

    def list_frames(self) -> Listing:
        """List the frames without decoding any.

        Raises:
            MediaError: code not_found, empty_file, not_a_video, unsupported_format, audio_only,
                truncated, no_frames, too_small, too_large, too_many_frames or timeout.
        """
        with self._opened() as (container, stream):
            packets = _Packets()
            for packet in self._packets(container, stream):
                if packet is not None:
                    packets.add(packet)
                if len(packets.pts) + packets.untimed > self._limits.max_source_frames:
                    raise MediaError(
                        f"The video has more than {self._limits.max_source_frames} frames. Cut it "
                        "into pieces.",
                        code="too_many_frames",
                    )
            packets.is_cut |= self._is_torn
            return packets.listing(container, stream)

    def decode(self, listing: Listing, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decode the frames of the wanted indices, ascending and no two alike.

        Yields each index with its frame; where damage took that frame, with the next one there is.
        Frames at the end that cannot be decoded are left out.
        """
        runs = split_runs(wanted, listing.keys)
        while runs:
            with self._opened() as (container, stream):
                stream.thread_type = "AUTO"
                stream.codec_context.thread_count = min(THREADS, os.cpu_count() or 1)
                while runs:
                    start = runs[0].key
                    packets = (
                        self._packets(container, stream)
                        if start is None
                        else self._jump(container, stream, listing.key_times[start])
                    )
                    if packets is None:  # jumping does not work here: all the rest in one go
                        runs = [Run(None, tuple(chain(*(run.wanted for run in runs))))]
                        break
                    run = runs.pop(0)
                    yield from self._decode_run(stream, packets, listing, run.wanted)

    def _decode_run(
        self,
        stream: VideoStream,
        packets: Iterator[Packet[VideoStream] | None],
        listing: Listing,
        wanted: Sequence[int],
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Decode on until the last wanted frame has come."""
        left = list(reversed(wanted))
        count = -1
        for packet in packets:
            try:
                frames = stream.decode(packet)
            except self._av.error.FFmpegError:  # a damaged packet: go on with the next
                continue
            for frame in frames:
                count += 1
                moment = frame.pts if listing.pts is not None else count
                while left and moment is not None and moment >= listing.moment(left[-1]):
                    yield left.pop(), frame
            if not left:
                return

    def _packets(
        self, container: InputContainer, stream: VideoStream
    ) -> Iterator[Packet[VideoStream] | None]:
        """Read packets as far as they can be read; None makes the decoder give what it holds."""
        try:
            for packet in container.demux(stream):
                self._check_time()
                yield packet
        except self._av.error.FFmpegError:
            self._is_torn = True
            yield None
        except IndexError:  # PyAV's, at the end of files in which further streams turn up
            yield None

    def _jump(
        self,
        container: InputContainer,
        stream: VideoStream,
        key_times: tuple[int, int | None],
    ) -> Iterator[Packet[VideoStream] | None] | None:
        """Go to a key frame; None where the file does not lead there."""
        # Some formats look for the time of showing, some for the time of decoding.
        for target in key_times:
            if target is None:
                continue
            try:
                container.seek(target, stream=stream)
            except self._av.error.FFmpegError:
                return None
            packets = self._packets(container, stream)
            first = next((each for each in packets if each and each.is_keyframe), None)
            if first is not None and first.pts is not None and first.pts <= key_times[0]:
                return chain([first], packets)
        return None

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise MediaError(
                f"Reading the video took longer than {self._limits.max_read_s:g} seconds. Send a "
                "shorter or smaller one.",
                code="timeout",
            )

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        """Open the container and pick its video; checks all that the header says."""
        with open_container(
            self._source, wanted="video", codecs=CODECS, check_time=self._check_time
        ) as container:
            yield container, self._pick_stream(container)

    def _pick_stream(self, container: InputContainer) -> VideoStream:
        """Pick the video among the streams; a sound file's cover picture is none."""
        streams = [
            stream
            for stream in container.streams.video
            if not stream.disposition & self._av.stream.Disposition.attached_pic
        ]
        if not streams:
            if container.streams.audio:
                raise MediaError(
                    "The file has sound and no video; expected a video.", code="audio_only"
                )
            raise MediaError("The file has no video in it.", code="no_frames")
        best = container.streams.best("video")
        stream = best if best in streams else streams[0]
        codec = stream.codec_context
        if codec is None or codec.name not in CODECS.split(","):
            name = "an unknown codec" if codec is None else quote(codec.name)
            raise MediaError(
                f"The video is coded with {name}, which is not read here; expected one of the "
                "usual ones, such as H.264.",
                code="unsupported_format",
            )
        check_size(codec.width, codec.height, self._limits)
        codec.options = {"max_pixels": str(self._limits.max_pixels)}
        return stream


class _Packets:
    """The packets of one stream, as they come."""

    def __init__(self) -> None:
        self.pts = array("q")
        self.untimed = 0
        self.keys: list[tuple[int, int | None]] = []
        self.last: tuple[int, int] = (-(1 << 63), 0)  # pts and duration of the last one shown
        self.is_cut = False

    def add(self, packet: Packet[VideoStream]) -> None:
        """Take one packet into account; flushing, damaged and hidden ones are no frames."""
        if not packet.size or packet.is_discard:
            return
        if packet.is_corrupt:
            self.is_cut = True
        elif packet.pts is None:
            self.untimed += 1
        else:
            self.pts.append(packet.pts)
            self.last = max(self.last, (packet.pts, packet.duration or 0))
            if packet.is_keyframe:
                self.keys.append((packet.pts, packet.dts))

    def listing(self, container: InputContainer, stream: VideoStream) -> Listing:
        """Put the packets into the order of showing."""
        stated = (stream.average_rate, stream.guessed_rate, stream.base_rate)
        rates = [rate for rate in stated if rate is not None and rate > 0]
        count = len(self.pts) + self.untimed
        if not count:
            raise MediaError(
                "The video holds no frames: it is empty, or its index is damaged.", code="no_frames"
            )
        time_base = stream.time_base or Fraction(1, 90_000)
        if self.untimed or container.format.name in COUNTED_FORMATS:
            rate = next(iter(rates), FALLBACK_FPS)
            note = f"frames carry no times: taken as {float(rate):.6g} a second"
            return Listing(
                Timeline.counted(count, rate), None, notes=(note,) if self.untimed else ()
            )
        pts = np.unique(np.frombuffer(self.pts, dtype=np.int64))
        stated_s = _stated_s(container, stream)
        end_s = float(max(int(pts[-1]), int(pts[-1]) - int(pts[0])) * time_base)
        notes = self._cut_notes(end_s, stated_s)
        if notes:
            pts = without_torn_end(pts)
        timeline = Timeline.timed(pts, time_base, rates, self.last[1] * float(time_base))
        keys = sorted(key for key in self.keys if key[0] <= pts[-1])
        return Listing(
            timeline,
            pts,
            tuple(int(index) for index in np.searchsorted(pts, [pts_ for pts_, _ in keys])),
            tuple(keys),
            time_base,
            notes,
        )

    def _cut_notes(self, end_s: float, stated_s: float | None) -> tuple[str, ...]:
        """Say when the last frame comes before the end that the header states."""
        if stated_s is not None and end_s < 0.95 * stated_s - 1:
            return (f"the pictures end after {end_s:.6g} of {stated_s:.6g} seconds",)
        return ("damaged: not all of it could be read",) if self.is_cut else ()


def without_torn_end(pts: np.ndarray) -> np.ndarray:
    """Leave out the last frames of a file that was cut off, where one before them is missing.

    Frames are stored in the order of decoding, so that a cut takes some that are shown earlier
    than the last ones left.
    """
    gaps = np.diff(pts)
    torn = np.flatnonzero(gaps[-REORDERED_FRAMES:] > 1.5 * np.median(gaps)) if len(gaps) else gaps
    if not len(torn):
        return pts
    return pts[: len(gaps) - len(gaps[-REORDERED_FRAMES:]) + int(torn[0]) + 1]


def split_runs(wanted: Sequence[int], keys: Sequence[int]) -> list[Run]:
    """Split wanted frames where jumping to a key frame saves more decoding than it costs."""
    runs: list[tuple[int | None, list[int]]] = []
    reached = -1  # the last frame decoded so far
    for index in wanted:
        key = bisect.bisect_right(keys, index) - 1
        if key >= 0 and keys[key] - reached > SEEK_FRAMES:
            runs.append((key, [index]))
        elif runs:
            runs[-1][1].append(index)
        else:
            runs.append((None, [index]))
        reached = index
    return [Run(key, tuple(indices)) for key, indices in runs]


def check_size(width: int, height: int, limits: VideoLimits) -> None:
    """Refuse frames outside the limits (MediaError too_small or too_large)."""
    if not width or not height:  # the reader's own answer to sizes beyond its reach
        raise MediaError(
            "The video's header states no frame size, or one that is too large to be read.",
            code="too_large",
        )
    if min(width, height) < limits.min_side_px:
        raise MediaError(
            f"The video's frames are {width}x{height} pixels; expected at least "
            f"{limits.min_side_px} on each side.",
            code="too_small",
        )
    if max(width, height) > limits.max_side_px or width * height > limits.max_pixels:
        raise MediaError(
            f"The video's frames are {width}x{height} pixels; expected at most "
            f"{limits.max_pixels / 1e6:g} megapixels and {limits.max_side_px} on a side. Make "
            "them smaller.",
            code="too_large",
        )


def _stated_s(container: InputContainer, stream: VideoStream) -> float | None:
    """Find the length that the header states, in seconds."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / 1e6
