"""A sound heard while it is made: the same frames however it comes, and blocks that stay."""

import wave
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qianyan.errors import MediaError
from qianyan.inputs.growing import GrowingSound, SoundSoFar
from qianyan.inputs.mel import MelConfig, log_mel
from qianyan.inputs.sound import AudioLimits, read_sound

CONFIG = MelConfig()
BLOCK_SAMPLES = 32_000


def speech(seconds: float, rate_hz: int = 16_000, *, seed: int = 0) -> np.ndarray:
    """Tones that rise and fall over a little noise, the loudest moment in the first second."""
    random = np.random.default_rng(seed)
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    loudness = 0.2 + 0.1 * np.cos(1.3 * times) + 0.3 * np.exp(-(((times - 0.5) / 0.2) ** 2))
    tones = np.sin(2 * np.pi * (180 + 40 * np.sin(times)) * times)
    return (loudness * tones + 0.003 * random.standard_normal(len(times))).astype(np.float32)


def hear(samples: np.ndarray, cuts: list[int], rate_hz: int = 16_000) -> GrowingSound:
    sound = GrowingSound(CONFIG)
    for start, stop in pairwise([0, *sorted(cuts), len(samples)]):
        sound.add(samples[start:stop], rate_hz)
    return sound


@pytest.mark.parametrize("seconds", [0.03, 0.5, 2.0, 2.0025, 2.01, 3.98, 4.0, 7.31])
def test_frames_are_those_of_a_file_whose_loudest_place_comes_first(seconds: float) -> None:
    samples = speech(seconds)
    heard = hear(samples, [100, 5000]).finish()
    assert np.array_equal(heard.frames, log_mel(samples, CONFIG))
    assert heard.record.duration_s == pytest.approx(seconds, abs=1e-4)
    assert (heard.record.rate_hz, heard.record.channels, heard.record.notes) == (16_000, 1, ())


@settings(max_examples=25, deadline=None)
@given(st.integers(480, 100_000), st.lists(st.integers(0, 100_000), max_size=12))
def test_it_does_not_matter_how_a_sound_is_cut(count: int, cuts: list[int]) -> None:
    samples = speech(7)[:count]
    whole = hear(samples, []).finish()
    pieces = hear(samples, [min(cut, count) for cut in cuts]).finish()
    assert np.array_equal(whole.frames, pieces.frames)


@pytest.mark.parametrize("rate_hz", [8_000, 24_000, 48_000])
def test_other_rates_are_changed_alike_in_pieces_and_whole(rate_hz: int) -> None:
    samples = speech(4.3, rate_hz)
    pieces = hear(samples, list(range(0, len(samples), 480)), rate_hz)
    heard = pieces.finish()
    assert np.array_equal(heard.frames, hear(samples, [], rate_hz).finish().frames)
    file = BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(rate_hz)
        written.writeframes((samples * 32768).astype("<i2").tobytes())
    read = read_sound(file.getvalue(), 16_000)
    assert heard.record.duration_s == read.record.duration_s
    # 16 bits are noise of their own, 90 dB down.
    loud = log_mel(read.samples, CONFIG)
    assert np.abs(heard.frames - loud)[loud > 0].max() < 0.02


def test_a_block_is_complete_when_its_last_window_is() -> None:
    samples, sound = speech(5), GrowingSound(CONFIG)
    assert sound.so_far() is None
    # The last of 200 frames stands at 1.99 s and reaches 12.5 ms to either side.
    sound.add(samples[: BLOCK_SAMPLES + 39], 16_000)
    assert sound.num_blocks == 0
    sound.add(samples[BLOCK_SAMPLES + 39 : BLOCK_SAMPLES + 40], 16_000)
    assert sound.num_blocks == 1
    sound.add(samples[BLOCK_SAMPLES + 40 : 2 * BLOCK_SAMPLES + 39], 16_000)
    assert sound.num_blocks == 1
    sound.add(samples[2 * BLOCK_SAMPLES + 39 :], 16_000)
    assert sound.num_blocks == 2


def test_every_part_is_a_beginning_of_the_whole() -> None:
    samples, sound = speech(9.1), GrowingSound(CONFIG)
    samples[90_000:100_000] *= 3  # louder than all before
    parts: list[SoundSoFar] = []
    for start in range(0, len(samples), 8_000):
        sound.add(samples[start : start + 8_000], 16_000)
        if (part := sound.so_far()) is not None:
            assert len(part.frames) == 200 * sound.num_blocks
            assert part.record.duration_s == 2 * sound.num_blocks
            parts.append(part)
    whole = sound.finish()
    assert len(parts) > 10
    assert all(np.array_equal(part.frames, whole.frames[: len(part.frames)]) for part in parts)


def test_a_louder_place_later_changes_no_earlier_block_and_the_file_by_the_stated_bound() -> None:
    """What lies 80 dB and more below the loudest place of the whole differs, and nothing else."""
    samples = speech(8.0)
    samples[:BLOCK_SAMPLES] *= 0.001  # whispered, and then spoken aloud
    samples[40_000:44_000] *= 4
    heard, file = hear(samples, []).finish().frames, log_mel(samples, CONFIG)
    first = log_mel(samples[:BLOCK_SAMPLES], CONFIG)
    rise = file.max() - first.max()
    assert rise > 1, "the later part is louder by more than 40 dB"
    floor = file.max() - 2  # 8 decades, a quarter of which is a unit
    differs = heard != file
    assert differs[:200].any()
    assert (file[differs] == floor).all(), "only what the file's own floor has raised"
    assert (heard[differs] < floor).all()
    assert (file - heard)[differs].max() <= rise + 1e-6
    assert not differs[200:].any()


def test_silence_is_heard_and_told() -> None:
    heard = hear(np.zeros(70_000, np.float32), []).finish()
    assert heard.record.notes == ("silent: nothing in it is louder than -80 dB",)
    assert np.isfinite(heard.frames).all()


def test_numbers_that_are_none_do_not_spread() -> None:
    samples = speech(3)
    samples[[5, 6000, 20_000]] = np.nan, np.inf, -np.inf
    assert np.isfinite(hear(samples, []).finish().frames).all()


def test_what_is_too_short_too_long_or_of_no_rate_is_refused() -> None:
    limits = AudioLimits(max_duration_s=3)
    for samples, rate_hz, code in (
        (np.zeros(479, np.float32), 16_000, "too_short"),
        (np.zeros(0, np.float32), 16_000, "too_short"),
        (np.zeros(48_001, np.float32), 16_000, "too_long"),
        (np.zeros(10, np.float32), 0, "too_large"),
        (np.zeros(10, np.float32), 10_000_000, "too_large"),
    ):
        sound = GrowingSound(CONFIG, limits)
        with pytest.raises(MediaError) as refused:
            _ = sound.add(samples, rate_hz), sound.finish()
        assert refused.value.code == code
