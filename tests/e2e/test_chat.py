"""`qianyan chat` as users run it: a real process, a real terminal, the bundled judge."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

Terminal = runpy.run_path(str(Path(__file__).with_name("terminal.py")))["Terminal"]
PROMPT = "\n> "
CTRL_D = "\x04"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with a picture and something that is none."""
    Image.new("RGB", (300, 200), (200, 60, 20)).save(tmp_path / "site photo.png")
    (tmp_path / "bad.png").write_text("no picture")
    return tmp_path


def chat(*arguments: str, folder: Path, text: str | None = None) -> tuple[int, str, str]:
    """Run one chat that is not on a terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "qianyan", "chat", *arguments],
        input=text or "",
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    return done.returncode, done.stdout, done.stderr


def test_a_piped_question_gets_the_answer_and_nothing_else(site: Path) -> None:
    code, answer, errors = chat(
        "Look at this:", "--image", "site photo.png", folder=site, text="Is there\na fire?\n"
    )
    assert (code, errors) == (0, "")
    assert answer.strip()
    assert answer.endswith("\n")
    assert "\x1b" not in answer


def test_an_answer_that_is_cut_says_so_on_standard_error(site: Path) -> None:
    code, answer, errors = chat("Hi", "--once", "--max-tokens", "1", "--lang", "en", folder=site)
    assert code == 0
    assert len(answer) < 20
    assert errors == "The answer was cut at its greatest length; --max-tokens allows more.\n"


def test_a_missing_model_is_one_sentence_and_a_code_of_its_own(site: Path) -> None:
    code, answer, errors = chat("--model", "nowhere/nothing", folder=site, text="Hi")
    assert (code, answer) == (3, "")
    assert errors.startswith("qianyan: 'nowhere/nothing'")
    assert len(errors.splitlines()) == 1


def test_a_conversation_on_a_terminal_from_the_first_picture_to_the_saved_file(
    site: Path,
) -> None:
    with Terminal("chat", "--lang", "en", folder=site) as screen:
        screen.expect("bundled. Ask something")
        screen.answer("/image site photo.png")
        screen.expect(
            "Picture site photo.png (300x200, seen as 112x84) goes with the next message."
        )
        screen.answer("Is there\\")
        screen.expect("… ")
        screen.type("a fire?")
        screen.expect(" tokens/s")
        screen.answer("/save talk.md")
        screen.expect("Saved to talk.md.")
        screen.answer("/save talk.json")
        screen.expect("Saved to talk.json.")
        screen.answer(CTRL_D, end="")
        assert screen.close() == 0
    saved = json.loads((site / "talk.json").read_text("utf-8"))
    asked, answered = saved["messages"]
    assert asked == {
        "role": "user",
        "content": "Is there\na fire?",
        "attachments": [{"kind": "image", "name": "site photo.png"}],
    }
    assert answered["content"]
    assert answered["content"] in (site / "talk.md").read_text("utf-8")
    assert "\x1b[2m" in screen.raw, "what is not the model's words is dimmed"


def test_whatever_goes_wrong_on_a_terminal_leaves_the_conversation_as_it_was(site: Path) -> None:
    (site / "talk.json").write_text("precious")
    with Terminal("chat", "Hi", "--lang", "en", folder=site) as screen:
        screen.expect("tokens/s")
        for line, sentence in {
            "/image gone.png": "There is no file 'gone.png'.",
            "/image bad.png": "'bad.png': This is not a picture but text",
            "/imge x": "did you mean /image?",
            "/audio a.wav": "There is no file 'a.wav'.",
            "/save talk.txt": "expected a name ending in .md or .json",
            "long " * 700: "The conversation is as it was; /reset starts it anew",
            "/detach": "Nothing is attached.",
        }.items():
            screen.answer(line)
            screen.expect(sentence)
        screen.answer("/save talk.json")
        screen.expect("talk.json exists. Replace it? [y/N] ")
        screen.type("")
        screen.expect("Not saved.")
        assert (site / "talk.json").read_text() == "precious"
        screen.answer("/save talk.json")
        screen.expect("[y/N] ")
        screen.type("y")
        screen.expect("Saved to talk.json.")
        messages = json.loads((site / "talk.json").read_text("utf-8"))["messages"]
        assert [one["role"] for one in messages] == ["user", "assistant"]
        screen.answer("/reset")
        screen.expect("The conversation starts anew.")
        screen.answer("/save empty.md")
        screen.expect("There is nothing to save yet")
        screen.answer("/quit")
        assert screen.close() == 0
    assert "Traceback" not in screen.text


def test_a_second_ctrl_c_leaves(site: Path) -> None:
    with Terminal("chat", folder=site) as screen:
        screen.expect("Ctrl-D 退出。")
        screen.answer("half a line", end="")
        screen.expect("half a line")
        screen.interrupt()
        screen.expect("再按一次 Ctrl-C")
        screen.answer("/system 只答一个字")
        screen.expect("系统提示已设定")
        screen.expect(PROMPT)
        screen.interrupt()
        screen.expect("再按一次 Ctrl-C")
        screen.expect(PROMPT)
        screen.interrupt()
        assert screen.close() == 130
    assert "Traceback" not in screen.text
