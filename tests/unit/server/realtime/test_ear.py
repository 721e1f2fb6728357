"""Microphone and camera become turns: whole, at any rate, and where they belong in time."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.voiced import RATE_HZ, silence, to_pcm, voice

from qianyan.engine.engine import Engine
from qianyan.errors import MediaError
from qianyan.server.errors import RefusedError
from qianyan.server.realtime.ear import Began, Ear, Ended
from qianyan.server.realtime.session_settings import TurnDetection
from qianyan.server.realtime.vad import SpeechModel, find_model
from qianyan.server.settings import RealtimeLimits


@pytest.fixture(scope="module")
def detector() -> SpeechModel:
    path = find_model()
    assert isinstance(path, Path)
    return SpeechModel(path)


@pytest.fixture
def ear(omni: Engine, detector: SpeechModel) -> Ear:
    return Ear(omni.processor, RealtimeLimits(), detector)


def hear(ear: Ear, samples: np.ndarray, *, step: int = 1600) -> list[Began | Ended]:
    found: list[Began | Ended] = []
    for start in range(0, len(samples), step):
        found += ear.hear(to_pcm(samples[start : start + step]), RATE_HZ)
    return found


def picture(colour: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (112, 84), colour).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 48_000])
@pytest.mark.parametrize("step", [2, 999, 100_000])
def test_a_turn_has_the_length_of_what_was_sent(ear: Ear, rate_hz: int, step: int) -> None:
    pcm = to_pcm(np.sin(np.arange(rate_hz // 4 if step == 2 else rate_hz) / 20))
    for start in range(0, len(pcm), 2 * step):
        assert ear.hear(pcm[start : start + 2 * step], rate_hz) == []
    turn = ear.commit()
    assert turn.told["type"] == "audio"
    assert turn.at_ms is None
    assert turn.seconds == pytest.approx(len(pcm) / 2 / rate_hz, abs=0.02)


def test_a_turn_that_was_committed_is_gone_and_so_is_one_that_was_cleared(ear: Ear) -> None:
    hear(ear, voice(0.5))
    first = ear.commit()
    for _ in range(2):
        with pytest.raises(RefusedError, match="less than 30 ms of sound"):
            ear.commit()
        hear(ear, voice(0.5))
        ear.clear()
    hear(ear, voice(0.25))
    second = ear.commit()
    assert (first.seconds, second.seconds) == (0.5, 0.25)
    assert first.item_id != second.item_id


def test_half_a_sample_is_refused_and_the_turn_goes_on(ear: Ear) -> None:
    hear(ear, voice(0.5))
    with pytest.raises(RefusedError, match="has 3 bytes; expected an even number"):
        ear.hear(b"\0\0\0", RATE_HZ)
    assert ear.commit().seconds == 0.5


def test_a_turn_beyond_the_limit_is_refused_without_a_detector(omni: Engine) -> None:
    ear = Ear(omni.processor, RealtimeLimits(max_buffer_s=1.0), None)
    hear(ear, voice(0.9))
    with pytest.raises(MediaError, match="longer than") as refused:
        hear(ear, voice(0.5), step=8000)
    assert refused.value.code == "too_long"
    assert ear.commit().seconds == pytest.approx(0.9)


def test_frames_are_seen_beside_the_sound_of_their_second(ear: Ear) -> None:
    ear.see(picture("red"))
    hear(ear, voice(2.0))
    ear.see(picture("blue"))
    hear(ear, voice(1.5))
    told = ear.commit().told
    assert told["type"] == "video"
    colours = [frame.getpixel((5, 5)) for frame in told["video"]]
    assert colours[:2] == [(255, 0, 0)] * 2
    assert colours[-1] == (0, 0, 255)
    assert len(colours) == 4


def test_a_picture_that_is_none_or_too_large_is_refused(omni: Engine) -> None:
    ear = Ear(omni.processor, RealtimeLimits(max_frame_bytes=50), None)
    with pytest.raises(MediaError):
        ear.see(b"nothing")
    with pytest.raises(RefusedError, match="expected at most 50"):
        ear.see(picture("red"))


def test_a_detector_cuts_turns_out_with_what_came_just_before(ear: Ear) -> None:
    ear.detect(TurnDetection(prefix_padding_ms=300, silence_duration_ms=500))
    sound = [silence(1.0), voice(1.0), silence(1.0), voice(1.2, seed=1), silence(1.0)]
    began, ended, again, last = hear(ear, np.concatenate(sound))
    assert isinstance(began, Began)
    assert isinstance(ended, Ended)
    assert began.item_id == ended.item_id
    assert 600 <= began.at_ms <= 1000
    assert ended.at_ms == pytest.approx(2550, abs=150)
    assert ended.seconds == pytest.approx((ended.at_ms - began.at_ms) / 1000, abs=0.01)
    assert isinstance(again, Began)
    assert isinstance(last, Ended)
    assert 2700 <= again.at_ms <= 3000
    assert last.item_id != ended.item_id


def test_pieces_of_any_size_give_the_same_turns(ear: Ear, omni: Engine, detector: Any) -> None:
    sound = np.concatenate([silence(0.3), voice(1.0), silence(0.8)])
    found = []
    for step in (160, 777, len(sound)):
        one = Ear(omni.processor, RealtimeLimits(), detector)
        one.detect(TurnDetection())
        began, ended = hear(one, sound, step=step)
        assert isinstance(began, Began)
        assert isinstance(ended, Ended)
        found.append((began.at_ms, ended.at_ms, ended.seconds))
    assert found[0] == found[1] == found[2]


def test_a_turn_that_is_too_long_is_ended_by_the_detector(omni: Engine, detector: Any) -> None:
    ear = Ear(omni.processor, RealtimeLimits(max_buffer_s=1.0), detector)
    ear.detect(TurnDetection())
    found = hear(ear, np.concatenate([voice(2.5), silence(1.0)]))
    turns = [one for one in found if isinstance(one, Ended)]
    assert len(turns) > 1
    assert all(turn.seconds <= 1.0 for turn in turns)


def test_what_the_camera_saw_before_somebody_spoke_belongs_to_the_turn(ear: Ear) -> None:
    ear.detect(TurnDetection())
    hear(ear, silence(0.5))
    ear.see(picture("green"))
    *_, ended = hear(ear, np.concatenate([voice(1.0), silence(0.8)]))
    assert isinstance(ended, Ended)
    assert ended.told["type"] == "video"
    assert ended.told["video"][0].getpixel((5, 5)) == (0, 128, 0)


def test_a_client_may_end_a_turn_before_the_detector_and_take_over(ear: Ear) -> None:
    ear.detect(TurnDetection())
    (began,) = hear(ear, voice(1.0))
    turn = ear.commit()
    assert turn.item_id == began.item_id
    assert hear(ear, silence(1.0)) == []
    ear.detect(None)
    hear(ear, voice(0.5))
    ear.detect(TurnDetection(silence_duration_ms=200))
    (ended,) = hear(ear, silence(0.6))
    assert isinstance(ended, Ended)
    assert 0.6 < ended.seconds < 1.1


def test_blocks_are_told_while_a_turn_is_under_way(ear: Ear) -> None:
    assert ear.part_so_far() is None
    hear(ear, voice(1.9))
    assert ear.num_blocks == 0
    hear(ear, voice(2.4, seed=1))
    assert ear.num_blocks == 2
    part = ear.part_so_far()
    assert part is not None
    assert part["audio"].record.duration_s == 4.0
    whole = ear.commit().told["audio"].frames
    assert np.array_equal(whole[:400], part["audio"].frames)


def test_without_a_model_nothing_is_detected(omni: Engine) -> None:
    ear = Ear(omni.processor, RealtimeLimits(), None)
    ear.detect(TurnDetection())
    assert hear(ear, np.concatenate([voice(1.0), silence(1.0)])) == []
    assert ear.commit().seconds == 2.0


def test_sound_beyond_the_models_own_limit_is_refused(omni: Engine) -> None:
    processor = omni.processor
    before = processor.limits
    processor.limits = replace(before, audio=replace(before.audio, max_duration_s=0.5))
    try:
        ear = Ear(processor, RealtimeLimits(), None)
        with pytest.raises(MediaError, match="longer than"):
            hear(ear, voice(1.0), step=RATE_HZ)
    finally:
        processor.limits = before
