"""`qianyan chat` with a model behind an endpoint: a real server that streams, and its faults."""

import base64
import io
import json
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qianyan.cli import run

Terminal = runpy.run_path(str(Path(__file__).with_name("terminal.py")))["Terminal"]
SERVER = runpy.run_path(str(Path(__file__).with_name("chat_server.py")))
ANSWER = "The roof burns."


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    running = SERVER["ChatServer"]()
    yield running
    running.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (3000, 1000), (200, 60, 20)).save(tmp_path / "site.png")
    return tmp_path


def to(server: Any, model: str, *more: str) -> list[str]:
    """The arguments of a chat with one of the server's models."""
    key = ["--api-key", SERVER["KEY"]]
    return ["chat", "--base-url", server.url, "--model", model, "--lang", "en", *key, *more]


Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run one chat that is not on a terminal."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))

    def ask_once(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        code = run([*arguments])
        return code, *capsys.readouterr()

    return ask_once


def test_one_question_prints_the_answer_without_the_thinking(server: Any, ask: Ask) -> None:
    more = ["What burns?", "--image", "site.png", "--system", "Be brief.", "--no-thinking"]
    more += ["--max-tokens", "9", "--temperature", "0.5", "--max-pixels", "100000"]
    assert ask(*to(server, "thinks", *more)) == (0, f"{ANSWER}\n", "")
    body = server.bodies[-1]
    assert (body["stream"], body["max_tokens"], body["temperature"]) == (True, 9, 0.5)
    assert body["enable_thinking"] is False
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    picture, text = user["content"]
    assert text == {"type": "text", "text": "What burns?"}
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    sent = Image.open(BytesIO(base64.b64decode(data)))
    assert sent.width * sent.height <= 100_000
    assert (sent.width % 28, sent.height % 28) == (0, 0)
    assert "site.png" not in json.dumps(body), "local names stay here"


@pytest.mark.parametrize(
    ("model", "said", "code", "sentence"),
    [
        ("breaks", "The ", 3, "broke off its answer: 'CUDA out of memory'."),
        ("drops", "The ", 3, "broke off the connection while answering."),
        ("nonsense", "The ", 3, "sends '{nonsense' in the middle of its answer"),
        ("lies", "The ", 3, "answers without choices"),
        ("busy", "", 3, "refuses the request (status 400): 'The model is being replaced.'."),
        ("absent", "", 3, "has no model 'absent'; it offers 'thinks', 'mumbles'"),
        ("strict", f"{ANSWER}\n", 0, ""),
        ("mumbles", f"{ANSWER}\n", 0, ""),
    ],
)
def test_what_a_server_does_wrong_is_one_sentence(
    server: Any, ask: Ask, model: str, said: str, code: int, sentence: str
) -> None:
    done, answer, errors = ask(*to(server, model, "Hi"))
    assert (done, answer) == (code, said)
    assert sentence in errors
    assert len(errors.splitlines()) == (1 if sentence else 0)


def test_a_wrong_key_is_named_and_not_shown(server: Any, ask: Ask) -> None:
    arguments = to(server, "thinks", "Hi", "--api-key", "wrong-key")
    code, answer, errors = ask(*arguments)
    assert (code, answer) == (3, "")
    assert "Give the right one with --api-key" in errors
    assert "wrong-key" not in errors


def test_thinking_is_dimmed_and_stays_out_of_the_history(server: Any, folder: Path) -> None:
    with Terminal(*to(server, "thinks", "What burns?"), folder=folder) as screen:
        shown = screen.expect("3 tokens")
        assert "thinking: Grey, rising.\n\nThe roof burns.\n" in shown
        assert "\x1b[2mGrey, \x1b[0m" in screen.raw
        screen.answer("/save talk.json")
        screen.expect("Saved")
        screen.answer("Since when?")
        screen.expect("3 tokens")
        screen.answer("/quit")
        assert screen.close() == 0
    assert server.bodies[-1]["messages"] == [
        {"role": "user", "content": "What burns?"},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "Since when?"},
    ]
    saved = json.loads((folder / "talk.json").read_text("utf-8"))["messages"][1]
    assert saved == {
        "role": "assistant",
        "content": ANSWER,
        "reasoning_content": "Grey, rising.",
    }


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on_with_what_was_said(
    server: Any, folder: Path
) -> None:
    num_given_up = server.num_given_up
    with Terminal(*to(server, "slow"), folder=folder) as screen:
        screen.answer("What burns?")
        screen.expect("burns....")
        screen.interrupt()
        screen.expect("Stopped.")
        screen.answer("Go on.")
        screen.expect("burns....")
        screen.interrupt()
        screen.expect("Ctrl-C again leaves.")
        screen.expect("\n> ")
        screen.interrupt()
        assert screen.close() == 130
    assert "Traceback" not in screen.text
    said = server.bodies[-1]["messages"][1]
    assert said["role"] == "assistant"
    assert said["content"].startswith("The roof burns....")
    end = time.monotonic() + 20
    while server.num_given_up < num_given_up + 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert server.num_given_up == num_given_up + 2, "the server is told to stop"


def test_an_answer_that_breaks_off_leaves_the_conversation_and_the_picture(
    server: Any, folder: Path
) -> None:
    with Terminal(*to(server, "drops", "--image", "site.png"), folder=folder) as screen:
        for _ in range(2):
            screen.answer("What burns?")
            screen.expect("broke off the connection while answering")
        screen.answer("/save talk.md")
        screen.expect("There is nothing to save yet")
        screen.answer("/quit")
        assert screen.close() == 0
    (user,) = server.bodies[-1]["messages"]
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]


def test_a_model_cannot_steer_the_terminal(server: Any, folder: Path) -> None:
    with Terminal(*to(server, "steers", "Hi"), folder=folder) as screen:
        screen.expect("3 tokens")
        screen.answer("/quit")
        assert screen.close() == 0
    assert "\x1b]0;" not in screen.raw
    assert "\x1b[2J" not in screen.raw
    assert f"�]0;owned��[2J{ANSWER}" in screen.text
