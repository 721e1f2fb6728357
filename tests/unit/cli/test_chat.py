"""`qianyan chat` where there is no terminal: one question in, one answer or one sentence out."""

import io
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from qianyan.cli import chat, run

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run one chat beside a picture and something that is none; `text` is standard input."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Image.new("RGB", (300, 200), (200, 60, 20)).save(tmp_path / "site.png")
    (tmp_path / "bad.png").write_text("no picture")
    with wave.open(str(tmp_path / "bell.wav"), "wb") as bell:
        bell.setparams((1, 2, 8000, 0, "NONE", ""))
        bell.writeframes(bytes(16_000))

    def ask_once(*arguments: str, text: str | bytes = "") -> tuple[int, str, str]:
        data = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code = run(["chat", *arguments])
        return code, *capsys.readouterr()

    return ask_once


@pytest.mark.parametrize(
    ("arguments", "text", "code", "sentence"),
    [
        ((), "", 2, "There is no question; expected one as MESSAGE"),
        (("--temperature", "3"), "Hi", 2, "--temperature"),
        (("--thinkin",), "Hi", 2, "--thinking"),
        (("--quantize", "int3"), "Hi", 2, "'int3'"),
        (("--image", "gone.png"), "Hi", 2, "There is no file 'gone.png'."),
        (("--image", "bad.png"), "Hi", 2, "'bad.png': This is not a picture"),
        (("--audio", "gone.wav"), "Hi", 2, "There is no file 'gone.wav'."),
        (("--audio", "bad.png"), "Hi", 2, "'bad.png': This is not a sound but text"),
        (("--audio", "bell.wav"), "Hi", 2, "bundled does not hear; expected a model"),
        (("--model", "nowhere/nothing"), "Hi", 3, "'nowhere/nothing'"),
        (("--model", "./nothing"), "Hi", 3, "'./nothing'"),
        (("--base-url", "http://127.0.0.1:1/v1"), "Hi", 3, "Nothing answers at"),
        (("--base-url", "nonsense"), "Hi", 3, "expected an address such as"),
        ((), "long " * 4000, 2, "expected at most"),
    ],
)
def test_what_is_wrong_is_one_sentence_on_standard_error(
    ask: Ask, arguments: tuple[str, ...], text: str, code: int, sentence: str
) -> None:
    done, answer, errors = ask(*arguments, text=text)
    assert done == code, errors
    assert answer == ""
    assert errors.startswith("qianyan: ")
    assert sentence in errors
    assert len(errors.splitlines()) == 1


def test_a_picture_alone_is_a_question(ask: Ask) -> None:
    code, answer, errors = ask("--image", "site.png", "--once")
    assert (code, errors) == (0, "")
    assert answer.strip()


def test_with_once_and_a_message_standard_input_is_left_alone(ask: Ask) -> None:
    code, answer, _ = ask("Hi", "--once", "--max-tokens", "4", text="long " * 4000)
    assert code == 0
    assert answer.strip()


def test_bytes_that_are_no_text_are_read_as_marks(ask: Ask) -> None:
    assert ask("--max-tokens", "4", text=b"\xff\xfe fire?")[0] == 0


def test_endless_input_is_refused(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_INPUT_CHARACTERS", 10)
    code, _, errors = ask(text="eleven chars")
    assert code == 2
    assert "more than 10 characters" in errors


def test_options_come_from_the_environment_and_from_toml(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QIANYAN_MAX_TOKENS", "1")
    Path("chat.toml").write_text('lang = "en"\nimage = ["site.png"]\n')
    code, _, errors = ask("What?", "--once", "--config", "chat.toml")
    assert code == 0
    assert errors.startswith("The answer was cut")
