"""Sound files with damage anywhere are heard as far as they go, or refused in a sentence."""

import contextlib
import wave
from functools import cache
from io import BytesIO
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qianyan.errors import MediaError
from qianyan.inputs.sound import AudioLimits, read_sound, read_soundtrack

FORMS = (
    *(("wav", "pcm_s16le"), ("flac", "flac"), ("mp3", "libmp3lame"), ("ogg", "libopus")),
    *(("adts", "aac"), ("ipod", "aac"), ("matroska", "aac"), ("aiff", "pcm_s16be")),
)
LIMITS = AudioLimits(max_duration_s=120.0, max_read_s=20.0)


@cache
def sound_file(form: str, codec: str) -> bytes:
    """Half a second of a tone at 48 kHz."""
    file = BytesIO()
    samples = (9000 * np.sin(np.arange(24_000) / 17)).astype("<i2")
    with av.open(file, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=48_000, layout="mono")
        convert = av.AudioResampler(format=stream.format, layout="mono", rate=48_000)
        size = stream.codec_context.frame_size or 1024
        for at in range(0, len(samples), size):
            piece = samples[None, at : at + size]
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48_000, at
            for converted in convert.resample(frame):
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    return file.getvalue()


def listen(data: bytes) -> None:
    """Read a file in both ways; anything but samples or a MediaError fails the test."""
    for read in (read_sound, read_soundtrack):
        with contextlib.suppress(MediaError):
            sound = read(data, 16_000, LIMITS)
            assert sound is None or np.isfinite(sound.samples).all()


@pytest.mark.parametrize(("form", "codec"), FORMS)
@settings(max_examples=30, deadline=None)
@given(damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=30))
def test_damaged_sounds_are_heard_or_refused(
    form: str, codec: str, damage: list[tuple[float, int]]
) -> None:
    data = bytearray(sound_file(form, codec))
    for where, value in damage:
        # Most of the damage falls on the head, where it does most.
        data[int(where**3 * (len(data) - 1))] = value
    listen(bytes(data))


@pytest.mark.parametrize(("form", "codec"), FORMS)
@settings(max_examples=15, deadline=None)
@given(kept=st.floats(0, 1))
def test_sounds_cut_anywhere_are_heard_or_refused(form: str, codec: str, kept: float) -> None:
    data = sound_file(form, codec)
    listen(data[: int(kept * len(data))])


@settings(max_examples=30, deadline=None)
@given(
    rate=st.integers(1, 400_000),
    channels=st.integers(1, 70),
    width=st.integers(1, 4),
    num_frames=st.integers(0, 500),
)
def test_any_rate_and_number_of_channels_is_heard_or_refused(
    rate: int, channels: int, width: int, num_frames: int
) -> None:
    file = BytesIO()
    with wave.open(file, "wb") as written:
        written.setparams((channels, width, rate, 0, "NONE", ""))
        written.writeframes(bytes(channels * width * num_frames))
    listen(file.getvalue())
