"""Which voice reads alarms: the model that looks, another checkpoint, an endpoint, or none."""

import wave
from io import BytesIO
from pathlib import Path

import pytest
from tests.reading_checkpoint import write_reading_checkpoint

from qianyan.engine.desk import Desk
from qianyan.engine.engine import Engine
from qianyan.errors import ConfigError, EndpointError
from qianyan.inspection.alarms.voices import LocalVoice, VoiceSettings, open_voice
from qianyan.inspection.inspector import LookSettings, OpenLook, open_look
from qianyan.inspection.remote.voice import RemoteVoice

SENTENCE = "东门有明火"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reading_checkpoint(tmp_path_factory.mktemp("reading"))


@pytest.fixture(scope="module")
def silent(tiny_pair: Path) -> tuple[LookSettings, OpenLook]:
    """A detector alone, which looks and does not speak."""
    settings = LookSettings(model=str(tiny_pair / "detector"), look="detector")
    return settings, open_look(settings)


def seconds(sound: bytes) -> float:
    with wave.open(BytesIO(sound)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24_000)
        return file.getnframes() / file.getframerate()


def test_the_model_that_looks_speaks_where_it_can(folder: Path) -> None:
    """It is loaded once, and the same sentence always sounds the same."""
    settings = LookSettings(model=str(folder), dtype="float32")
    opened = open_look(settings, use_speech=True)
    voice = open_voice(VoiceSettings(voice="Ethan"), settings, opened)
    assert isinstance(voice, LocalVoice)
    assert voice._engine is opened.engine
    sound = voice.say(SENTENCE)
    assert seconds(sound) == len(SENTENCE.encode()) / 50
    assert voice.say(SENTENCE) == sound
    named = open_voice(VoiceSettings(model=str(folder)), settings, opened)
    assert isinstance(named, LocalVoice)
    assert named._engine is opened.engine


def test_a_model_that_is_only_to_look_sets_nothing_aside_for_speech(folder: Path) -> None:
    settings = LookSettings(model=str(folder), dtype="float32")
    opened = open_look(settings)
    assert opened.engine is not None
    assert not opened.engine.speech.is_there
    elsewhere = VoiceSettings(base_url="http://127.0.0.1:9/v1")
    assert [one.is_of(settings) for one in (VoiceSettings(), elsewhere)] == [True, False]
    assert VoiceSettings(model=str(folder)).is_of(settings)
    assert not VoiceSettings(model="other").is_of(settings)


def test_another_checkpoint_speaks_for_a_detector(
    folder: Path, silent: tuple[LookSettings, OpenLook]
) -> None:
    voice = open_voice(VoiceSettings(model=str(folder)), *silent)
    assert voice.name == folder.name
    assert seconds(voice.say(SENTENCE)) > 0.2


def test_a_model_that_does_not_speak_is_refused_before_anything_is_looked_at(
    silent: tuple[LookSettings, OpenLook],
) -> None:
    with pytest.raises(ConfigError, match="looks and does not speak; name one that does"):
        open_voice(VoiceSettings(), *silent)
    with pytest.raises(ConfigError, match="'bundled' does not speak; expected one that does"):
        open_voice(VoiceSettings(model="bundled"), *silent)


def test_an_unknown_voice_is_refused_with_the_known_ones(folder: Path) -> None:
    engine = Engine(folder, dtype="float32")
    with pytest.raises(ConfigError, match="--voice is 'Alloy'; expected one of Chelsie, Ethan"):
        LocalVoice(engine, "Alloy", Desk())


def test_endpoints_speak_where_they_are_named(silent: tuple[LookSettings, OpenLook]) -> None:
    """And the one that looks where nothing else is said; none is asked anything yet."""
    settings = VoiceSettings(base_url="http://127.0.0.1:9/v1", model="omni", voice="Cherry")
    voice = open_voice(settings, *silent)
    assert isinstance(voice, RemoteVoice)
    assert (voice.name, voice.voice) == ("omni", "Cherry")
    looking = LookSettings(base_url="http://127.0.0.1:9/v1", api_key="k", model="omni-flash")
    same = open_voice(VoiceSettings(), looking, OpenLook("omni-flash", silent[1].look))
    assert isinstance(same, RemoteVoice)
    assert same.name == "omni-flash"
    unnamed = open_voice(VoiceSettings(base_url="http://127.0.0.1:9/v1"), *silent)
    assert unnamed.name == "http://127.0.0.1:9/v1"


def test_a_key_without_its_endpoint_is_refused() -> None:
    with pytest.raises(ConfigError, match="--voice-key is given without --voice-url"):
        VoiceSettings(api_key="secret")
    assert "secret" not in repr(VoiceSettings(api_key="secret", base_url="http://h/v1"))
    with pytest.raises(EndpointError, match="expected an address such as"):
        RemoteVoice("ftp://host")
