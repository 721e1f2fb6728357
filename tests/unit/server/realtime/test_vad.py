"""silero hears speech in what sounds like some, and in nothing else."""

import sys
from typing import Any

import numpy as np
import pytest
from tests.voiced import silence, voice

from qianyan.server.realtime.session_settings import TurnDetection
from qianyan.server.realtime.vad import RATE_HZ, WINDOW, SpeechModel, TurnWatcher, find_model


@pytest.fixture(scope="module")
def model() -> SpeechModel:
    path = find_model()
    assert path is not None
    return SpeechModel(path)


def changes(watcher: TurnWatcher, samples: np.ndarray) -> list[tuple[bool, float]]:
    """What happens, and after how many seconds."""
    found = []
    for end in range(WINDOW, len(samples) + 1, WINDOW):
        change = watcher.judge(samples[end - WINDOW : end])
        if change is not None:
            found.append((change, end / RATE_HZ))
    return found


@pytest.mark.parametrize("pitch_hz", [110.0, 180.0, 240.0])
def test_a_voice_begins_and_ends_a_turn(model: SpeechModel, pitch_hz: float) -> None:
    sound = np.concatenate([silence(0.5), voice(1.5, pitch_hz=pitch_hz), silence(1.0)])
    (began, began_s), (ended, ended_s) = changes(TurnWatcher(model, TurnDetection()), sound)
    assert (began, ended) == (True, False)
    assert 0.55 < began_s < 1.1
    assert 2.4 < ended_s < 2.75, "half a second of silence after 2.0 s"


def noise(seconds: float) -> np.ndarray:
    chance = np.random.default_rng(1)
    drawn: np.ndarray = chance.normal(0, 0.1, int(seconds * RATE_HZ)).astype(np.float32)
    return drawn


def clicks(seconds: float) -> np.ndarray:
    sound = silence(seconds)
    sound[:: RATE_HZ // 2] = 1.0
    return sound


def hum(seconds: float) -> np.ndarray:
    times = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    drawn: np.ndarray = (0.3 * np.sin(2 * np.pi * 50 * times)).astype(np.float32)
    return drawn


@pytest.mark.parametrize("make", [silence, noise, clicks, hum])
def test_what_is_no_voice_begins_nothing(model: SpeechModel, make: Any) -> None:
    assert changes(TurnWatcher(model, TurnDetection()), make(3.0)) == []


def test_a_pause_shorter_than_asked_for_ends_nothing(model: SpeechModel) -> None:
    sound = np.concatenate([voice(1.0), silence(0.6), voice(1.0, seed=1), silence(1.5)])
    patient = TurnWatcher(model, TurnDetection(silence_duration_ms=1000))
    assert [is_speech for is_speech, _ in changes(patient, sound)] == [True, False]
    hasty = TurnWatcher(model, TurnDetection(silence_duration_ms=300))
    assert [is_speech for is_speech, _ in changes(hasty, sound)] == [True, False] * 2


def test_a_watcher_that_forgets_hears_the_same_again(model: SpeechModel) -> None:
    watcher = TurnWatcher(model, TurnDetection())
    sound = np.concatenate([silence(0.2), voice(1.0)])
    first = changes(watcher, sound)
    watcher.reset()
    assert changes(watcher, sound) == first
    assert [is_speech for is_speech, _ in first] == [True]


def test_two_streams_of_one_model_do_not_disturb_each_other(model: SpeechModel) -> None:
    sound = np.concatenate([silence(0.2), voice(1.0), silence(1.0)])
    alone = changes(TurnWatcher(model, TurnDetection()), sound)
    one, other = (TurnWatcher(model, TurnDetection()) for _ in range(2))
    found = []
    for end in range(WINDOW, len(sound) + 1, WINDOW):
        change = one.judge(sound[end - WINDOW : end])
        other.judge(noise(0.032))
        if change is not None:
            found.append((change, end / RATE_HZ))
    assert found == alone


@pytest.mark.parametrize("missing", ["silero_vad", "onnxruntime"])
def test_without_the_extra_there_is_no_model(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert find_model() is None
