"""Samples of sound: out of decoded frames, watched for oddities, changed to another rate.

Rates are changed by FFmpeg's own filter, set longer than it comes: flat to 7.4 kHz and 80 dB down
from 8.1 kHz on for a rate of 16 kHz (measured with PyAV 18.1), where the usual one would let
sounds up to 9 kHz through as others.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from qianyan.inputs.av_file import import_av

if TYPE_CHECKING:
    from av import AudioFrame, AudioResampler
    from av.filter import Graph

FILTER = "filter_size=128:cutoff=0.97"
SILENT_LEVEL = 1e-4  # of full scale, -80 dB
CLIPPED_LEVEL = 0.9999
CLIPPED_SHARE = 0.001
_KINDS: dict[str, type[np.generic]] = {
    "u8": np.uint8,
    "s16": np.int16,
    "s32": np.int32,
    "s64": np.int64,
    "flt": np.float32,
    "dbl": np.float64,
}
MAX_LEVEL = 1e6  # what float files may hold beyond full scale


class Unpacking:
    """Takes decoded frames apart into channels.

    Frames with a plane for each channel are packed into one first: of eight planes and more PyAV
    (18.1) reads one too many, which ends the whole program.
    """

    def __init__(self) -> None:
        self._packer: AudioResampler | None = None
        self._kind: tuple[str, str, int] | None = None

    def channels(self, frame: AudioFrame) -> np.ndarray:
        """Give a frame's (channels, samples) float32, full scale 1."""
        frames = self._pack(frame) if frame.format.is_planar else [frame]
        return np.concatenate([_unpacked(one) for one in frames], axis=1)

    def _pack(self, frame: AudioFrame) -> list[AudioFrame]:
        kind = frame.format.name, frame.layout.name, frame.sample_rate
        if kind != self._kind or self._packer is None:
            av = import_av("sound")
            packer: AudioResampler = av.AudioResampler(format=frame.format.packed)
            self._packer, self._kind = packer, kind
        return self._packer.resample(frame)


def _unpacked(frame: AudioFrame) -> np.ndarray:
    """Give a packed frame's (channels, samples) float32, full scale 1."""
    plane: Any = frame.planes[0]  # a buffer, which its type does not say
    count = frame.samples * frame.layout.nb_channels
    samples = np.frombuffer(plane, _KINDS[frame.format.name], count)  # the plane may be padded
    values: np.ndarray = samples.astype(np.float32).reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        values = (values - 128) / 128
    elif samples.dtype.kind == "i":
        values /= np.float32(2.0 ** (8 * samples.itemsize - 1))
    else:
        values = np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=-1.0)
        values = values.clip(-MAX_LEVEL, MAX_LEVEL)
    return values


class Levels:
    """How loud a sound is, over all its channels, before anything is done to it."""

    def __init__(self) -> None:
        self.rate_hz = self.channels = 0
        self._loudest = 0.0
        self._num_clipped = self._num_samples = 0

    def watch(self, samples: np.ndarray, rate_hz: int) -> None:
        """Take account of a frame's (channels, samples)."""
        if not self._num_samples:
            self.rate_hz, self.channels = rate_hz, len(samples)
        loudness = np.abs(samples)
        self._loudest = max(self._loudest, float(loudness.max(initial=0.0)))
        self._num_clipped += int((loudness >= CLIPPED_LEVEL).sum())
        self._num_samples += samples.size

    def notes(self) -> tuple[str, ...]:
        """Say what is odd about it."""
        if self._loudest < SILENT_LEVEL:
            return ("silent: nothing in it is louder than -80 dB",)
        share = self._num_clipped / max(self._num_samples, 1)
        if share > CLIPPED_SHARE:
            return (f"clipped: {share:.1%} of the samples are at full scale",)
        return ()


class RateChange:
    """Changes the rate of one channel, piece by piece; the pieces' own rate may change."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._given_hz: int | None = None
        self._graph: Graph | None = None
        self._num_given = 0

    def change(self, samples: np.ndarray, given_hz: int) -> list[np.ndarray]:
        """Give what is ready after these samples."""
        ready = self.finish() if given_hz != self._given_hz else []
        self._given_hz = given_hz
        if given_hz == self._rate_hz or not len(samples):
            return [*ready, samples]
        if self._graph is None:
            self._graph = self._build(given_hz)
        self._graph.push(self._frame(samples, given_hz))
        return [*ready, *self._pull(self._graph)]

    def finish(self) -> list[np.ndarray]:
        """Give what is left."""
        if self._graph is None:
            return []
        self._graph.push(None)
        left = self._pull(self._graph)
        self._graph, self._num_given = None, 0
        return left

    def _frame(self, samples: np.ndarray, given_hz: int) -> AudioFrame:
        av = import_av("sound")
        frame: AudioFrame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples, dtype=np.float32)[None], format="flt", layout="mono"
        )
        frame.sample_rate, frame.time_base, frame.pts = (
            given_hz,
            Fraction(1, given_hz),
            self._num_given,
        )
        self._num_given += len(samples)
        return frame

    def _build(self, given_hz: int) -> Graph:
        av = import_av("sound")
        graph: Graph = av.filter.Graph()
        shape = "sample_fmt=flt:channel_layout=mono"
        source = graph.add("abuffer", f"sample_rate={given_hz}:{shape}:time_base=1/{given_hz}")
        change = graph.add("aresample", f"{self._rate_hz}:{FILTER}")
        end = graph.add("abuffersink")
        source.link_to(change)
        change.link_to(end)
        graph.configure()
        return graph

    @staticmethod
    def _pull(graph: Graph) -> list[np.ndarray]:
        av = import_av("sound")
        ready: list[np.ndarray] = []
        while True:
            try:
                frame: Any = graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return ready
            ready.append(_unpacked(frame)[0])
