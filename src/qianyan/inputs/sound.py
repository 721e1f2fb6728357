"""From a sound file, or the sound of a video, to one channel of samples at a model's rate.

Channels are averaged before the rate is changed, as the checkpoints' authors do. Everything is
decoded piece by piece, and reading stops at the longest duration that is accepted: what a small
file unpacks to cannot fill memory. Holes in a file's times become silence, so that what is heard
stays beside what is seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qianyan.errors import MediaError, quote
from qianyan.inputs.av_file import import_av, open_container
from qianyan.inputs.waveform import Levels, RateChange, Unpacking

if TYPE_CHECKING:
    from av import AudioFrame, Packet
    from av.audio.stream import AudioStream
    from av.container import InputContainer

CODECS = (
    "aac,aac_latm,mp3,mp3float,mp2,mp2float,mp1,mp1float,flac,vorbis,libvorbis,opus,libopus,alac,"
    "wmav1,wmav2,wmapro,ac3,ac3_fixed,eac3,amrnb,amrwb,libopencore_amrnb,libopencore_amrwb,speex,"
    "libspeex,gsm,gsm_ms,dca,adpcm_ms,adpcm_ima_wav,adpcm_ima_qt,adpcm_g722,g722,pcm_u8,pcm_s8,"
    "pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,pcm_f64le,"
    "pcm_f64be,pcm_alaw,pcm_mulaw,pcm_bluray,pcm_dvd"
)
MIN_HOLE_S, MAX_HOLE_S = 0.05, 60.0
"""Holes in a file's times that become silence; longer ones are taken for damaged times."""


@dataclass(frozen=True, kw_only=True)
class AudioLimits:
    """What is accepted as a sound.

    Args:
        max_duration_s: longest sound, of a video's the part that is asked for.
        min_duration_s: shortest; less does not make a token.
        max_rate_hz: most samples a second.
        max_channels: most channels.
        max_read_s: longest time that reading one may take.
    """

    max_duration_s: float = 3600.0
    min_duration_s: float = 0.03
    max_rate_hz: int = 768_000
    max_channels: int = 64
    max_read_s: float = 300.0


@dataclass(frozen=True)
class HeardAudio:
    """What a model was given to hear, without the samples.

    `rate_hz` and `channels` are the file's own; `notes` says what else is worth knowing.
    """

    duration_s: float
    rate_hz: int
    channels: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sound:
    """Float32 samples of one channel, full scale 1, at the rate asked for, and their record."""

    samples: np.ndarray
    record: HeardAudio


def read_sound(source: bytes | Path, rate_hz: int, limits: AudioLimits | None = None) -> Sound:
    """Read a sound file, or the sound of a video file, at `rate_hz` samples a second.

    Raises:
        MediaError: code not_found, empty_file, not_a_sound, unsupported_format, no_sound,
            truncated, too_short, too_long, too_large or timeout.
    """
    limits = limits or AudioLimits()
    sound = _Reading(source, rate_hz, limits).run()
    if sound is None:
        raise MediaError("The file has no sound in it; expected a sound.", code="no_sound")
    least = math.ceil(limits.min_duration_s * rate_hz)
    if len(sound.samples) < least:
        raise MediaError(
            f"The sound is {len(sound.samples) / rate_hz:.4f} seconds long; expected at least "
            f"{limits.min_duration_s:g}.",
            code="too_short",
        )
    return sound


