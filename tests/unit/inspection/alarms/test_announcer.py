"""Alarms of a run: spoken once, kept through interruptions, and never lost when speech fails."""

import json
import threading
import wave
from io import BytesIO
from pathlib import Path

import pytest

from qianyan.errors import ConfigError, EndpointError, ReplyError
from qianyan.inspection.alarms.announcer import ENOUGH_FAILURES, Announcer
from qianyan.inspection.alarms.places import parse_places
from qianyan.inspection.alarms.sentences import AlarmForm
from qianyan.inspection.folder import ResultsFolder, open_folder
from qianyan.inspection.records import Alarm, Box, Detection, Failure, Hazard, Inspection, SubLabel
from qianyan.inspection.results import RunFacts
from qianyan.models.omni.pcm import to_wav

BARE = Detection(Hazard.PERSON, SubLabel.NO_HELMET, Box(1, 1, 9, 9))
FIRE = Detection(Hazard.FIRE, SubLabel.SEVERE, Box(1, 1, 9, 9))


class Beeper:
    """A voice that says every sentence as a beep, and keeps what it was asked."""

    name, voice = "beeper", "Chelsie"

    def __init__(self, *fails: Exception) -> None:
        self.said: list[str] = []
        self.fails = list(fails)
        self.goes_on = threading.Event()
        self.goes_on.set()

    def say(self, sentence: str) -> bytes:
        self.said.append(sentence)
        assert self.goes_on.wait(20)
        if self.fails:
            raise self.fails.pop(0)
        return to_wav(b"\1\2" * (240 * len(self.said)))


def looked(name: str, *found: Detection) -> Inspection:
    return Inspection(f"site/{name}", found, tuple(Hazard), file=f"images/{name}")


def failing(name: str) -> Inspection:
    return Inspection(f"site/{name}", None, (), Failure("unreadable_reply", "It is no list."))


@pytest.fixture
def folder(tmp_path: Path) -> ResultsFolder:
    return open_folder(tmp_path / "run", settings={}, lang="zh")


def announce(
    folder: ResultsFolder, voice: Beeper, *inspections: Inspection, place: str = "东门"
) -> dict[str, Alarm]:
    """Go through one sitting; what was told and what is given at the end are the same."""
    told: dict[str, Alarm] = {}
    with Announcer(
        folder,
        voice,
        AlarmForm(lang="zh"),
        parse_places(place),
        tell=lambda inspection, alarm: told.update({inspection.source: alarm}),
    ) as announcer:
        for inspection in inspections:
            announcer.announce(inspection)
        alarms = dict(announcer.finish(lambda: False))
    assert told.items() <= alarms.items()
    return alarms


def test_each_picture_with_something_to_say_has_a_file_named_after_it(
    folder: ResultsFolder,
) -> None:
    voice = Beeper()
    alarms = announce(
        folder, voice, looked("a.jpg", BARE), looked("clean.jpg"), looked("b.png", FIRE, BARE)
    )
    assert alarms == {
        "site/a.jpg": Alarm("东门有一人未戴安全帽", "alarms/a.jpg.wav"),
        "site/b.png": Alarm("东门有明火，火势严重，另有一人未戴安全帽", "alarms/b.png.wav"),
    }
    with wave.open(BytesIO((folder.path / "alarms/b.png.wav").read_bytes())) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24_000)
        assert file.getnframes() == 480
    lines = [json.loads(line) for line in folder.alarms_file.read_text("utf-8").splitlines()]
    assert lines[0] == {
        "source": "site/a.jpg",
        "model": "beeper",
        "voice": "Chelsie",
        "text": "东门有一人未戴安全帽",
        "file": "alarms/a.jpg.wav",
        "error": None,
    }
    assert len(lines) == 2


def test_a_sentence_about_many_pictures_is_spoken_once(folder: ResultsFolder) -> None:
    voice = Beeper()
    alarms = announce(folder, voice, *(looked(f"{n}.jpg", BARE) for n in range(5)))
    assert voice.said == ["东门有一人未戴安全帽"]
    sounds = {(folder.path / str(alarm.file)).read_bytes() for alarm in alarms.values()}
    assert len(alarms) == 5
    assert len(sounds) == 1


def test_a_picture_without_a_verdict_is_said_too(folder: ResultsFolder) -> None:
    """Also one whose bytes were never had, so that it has no file to be named after."""
    alarms = announce(folder, Beeper(), failing("x.jpg"), failing("y.jpg"))
    assert {one.text for one in alarms.values()} == {"东门的画面未能判断，请人工查看"}
    files = {str(one.file) for one in alarms.values()}
    assert len(files) == 2
    assert all((folder.path / file).is_file() for file in files)


def test_a_resumed_run_speaks_only_what_is_not_there(folder: ResultsFolder) -> None:
    first, second = looked("a.jpg", BARE), looked("b.jpg", FIRE)
    announce(folder, Beeper(), first)
    before = (folder.path / "alarms/a.jpg.wav").stat().st_mtime_ns
    with folder.alarms_file.open("a") as lines:
        lines.write('{"source": "site/b.jpg", "te')  # it was killed while it wrote this
    voice = Beeper()
    alarms = announce(folder, voice, first, second)
    assert voice.said == ["东门有明火，火势严重"]
    assert (folder.path / "alarms/a.jpg.wav").stat().st_mtime_ns == before
    assert {str(one.file) for one in alarms.values()} == {"alarms/a.jpg.wav", "alarms/b.jpg.wav"}
    (folder.path / "alarms/b.jpg.wav").unlink()
    again = Beeper()
    announce(folder, again, first, second)
    assert again.said == ["东门有明火，火势严重"]


