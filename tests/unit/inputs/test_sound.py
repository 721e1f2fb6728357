"""Sounds out of real files: formats, rates, channels, holes, damage, and what is refused."""

import wave
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from qianyan.errors import MediaError
from qianyan.inputs.sound import AudioLimits, Sound, read_sound, read_soundtrack

RATE = 16_000
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1", 16: "hexadecagonal"}


def tone(seconds: float, rate: int, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    """One channel of a sine, (1, samples) float32."""
    times = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hertz * times)).astype(np.float32)[None]


def encode(samples: np.ndarray, rate: int, form: str = "wav", codec: str = "pcm_s16le") -> bytes:
    """Write (channels, samples) as a sound file."""
    file = BytesIO()
    with av.open(file, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout=LAYOUTS[len(samples)])
        _mux(container, stream, samples, rate)
    return file.getvalue()


def _mux(container: Any, stream: Any, samples: np.ndarray, rate: int, start: int = 0) -> None:
    layout = LAYOUTS[len(samples)]
    convert = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
    size = stream.codec_context.frame_size or 1024
    for at in range(0, samples.shape[1], size):
        piece = np.ascontiguousarray(samples[:, at : at + size].T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(piece, format="flt", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), start + at
        for converted in convert.resample(frame):
            container.mux(stream.encode(converted))
    container.mux(stream.encode(None))


def clip(
    seconds: float, *, sound: np.ndarray | None = None, rate: int = 48_000, late_s: float = 0.0
) -> bytes:
    """Write a video of grey frames, with a soundtrack that begins `late_s` after them."""
    file = BytesIO()
    with av.open(file, "w", format="matroska") as container:
        video: Any = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 64
        audio: Any = None
        if sound is not None:
            audio = container.add_stream("pcm_s16le", rate=rate, layout=LAYOUTS[len(sound)])
        for index in range(round(seconds * 10)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index, np.uint8), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            _mux(container, audio, sound, rate, round(late_s * rate))
    return file.getvalue()


def level_db(samples: np.ndarray) -> float:
    """Loudness of a stretch against a sine of 0.5."""
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    return float(20 * np.log10(np.sqrt((middle**2).mean()) / (0.5 / np.sqrt(2)) + 1e-9))


@pytest.mark.parametrize(
    ("form", "codec"),
    [
        ("wav", "pcm_s16le"),
        ("wav", "pcm_u8"),
        ("wav", "pcm_s24le"),
        ("wav", "pcm_f32le"),
        ("wav", "pcm_alaw"),
        ("flac", "flac"),
        ("mp3", "libmp3lame"),
        ("ogg", "flac"),
        ("ogg", "libopus"),
        ("adts", "aac"),
        ("ipod", "aac"),
        ("ipod", "alac"),
        ("matroska", "aac"),
        ("aiff", "pcm_s16be"),
    ],
)
def test_usual_formats_are_heard(form: str, codec: str) -> None:
    sound = read_sound(encode(tone(1.0, 48_000), 48_000, form, codec), RATE)
    assert sound.samples.dtype == np.float32
    assert 1.0 <= len(sound.samples) / RATE < 1.15  # coders add some silence
    assert level_db(sound.samples) == pytest.approx(0, abs=0.5)
    assert (sound.record.rate_hz, sound.record.channels) == (48_000, 1)
    assert sound.record.duration_s == len(sound.samples) / RATE
    assert sound.record.notes == ()


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_every_rate_becomes_the_models(rate: int) -> None:
    sound = read_sound(encode(tone(2.0, rate, 1000.0), rate, codec="pcm_f32le"), RATE)
    assert len(sound.samples) == 2 * RATE
    expected = tone(2.0, RATE, 1000.0)[0]
    middle = slice(RATE // 2, -RATE // 2)
    assert np.abs(sound.samples - expected)[middle].max() < 2e-3


def test_nothing_beyond_half_the_rate_comes_through_as_another_sound() -> None:
    for hertz, least, most in ((7000.0, -0.1, 0.1), (8200.0, -200, -70), (12_000.0, -200, -90)):
        sound = read_sound(encode(tone(1.0, 48_000, hertz), 48_000, codec="pcm_f32le"), RATE)
        assert least <= level_db(sound.samples) <= most


def test_channels_are_averaged() -> None:
    left = tone(1.0, RATE)
    silent = np.zeros_like(left)
    stereo = read_sound(encode(np.concatenate([left, silent]), RATE, codec="pcm_f32le"), RATE)
    assert np.abs(stereo.samples - left[0] / 2).max() < 1e-6
    six = read_sound(encode(np.repeat(tone(1.0, 96_000), 6, axis=0), 96_000), RATE)
    assert level_db(six.samples) == pytest.approx(0, abs=0.1)
    assert (six.record.rate_hz, six.record.channels) == (96_000, 6)


@pytest.mark.parametrize(
    ("form", "codec", "count"),
    [("matroska", "aac", 8), ("flac", "flac", 8), ("wav", "pcm_s16le", 16)],
)
def test_many_channels_end_no_program(form: str, codec: str, count: int) -> None:
    """Of eight planes and more PyAV would read one too many. (One channel of 7.1 is for basses.)"""
    data = encode(np.repeat(tone(1.0, 48_000), count, axis=0), 48_000, form, codec)
    sound = read_sound(data, RATE)
    assert sound.record.channels == count
    assert level_db(sound.samples) == pytest.approx(0, abs=1.5)


def test_silence_and_clipping_are_heard_and_noted() -> None:
    silence = read_sound(encode(np.zeros((1, RATE), np.float32), RATE), RATE)
    assert len(silence.samples) == RATE
    assert silence.record.notes == ("silent: nothing in it is louder than -80 dB",)
    clipped = read_sound(encode(tone(1.0, RATE, level=2.0).clip(-1, 1), RATE), RATE)
    assert clipped.record.notes[0].startswith("clipped: 6")


def test_numbers_that_are_none_are_silence() -> None:
    """Float files can hold what is no number, and numbers far beyond full scale."""
    odd = tone(1.0, RATE)
    odd[0, 100], odd[0, 200], odd[0, 300] = np.nan, np.inf, 1e30
    data = bytearray(encode(tone(1.0, RATE), RATE, codec="pcm_f32le"))
    at = data.index(b"data") + 8
    data[at : at + odd.nbytes] = odd.tobytes()
    sound = read_sound(bytes(data), RATE)
    assert np.isfinite(sound.samples).all()
    assert sound.samples[100] == 0
    assert sound.samples[200] == 1


def test_a_file_on_disk_is_read_as_its_bytes(tmp_path: Path) -> None:
    data = encode(tone(0.5, 44_100), 44_100, "flac", "flac")
    (tmp_path / "a.bin").write_bytes(data)
    assert np.array_equal(
        read_sound(tmp_path / "a.bin", RATE).samples, read_sound(data, RATE).samples
    )


def soundtrack(data: bytes, **stretch: Any) -> Sound:
    sound = read_soundtrack(data, RATE, **stretch)
    assert sound is not None
    return sound


def test_a_soundtrack_is_laid_beside_its_video() -> None:
    sound = tone(2.0, 48_000, 1000.0)
    whole = soundtrack(clip(2.0, sound=sound))
    assert len(whole.samples) == 2 * RATE
    late = soundtrack(clip(2.0, sound=sound[:, :48_000], late_s=0.5))
    assert len(late.samples) == 1.5 * RATE
    assert np.abs(late.samples[: RATE // 2 - 100]).max() < 1e-3
    assert level_db(late.samples[RATE // 2 :]) == pytest.approx(0, abs=0.1)


def test_a_stretch_of_a_soundtrack_is_cut_out() -> None:
    ramp = np.linspace(-1, 1, 4 * RATE, dtype=np.float32)[None]
    data = clip(4.0, sound=ramp, rate=RATE)
    part = soundtrack(data, start_s=1.0, end_s=2.5)
    assert np.abs(part.samples - ramp[0, RATE : int(2.5 * RATE)]).max() < 1e-3
    assert len(soundtrack(data, start_s=3.0).samples) == RATE
    assert read_soundtrack(data, RATE, start_s=4.0) is None


def test_a_video_without_sound_has_none() -> None:
    assert read_soundtrack(clip(1.0), RATE) is None
    with pytest.raises(MediaError, match="has no sound in it") as refused:
        read_sound(clip(1.0), RATE)
    assert refused.value.code == "no_sound"
    assert len(read_sound(clip(1.0, sound=tone(1.0, 48_000)), RATE).samples) == RATE


def test_a_corrupt_mp3_is_heard_as_far_as_it_goes() -> None:
    data = bytearray(encode(tone(4.0, 44_100), 44_100, "mp3", "libmp3lame"))
    rng = np.random.default_rng(0)
    for at in rng.integers(2000, len(data), 40):
        data[at] ^= 0xFF
    sound = read_sound(bytes(data), RATE)
    assert 3.0 < len(sound.samples) / RATE < 4.5
    cut = read_sound(bytes(data[: len(data) // 2]), RATE)
    assert 1.0 < len(cut.samples) / RATE < 2.5


def damaged_mp3() -> bytes:
    """A head of an MP3 file, then noise."""
    data = encode(tone(2.0, 44_100), 44_100, "mp3", "libmp3lame")
    noise = np.random.default_rng(1).integers(0, 128, len(data), dtype=np.uint8)
    return b"ID3\x04\0\0\0\0\0\x0a" + noise.tobytes()


REFUSED: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "nothing": (lambda: b"", "empty_file", "is empty"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(600), "not_a_sound", "Send it as a picture"),
    "a text": (lambda: b"hello, this is no sound" * 9, "not_a_sound", "not a sound but text"),
    "noise": (lambda: bytes(range(1, 256)) * 9, "not_a_sound", "data of an unknown kind"),
    "a playlist": (lambda: b"#EXTM3U\nhttp://127.0.0.1/a.mp3\n", "not_a_sound", "a playlist"),
    "a corrupt MP3": (damaged_mp3, "truncated", "damaged"),
    "half a WAV header": (lambda: encode(tone(1.0, RATE), RATE)[:30], "truncated", "cut short"),
    "no samples": (lambda: encode(tone(1.0, RATE), RATE)[:78], "truncated", "is damaged: 0 of its"),
    "one sample": (lambda: encode(tone(1 / RATE, RATE), RATE), "too_short", "0.0001 seconds long"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_sound_is_refused_in_a_sentence(name: str) -> None:
    make, code, words = REFUSED[name]
    with pytest.raises(MediaError, match=words) as refused:
        read_sound(make(), RATE)
    assert refused.value.code == code


def test_three_hours_are_refused_before_they_are_all_unpacked() -> None:
    file = BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(1)
        written.setframerate(1000)
        written.writeframes(bytes([128]) * (3 * 3600 * 1000))
    with pytest.raises(MediaError, match="longer than 60 minutes") as refused:
        read_sound(file.getvalue(), RATE)
    assert refused.value.code == "too_long"


def test_every_limit_is_kept() -> None:
    data = encode(np.repeat(tone(2.0, 48_000), 2, axis=0), 48_000)
    for limits, code in (
        (AudioLimits(max_duration_s=1.5), "too_long"),
        (AudioLimits(min_duration_s=2.5), "too_short"),
        (AudioLimits(max_rate_hz=44_100), "too_large"),
        (AudioLimits(max_channels=1), "too_large"),
        (AudioLimits(max_read_s=0.0), "timeout"),
    ):
        with pytest.raises(MediaError) as refused:
            read_sound(data, RATE, limits)
        assert refused.value.code == code
    assert read_soundtrack(data, RATE, AudioLimits(min_duration_s=2.5)) is None
