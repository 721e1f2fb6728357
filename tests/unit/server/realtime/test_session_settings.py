"""Settings in the words of three clients, and what is refused of them."""

from typing import Any

import pytest

from qianyan.server.errors import RefusedError
from qianyan.server.realtime.client_events import ResponseFields, SessionFields
from qianyan.server.realtime.session_settings import (
    Abilities,
    SessionSettings,
    TurnDetection,
    change_answer,
    change_session,
)

ABLE = Abilities(voices=("Chelsie", "Ethan"), has_vad=True, max_text_characters=100)
MUTE = Abilities(voices=(), has_vad=False, max_text_characters=100)
USUAL = SessionSettings(is_spoken=True, input_rate_hz=24_000, voice="Chelsie")


def change(able: Abilities = ABLE, **fields: Any) -> SessionSettings:
    return change_session(USUAL, SessionFields.model_validate(fields), able)


def test_bailians_client_and_openais_say_the_same() -> None:
    detection = {"type": "server_vad", "threshold": 0.4, "silence_duration_ms": 900}
    bailian = change(
        modalities=["text", "audio"],
        voice="Ethan",
        input_audio_format="pcm16",
        sample_rate=16_000,
        output_audio_format="pcm24",
        input_audio_transcription={"model": None},
        turn_detection=detection,
        max_tokens=9,
        smooth_output=True,
    )
    sound = {"format": {"type": "audio/pcm", "rate": 16_000}, "turn_detection": detection}
    spoken = {"voice": "Ethan", "format": {"type": "audio/pcm", "rate": 24_000}, "speed": 1.0}
    audio = {"input": sound, "output": spoken}
    openai = change(type="realtime", output_modalities=["audio"], audio=audio, max_output_tokens=9)
    assert bailian == openai
    assert bailian.detection == TurnDetection(threshold=0.4, silence_duration_ms=900)
    assert bailian.options == {"max_tokens": 9}


def test_bailians_client_may_state_rates_in_the_newer_way() -> None:
    formats = {"format": {"type": "pcm", "sample_rate": 48_000}}
    assert change(audio={"input": formats}).input_rate_hz == 48_000


def test_what_is_not_named_stays_as_it_is() -> None:
    first = change(temperature=0.3, instructions="Be brief.", turn_detection={"type": "server_vad"})
    second = change_session(first, SessionFields.model_validate({"top_p": 0.5}), ABLE)
    assert second.detection == TurnDetection()
    assert second.instructions == "Be brief."
    assert second.options == {"temperature": 0.3, "top_p": 0.5}
    assert first.options == {"temperature": 0.3}
    third = change_session(second, SessionFields.model_validate({"turn_detection": None}), ABLE)
    assert third.detection is None


def test_a_length_may_be_taken_back() -> None:
    first = change(max_response_output_tokens=5)
    endless = SessionFields.model_validate({"max_response_output_tokens": "inf"})
    assert change_session(first, endless, ABLE).options == {}


def test_a_threshold_below_all_silence_is_raised() -> None:
    changed = change(turn_detection={"type": "server_vad", "threshold": -1})
    assert changed.detection is not None
    assert changed.detection.threshold == 0.05


def test_one_answer_may_have_settings_of_its_own() -> None:
    fields = ResponseFields.model_validate({"instructions": None, "modalities": ["text"]})
    changed = change_answer(USUAL, fields, ABLE, where="response")
    assert not changed.is_spoken
    assert changed.instructions == USUAL.instructions


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"type": "transcription"}, "session.type"),
        ({"modalities": ["audio"]}, r"Invalid modalities: \['audio'\]"),
        ({"output_modalities": ["text", "audio"]}, "Invalid modalities"),
        ({"voice": "alloy"}, r"Input should be 'Chelsie' or 'Ethan': parameters\.audio\.voice"),
        ({"audio": {"output": {"voice": "alloy"}}}, "Input should be 'Chelsie' or 'Ethan'"),
        ({"instructions": "x" * 101}, "session.instructions has 101 characters"),
        ({"input_audio_format": "g711_alaw"}, "expected 16-bit samples"),
        ({"sample_rate": 11_025}, "expected one of 8000, 16000, 24000, 48000"),
        ({"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, "expected 16-bit samples"),
        ({"audio": {"output": {"format": {"type": "audio/pcm", "rate": 8000}}}}, "24000"),
        ({"audio": {"output": {"speed": 1.5}}}, "speed"),
        ({"speed": 0.5}, "speed"),
        ({"audio": {"input": {"noise_reduction": {"type": "near_field"}}}}, "noise_reduction"),
        ({"input_audio_noise_reduction": {"type": "near_field"}}, "noise_reduction"),
        ({"turn_detection": {"type": "semantic_vad"}}, "expected server_vad, or null"),
        ({"turn_detection": {"type": "server_vad", "idle_timeout_ms": 9000}}, "idle_timeout_ms"),
        ({"tools": [{"type": "function"}]}, "session.tools"),
        ({"prompt": {"id": "x"}}, "session.prompt"),
        ({"enable_search": True}, "enable_search"),
        ({"max_tokens": 0}, "a number above 0"),
    ],
)
def test_what_would_change_an_answer_and_cannot_be_done_is_refused(
    fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(RefusedError, match=words):
        change(**fields)


def test_a_model_that_does_not_speak_is_asked_for_text_only() -> None:
    with pytest.raises(RefusedError, match="does not speak; expected modalities"):
        change(MUTE, modalities=["text", "audio"])
    assert not change(MUTE, modalities=["text"], voice="Chelsie").is_spoken


def test_a_detector_that_is_not_installed_is_named_with_its_extra() -> None:
    with pytest.raises(RefusedError, match=r"pip install 'qianyan\[vad\]'") as refused:
        change(MUTE, turn_detection={"type": "server_vad"})
    assert refused.value.code == "missing_extra"
    assert change(MUTE, turn_detection=None).detection is None