def test_a_sentence_that_has_changed_is_spoken_beside_the_old_file(folder: ResultsFolder) -> None:
    announce(folder, Beeper(), looked("a.jpg", BARE))
    old = (folder.path / "alarms/a.jpg.wav").read_bytes()
    voice = Beeper()
    alarms = announce(folder, voice, looked("a.jpg", BARE), place="西门")
    assert voice.said == ["西门有一人未戴安全帽"]
    assert alarms["site/a.jpg"].file == "alarms/a.jpg-2.wav"
    assert (folder.path / "alarms/a.jpg.wav").read_bytes() == old
    other = Beeper()
    other.voice = "Ethan"
    announce(folder, other, looked("a.jpg", BARE), place="西门")
    assert other.said == ["西门有一人未戴安全帽"]


def test_an_alarm_is_not_lost_because_speech_failed(folder: ResultsFolder) -> None:
    """Its words are in the results with the reason, and the next sitting tries again."""
    voice = Beeper(ReplyError("It said something else."))
    alarms = announce(folder, voice, looked("a.jpg", BARE), looked("b.jpg", FIRE))
    failed = alarms["site/a.jpg"]
    assert failed.text == "东门有一人未戴安全帽"
    assert failed.error == Failure("unreadable_reply", "It said something else.")
    assert alarms["site/b.jpg"].file == "alarms/b.jpg.wav"
    now = "2026-01-01T00:00:00+00:00"
    facts = RunFacts(id="1", started_at=now, finished_at=now, model="m", lang="zh", version="1")
    folder.write_results(facts, [looked("a.jpg", BARE), looked("c.jpg")], alarms)
    pictures = json.loads((folder.path / "results.json").read_text("utf-8"))["pictures"]
    assert pictures[0]["alarm"] == {
        "text": "东门有一人未戴安全帽",
        "file": None,
        "error": {"code": "unreadable_reply", "message": "It said something else."},
    }
    assert pictures[1]["alarm"] is None
    again = Beeper()
    assert announce(folder, again, looked("a.jpg", BARE))["site/a.jpg"].error is None


def test_a_voice_that_fails_again_and_again_is_left_alone(folder: ResultsFolder) -> None:
    voice = Beeper(*(EndpointError("Nothing answers.") for _ in range(9)))
    names = "abcdef"
    alarms = announce(
        folder, voice, *(looked(f"{name}.jpg", *[BARE] * n) for n, name in enumerate(names, 1))
    )
    assert len(voice.said) == ENOUGH_FAILURES
    assert len(alarms) == len(names)
    assert all(one.error is not None for one in alarms.values())
    last = alarms["site/f.jpg"].error
    assert last is not None
    assert "failed 3 times in a row and was not asked again" in last.message


def test_what_nobody_foresaw_is_logged_and_leaves_the_words(
    folder: ResultsFolder, caplog: pytest.LogCaptureFixture
) -> None:
    voice = Beeper(RuntimeError("a surprise"))
    alarms = announce(folder, voice, looked("a.jpg", BARE), looked("b.jpg", FIRE))
    error = alarms["site/a.jpg"].error
    assert error is not None
    assert "the log says how" in error.message
    assert "a surprise" in caplog.text
    assert alarms["site/b.jpg"].file == "alarms/b.jpg.wav"


def test_a_folder_that_takes_no_file_leaves_the_words(folder: ResultsFolder) -> None:
    (folder.path / "alarms").write_text("a file where a folder was to be")
    alarms = announce(folder, Beeper(), looked("a.jpg", BARE))
    error = alarms["site/a.jpg"].error
    assert error is not None
    assert error.code == "storage_failed"
    assert "The alarm cannot be written: 'File exists'. Make room" in error.message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_leaves_the_words_and_no_half_file(folder: ResultsFolder) -> None:
    (folder.path / "alarms").mkdir()
    (folder.path / "alarms" / ".a.jpg.wav.part").symlink_to("/dev/full")
    alarms = announce(folder, Beeper(), looked("a.jpg", BARE))
    error = alarms["site/a.jpg"].error
    assert error is not None
    assert "No space left on device" in error.message
    assert list((folder.path / "alarms").iterdir()) == []


def test_whoever_stops_waits_for_the_sentence_in_hand_only(folder: ResultsFolder) -> None:
    voice = Beeper()
    voice.goes_on.clear()
    with Announcer(
        folder,
        voice,
        AlarmForm(lang="zh"),
        parse_places("东门"),
        tell=lambda *_: None,
    ) as announcer:
        announcer.announce(looked("a.jpg", BARE))
        announcer.announce(looked("b.jpg", FIRE))

        looks: list[bool] = []

        def is_stopping() -> bool:
            if any(looks):
                voice.goes_on.set()
            looks.append(bool(voice.said))
            return looks[-1]

        alarms = announcer.finish(is_stopping)
    assert len(voice.said) == 1
    assert alarms["site/a.jpg"].file == "alarms/a.jpg.wav"
    left = alarms["site/b.jpg"].error
    assert left is not None
    assert "go on with --resume" in left.message


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"source": 1}', '{"source": "a", "text": 1}'])
def test_a_damaged_record_is_an_error_with_a_way_out(line: str, folder: ResultsFolder) -> None:
    folder.alarms_file.write_text(f"{line}\n")
    with pytest.raises(ConfigError, match=r"Line 1 of .* cannot be read; restore the file or"):
        announce(folder, Beeper())


def test_overwriting_a_run_removes_its_alarms(folder: ResultsFolder) -> None:
    announce(folder, Beeper(), looked("a.jpg", BARE))
    anew = open_folder(folder.path, settings={}, lang="zh", start="overwrite")
    assert not anew.alarms_file.exists()
    assert not (anew.path / "alarms").exists()