def read_soundtrack(
    source: bytes | Path,
    rate_hz: int,
    limits: AudioLimits | None = None,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Sound | None:
    """Read the sound of a video file beside its frames; None where it has none to speak of.

    `start_s` and `end_s` are seconds after the first frame. Raises MediaError as `read_sound`.
    """
    limits = limits or AudioLimits()
    reading = _Reading(source, rate_hz, limits, is_beside_video=True)
    sound = reading.run(start_s=start_s, end_s=end_s)
    least = math.ceil(limits.min_duration_s * rate_hz)
    return None if sound is None or len(sound.samples) < least else sound


class _Reading:
    """One file on its way to samples."""

    def __init__(
        self,
        source: bytes | Path,
        rate_hz: int,
        limits: AudioLimits,
        *,
        is_beside_video: bool = False,
    ) -> None:
        self._source, self._rate_hz, self._limits = source, rate_hz, limits
        self._is_beside_video = is_beside_video
        self._deadline = time.monotonic() + limits.max_read_s
        self._num_packets = self._num_damaged = 0
        self._is_torn = False
        self._av = import_av("sound")

    def run(self, *, start_s: float = 0.0, end_s: float | None = None) -> Sound | None:
        """Decode the file; None where it has no sound."""
        with open_container(
            self._source, wanted="sound", codecs=CODECS, check_time=self._check_time
        ) as container:
            stream = self._pick_stream(container)
            if stream is None:
                return None
            begins_s = _video_start_s(container) if self._is_beside_video else None
            kept = _Kept(self._rate_hz, self._limits, start_s=start_s, end_s=end_s)
            timeline = _Timeline(begins_s)
            levels = Levels()
            unpacking, rate = Unpacking(), RateChange(self._rate_hz)
            for frame in self._frames(container, stream):
                channels = unpacking.channels(frame)
                levels.watch(channels, frame.sample_rate)
                for piece in timeline.pieces(frame, channels.mean(axis=0)):
                    kept.add(rate.change(piece, frame.sample_rate))
                if kept.is_full:
                    break
            kept.add(rate.finish())
            return Sound(kept.samples(), self._record(levels, kept.duration_s))

    def _record(self, levels: Levels, duration_s: float) -> HeardAudio:
        notes = levels.notes()
        if self._num_damaged:
            notes += (f"damaged: {self._num_damaged} of {self._num_packets} pieces left out",)
        elif self._is_torn:
            notes += ("damaged: not all of it could be read",)
        return HeardAudio(duration_s, levels.rate_hz, levels.channels, notes)

    def _pick_stream(self, container: InputContainer) -> AudioStream | None:
        if not container.streams.audio:
            return None
        stream = container.streams.best("audio") or container.streams.audio[0]
        codec = stream.codec_context
        if codec is None or codec.name not in CODECS.split(","):
            name = "an unknown codec" if codec is None else quote(codec.name)
            raise MediaError(
                f"The sound is coded with {name}, which is not read here; expected one of the "
                "usual ones, such as MP3, AAC, FLAC or PCM.",
                code="unsupported_format",
            )
        picked: AudioStream = stream  # type: ignore[assignment]  # best() does not say which kind
        return picked

    def _frames(self, container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
        """Decode frame by frame; damaged pieces are left out and counted.

        Raises MediaError truncated where most of it is damaged, or nothing could be decoded.
        """
        num_frames = 0
        for packet in self._packets(container, stream):
            self._num_packets += bool(packet.size)
            try:
                frames = stream.decode(packet)
            except self._av.error.FFmpegError:
                self._num_damaged += bool(packet.size)
                continue
            for frame in frames:
                self._check_frame(frame)
                if frame.samples:
                    num_frames += 1
                    yield frame
        if not num_frames or self._num_damaged * 2 > self._num_packets:
            raise MediaError(
                f"The sound is damaged: {self._num_damaged} of its {self._num_packets} pieces "
                "cannot be decoded. Copy or convert it again.",
                code="truncated",
            )

    def _packets(
        self, container: InputContainer, stream: AudioStream
    ) -> Iterator[Packet[AudioStream]]:
        """Read packets as far as they can be read."""
        try:
            for packet in container.demux(stream):
                self._check_time()
                yield packet
        except self._av.error.FFmpegError:
            self._is_torn = True

    def _check_frame(self, frame: AudioFrame) -> None:
        if (
            not 0 < frame.sample_rate <= self._limits.max_rate_hz
            or not 0 < frame.layout.nb_channels <= self._limits.max_channels
        ):
            raise MediaError(
                f"The sound has {frame.layout.nb_channels} channels of {frame.sample_rate} samples "
                f"a second; expected at most {self._limits.max_channels} and "
                f"{self._limits.max_rate_hz}.",
                code="too_large",
            )

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise MediaError(
                f"Reading the sound took longer than {self._limits.max_read_s:g} seconds. Send a "
                "shorter one.",
                code="timeout",
            )


class _Timeline:
    """Where a file's pieces of sound belong in time."""

    def __init__(self, begins_s: float | None) -> None:
        """`begins_s` is when the video's first frame is shown; None starts at the first sound."""
        self._next_s = begins_s

    def pieces(self, frame: AudioFrame, mono: np.ndarray) -> Iterator[np.ndarray]:
        """Give a frame's samples with the silence before them, or what is left after a cut."""
        at_s, rate = frame.time, frame.sample_rate
        if at_s is None or self._next_s is None:
            self._next_s = at_s
            hole_s = 0.0
        else:
            hole_s = at_s - self._next_s
        if MIN_HOLE_S < hole_s <= MAX_HOLE_S:
            yield np.zeros(round(hole_s * rate), dtype=np.float32)
        elif -MAX_HOLE_S <= hole_s < -MIN_HOLE_S:
            mono = mono[round(-hole_s * rate) :]
        yield mono
        if at_s is not None:
            self._next_s = at_s + frame.samples / rate


class _Kept:
    """The samples of the stretch that is wanted."""

    def __init__(
        self, rate_hz: int, limits: AudioLimits, *, start_s: float, end_s: float | None
    ) -> None:
        self._rate_hz, self._limits = rate_hz, limits
        self._to_skip = round(start_s * rate_hz)
        self._most = None if end_s is None else max(round(end_s * rate_hz) - self._to_skip, 0)
        self._pieces: list[np.ndarray] = []
        self._count = 0

    @property
    def is_full(self) -> bool:
        """Whether the end of the stretch is reached."""
        return self._most is not None and self._count >= self._most

    @property
    def duration_s(self) -> float:
        """Seconds that are kept."""
        return self._count / self._rate_hz

    def add(self, pieces: list[np.ndarray]) -> None:
        """Keep what of these belongs to the stretch; MediaError too_long beyond the limit."""
        for piece in pieces:
            skipped = min(self._to_skip, len(piece))
            self._to_skip -= skipped
            room = None if self._most is None else self._most - self._count
            wanted = piece[skipped:][:room]
            self._pieces.append(wanted)
            self._count += len(wanted)
        if self.duration_s > self._limits.max_duration_s:
            raise MediaError(
                f"The sound is longer than {self._limits.max_duration_s / 60:g} minutes, the most "
                "that is heard at once. Cut it into pieces.",
                code="too_long",
            )

    def samples(self) -> np.ndarray:
        """Join the pieces, (samples,) float32."""
        if not self._pieces:
            return np.zeros(0, dtype=np.float32)
        return np.concatenate(self._pieces).astype(np.float32, copy=False)


def _video_start_s(container: InputContainer) -> float | None:
    """Find when the first frame of a file's video is shown; None where the header does not say."""
    for stream in container.streams.video:
        if stream.start_time is not None and stream.time_base is not None:
            return float(stream.start_time * stream.time_base)
    return None
