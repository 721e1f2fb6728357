"""Alarms read aloud by `inspect --speak`: by a checkpoint, and by a server of ours over TCP."""

import json
import os
import re
import subprocess
import sys
import wave
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.reading_checkpoint import write_reading_checkpoint

from qianyan.cli import run
from qianyan.engine.engine import Engine
from qianyan.engine.reading_aloud import read_aloud
from qianyan.errors import ReplyError
from qianyan.inspection.remote.voice import RemoteVoice

KEY = "sk-test-0123456789"
SPOKEN = re.compile(r"3 号塔吊下(至少)?有")


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reading_checkpoint(tmp_path_factory.mktemp("omni"))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two pictures, and a file that is none."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name, colour in (("a.png", (200, 40, 20)), ("b.png", (90, 150, 230))):
        Image.new("RGB", (64, 48), colour).save(folder / name)
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    return folder


@pytest.fixture
def detector(tiny_pair: Path) -> list[str]:
    """Options under which an untrained detector proposes fire."""
    return ["--model", str(tiny_pair / "detector"), "--look", "detector", "--quiet"]


@pytest.fixture(scope="module")
def endpoint(omni: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of the speaking model, in a process of its own."""
    command = [sys.executable, "-m", "qianyan", "serve", "--port", "0", "--model", str(omni)]
    command += ["--served-name", "omni", "--dtype", "float32"]
    command += ["--state-dir", str(tmp_path_factory.mktemp("state"))]
    environment = {**os.environ, "QIANYAN_API_KEYS": KEY, "OMP_NUM_THREADS": "1"}
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as server,
    ):
        assert server.stdout is not None
        found = re.search(r"http://[\d.:]+(?=/v1)", server.stdout.readline())
        assert found, log.read_text()
        yield f"{found[0]}/v1"
        server.terminate()


def pictures(out: Path) -> dict[str, dict[str, Any]]:
    """The alarms in results.json by the names of the pictures."""
    whole = json.loads((out / "results.json").read_text("utf-8"))
    return {Path(one["source"]).name: one["alarm"] for one in whole["pictures"]}


def sound(out: Path, alarm: dict[str, Any]) -> bytes:
    with wave.open(str(out / alarm["file"])) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24_000)
        return file.readframes(file.getnframes())


def test_a_checkpoint_speaks_what_was_found_and_what_could_not_be_judged(
    omni: Path, site: Path, detector: list[str], tmp_path: Path
) -> None:
    """Once: a second sitting finds all of it there."""
    out = tmp_path / "out"
    command = ["inspect", str(site), "--out", str(out), *detector, "--speak", "--place"]
    command += ["3 号塔吊下", "--voice-model", str(omni), "--dtype", "float32", "--voice", "Ethan"]
    assert run(command) == 4, "one picture could not be read, as without alarms"
    alarms = pictures(out)
    assert alarms["torn.jpg"]["text"] == "3 号塔吊下的画面未能判断，请人工查看"
    assert SPOKEN.match(alarms["a.png"]["text"])
    assert all(one["error"] is None for one in alarms.values())
    expected = read_aloud(
        Engine(omni, dtype="float32"), alarms["torn.jpg"]["text"], voice="Ethan", seed=1
    )
    assert len(sound(out, alarms["torn.jpg"])) == 2 * len(expected.samples)
    names = {"a.png.wav", "b.png.wav"}
    files = {file.name: file.stat().st_mtime_ns for file in (out / "alarms").iterdir()}
    assert names < set(files)
    assert len(files) == 3
    assert run([*command, "--resume"]) == 4
    assert {file.name: file.stat().st_mtime_ns for file in (out / "alarms").iterdir()} == files
    assert pictures(out) == alarms
    assert run(["report", str(out)]) == 0


def test_a_server_of_ours_speaks_for_a_finished_run(
    endpoint: str, site: Path, detector: list[str], tmp_path: Path
) -> None:
    """The pictures are not looked at again; the alarms are in English by now unspoken."""
    out = tmp_path / "out"
    command = ["inspect", str(site), "--out", str(out), *detector, "--lang", "en"]
    assert run(command) == 4
    assert "alarm" not in json.loads((out / "results.json").read_text())["pictures"][0]
    before = (out / "results.jsonl").read_bytes()
    speak = ["--speak", "--resume", "--place", "b*=Gate 2", "--voice-url", endpoint]
    assert run([*command, *speak, "--voice-key", KEY]) == 4
    assert (out / "results.jsonl").read_bytes() == before
    alarms = pictures(out)
    assert alarms["torn.jpg"]["text"] == "The picture could not be judged; please look yourself"
    assert alarms["b.png"]["text"].startswith("Gate 2: ")
    for alarm in alarms.values():
        assert len(sound(out, alarm)) == 960 * len(alarm["text"])


def test_what_an_endpoint_refuses_leaves_the_words_and_the_exit_code(
    endpoint: str, site: Path, detector: list[str], tmp_path: Path, capsys: Any
) -> None:
    (site / "torn.jpg").unlink()
    out = tmp_path / "out"
    command = ["inspect", str(site), "--out", str(out), "--speak", "--voice-url", endpoint]
    command += [one for one in detector if one != "--quiet"]
    assert run([*command, "--voice-key", "wrong"]) == 0
    assert "Give the right one with --voice-key" in pictures(out)["a.png"]["error"]["message"]
    said = capsys.readouterr().err
    assert "警报（未能朗读）：发现" in said
    assert "条警报未能朗读" in said
    voice = ["--voice-key", KEY, "--voice", "Alloy", "--resume"]
    assert run([*command, *voice]) == 0
    message = pictures(out)["a.png"]["error"]["message"]
    assert "voice is 'Alloy'; expected one of Chelsie, Ethan." in message


def test_a_chat_of_ours_that_says_something_else_is_not_believed(endpoint: str) -> None:
    """The way of endpoints that do not read aloud, with a model that knows no word."""
    voice = RemoteVoice(endpoint, "omni", KEY, voice="Ethan")
    voice._reads_aloud = False
    with pytest.raises(ReplyError, match="The voice omni was"):
        voice.say("东门有明火")
    words, sound = "", ""
    for delta in voice.endpoint.stream(voice._chat_body("东门有明火")):
        words, sound = words + delta.transcript, sound + delta.sound
    assert words
    assert len(b64decode(sound)) > 9600


@pytest.mark.parametrize(
    "asked",
    [
        (["--place", "东门"], 2, "--place is given without --speak; expected both"),
        (["--voice-url", "http://h/v1"], 2, "--voice-url is given without --speak"),
        (["--speak"], 2, "looks and does not speak; name one that does with --voice-model"),
        (["--speak", "--voice-model", "nowhere/"], 3, "'nowhere/' is not a folder"),
        (["--speak", "--voice-key", "k"], 2, "--voice-key is given without --voice-url"),
        (["--speak", "--speak-on", "loud"], 2, "--speak-on is 'loud'; expected minor, moderate"),
        (["--speak", "--place", "a; b"], 2, "--place has both 'a' and 'b' for all pictures"),
        (["--speak", "--voice-url", "nowhere"], 3, "The base URL is 'nowhere'; expected"),
    ],
)
def test_options_that_contradict_each_other_are_refused_before_anything_is_written(
    asked: tuple[list[str], int, str], site: Path, detector: list[str], tmp_path: Path, capsys: Any
) -> None:
    options, code, sentence = asked
    out = tmp_path / "out"
    assert run(["inspect", str(site), "--out", str(out), *detector, *options]) == code
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_the_model_that_looks_reads_its_own_findings_aloud(
    omni: Path, site: Path, tmp_path: Path
) -> None:
    """One model for both; what this random one finds is nothing to rely on."""
    out = tmp_path / "out"
    command = ["inspect", str(site), "--out", str(out), "--model", str(omni), "--quiet"]
    command += ["--dtype", "float32", "--max-objects", "1", "--max-pixels", "12544"]
    run([*command, "--speak", "--speak-on", "any"])
    alarms = pictures(out)
    assert alarms["torn.jpg"]["file"]
    for alarm in alarms.values():
        assert alarm is None or len(sound(out, alarm)) == 960 * len(alarm["text"].encode())
