"""What a client's microphone and camera send, cut into turns of the user.

Samples come at the client's rate and are kept at 16 kHz. Without a detector everything belongs to
one turn until the client ends it; with one a turn begins a little before speech does and ends with
the silence after it. All of it is work for a thread, one call at a time.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from qianyan.inputs.images import read_image
from qianyan.inputs.processor import Processor
from qianyan.inputs.turn import Turn
from qianyan.inputs.waveform import RateChange
from qianyan.server.errors import RefusedError
from qianyan.server.realtime.session_settings import TurnDetection
from qianyan.server.realtime.vad import (
    MIN_SPEECH_WINDOWS,
    RATE_HZ,
    WINDOW,
    SpeechModel,
    TurnWatcher,
)
from qianyan.server.settings import RealtimeLimits

SAMPLE_BYTES = 2
_FULL_SCALE = np.float32(32768.0)


@dataclass(frozen=True, kw_only=True)
class Began:
    """Somebody begins to speak; in ms of all sound of the session."""

    item_id: str
    at_ms: int


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A turn of the user that is over; `told` is what the model gets of it.

    `at_ms` is None where the client has ended it.
    """

    item_id: str
    told: dict[str, Any]
    seconds: float
    at_ms: int | None = None


@dataclass(kw_only=True)
class _Open:
    """A turn under way."""

    turn: Turn
    item_id: str


class Ear:
    """Listens to one client."""

    def __init__(
        self, processor: Processor, limits: RealtimeLimits, model: SpeechModel | None
    ) -> None:
        """Start with silence; without a `model` there can be no detection."""
        audio = processor.limits.audio
        most_s = min(audio.max_duration_s, limits.max_buffer_s)
        self._media = replace(processor.limits, audio=replace(audio, max_duration_s=most_s))
        self._most_s, self._most_bytes = most_s, limits.max_frame_bytes
        self._processor, self._model = processor, model
        self._watcher: TurnWatcher | None = None
        self._rate = RateChange(RATE_HZ)
        self._open: _Open | None = None
        self._seen: Image.Image | None = None
        self._num_heard = 0
        self._left = np.zeros(0, dtype=np.float32)  # less than a window
        self._before = np.zeros(0, dtype=np.float32)  # what speech may begin with

    @property
    def num_blocks(self) -> int:
        """Count the complete blocks of the turn under way."""
        return 0 if self._open is None else self._open.turn.num_blocks

    def part_so_far(self) -> dict[str, Any] | None:
        """Give what the model can be told already of the turn under way."""
        return None if self._open is None else self._open.turn.part_so_far()

    def detect(self, detection: TurnDetection | None) -> None:
        """Say who finds the turns: a detector, or with None the client; one under way goes on."""
        if detection is None or self._model is None:
            self._watcher = None
            return
        if self._watcher is None:
            self._watcher = TurnWatcher(self._model, detection)
            self._watcher.is_speaking = self._open is not None
        self._watcher.detection = detection

    def hear(self, pcm: bytes, rate_hz: int) -> list[Began | Ended]:
        """Take the next samples; tell what happened meanwhile.

        Raises RefusedError for half a sample, MediaError too_long for a turn beyond the limit.
        """
        found: list[Began | Ended] = []
        for piece in self._rate.change(to_samples(pcm), rate_hz):
            if self._watcher is None:
                self._add(piece)
            else:
                for window in self._windows(piece):
                    found += self._judge(window, self._watcher)
        return found

    def see(self, picture: bytes) -> None:
        """Take what the camera sees now; raises RefusedError and MediaError."""
        check_size(picture, self._most_bytes)
        image = read_image(picture, limits=self._media.image).rgb
        if self._open is None:
            self._seen = image
        else:
            self._open.turn.add_frame(image)

    def commit(self) -> Ended:
        """End the turn; raises RefusedError where there is nothing in it."""
        if self._watcher is None:
            for piece in self._rate.finish():
                self._add(piece)
        least_s = self._media.audio.min_duration_s
        opened = self._open
        if opened is None or opened.turn.duration_s < least_s:
            raise RefusedError(
                "The input audio buffer holds less than "
                f"{least_s * 1000:g} ms of sound; expected some before it is committed.",
                status=400,
                code="input_audio_buffer_commit_empty",
            )
        self._reset()
        return _ended(opened, None)

    def clear(self) -> None:
        """Forget the turn under way."""
        self._rate.finish()
        self._seen = None
        self._reset()

    def _reset(self) -> None:
        self._open = None
        self._left = self._before = np.zeros(0, dtype=np.float32)
        if self._watcher is not None:
            self._watcher.reset()

    def _windows(self, piece: np.ndarray) -> Iterator[np.ndarray]:
        samples = np.concatenate([self._left, piece])
        whole = len(samples) // WINDOW * WINDOW
        self._left = samples[whole:]
        for start in range(0, whole, WINDOW):
            yield samples[start : start + WINDOW]

    def _judge(self, window: np.ndarray, watcher: TurnWatcher) -> Iterator[Began | Ended]:
        self._num_heard += len(window)
        change = watcher.judge(window)
        if self._open is None:
            reach = watcher.detection.prefix_padding_ms * RATE_HZ // 1000
            reach += MIN_SPEECH_WINDOWS * WINDOW
            self._before = np.concatenate([self._before, window])[-reach:]
            if change:
                yield self._begin_turn()
            return
        self._open.turn.add_sound(window, RATE_HZ)
        is_full = self._open.turn.duration_s + WINDOW / RATE_HZ > self._most_s
        if change is False or is_full:
            watcher.is_speaking = False
            opened, self._open = self._open, None
            yield _ended(opened, self._now_ms)

    def _begin_turn(self) -> Began:
        opened = self._new_turn()
        opened.turn.add_sound(self._before, RATE_HZ)
        began_ms = self._now_ms - len(self._before) * 1000 // RATE_HZ
        self._before = np.zeros(0, dtype=np.float32)
        return Began(item_id=opened.item_id, at_ms=began_ms)

    def _add(self, piece: np.ndarray) -> None:
        if not len(piece):
            return
        opened = self._open or self._new_turn()
        self._num_heard += len(piece)
        opened.turn.add_sound(piece, RATE_HZ)

    def _new_turn(self) -> _Open:
        processor = self._processor
        turn = Turn(processor.sounds, processor.videos, limits=self._media)
        self._open = _Open(turn=turn, item_id=f"item_{uuid.uuid4().hex}")
        if self._seen is not None:
            turn.add_frame(self._seen)
            self._seen = None
        return self._open

    @property
    def _now_ms(self) -> int:
        return self._num_heard * 1000 // RATE_HZ


def check_size(picture: bytes, most: int) -> None:
    """Raise RefusedError for a picture that is too large."""
    if len(picture) > most:
        raise RefusedError(
            f"The picture has {len(picture)} bytes; expected at most {most}.",
            status=413,
            code="request_too_large",
            param="image",
        )


def to_samples(pcm: bytes) -> np.ndarray:
    """Read 16-bit samples as float32, full scale 1; raises RefusedError for half a sample."""
    if len(pcm) % SAMPLE_BYTES:
        raise RefusedError(
            f"The sound has {len(pcm)} bytes; expected an even number, as a sample has two.",
            status=400,
            code="invalid_value",
            param="audio",
        )
    samples: np.ndarray = np.frombuffer(pcm, dtype="<i2").astype(np.float32) / _FULL_SCALE
    return samples


def _ended(opened: _Open, at_ms: int | None) -> Ended:
    told = opened.turn.finish()
    return Ended(item_id=opened.item_id, told=told, seconds=opened.turn.duration_s, at_ms=at_ms)
