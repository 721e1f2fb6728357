"""Bailian's SDK 1.x, unmodified, against `qianyan serve` over TCP.

`test_dashscope_sdk.py`, one folder up, asks the same of the newest, whose calls are kept beside
its own client.
"""

import base64
import json
import wave
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from .conftest import PROGRAMS, Programs, serving


@pytest.fixture(scope="module")
def said(programs: Any) -> dict[str, Any]:
    answers: dict[str, Any] = programs.run("dashscope_1.py")
    assert answers["version"].startswith("1.")
    return answers


def test_text_by_prompt_and_by_messages_in_both_formats(said: dict[str, Any], hello: str) -> None:
    assert said["text"] == said["prompt"] == said["whole"] == hello
    asked, answered, total = said["usage"]
    assert asked + answered == total


@pytest.mark.parametrize("incremental", [True, False])
def test_a_stream_both_ways(said: dict[str, Any], hello: str, incremental: bool) -> None:
    assert said[f"stream {incremental}"] == hello
    *running, last = said[f"reasons {incremental}"]
    assert set(running) == {"null"}
    assert last == "length"


def test_a_picture_whole_and_streamed_and_the_frames_of_a_video(said: dict[str, Any]) -> None:
    assert said["picture"]["image_tokens"] > 0
    assert said["picture stream"] == said["picture"]["text"]
    assert said["video"] > 0


def test_calls_whole_and_in_packets(said: dict[str, Any]) -> None:
    assert said["calls"] == said["calls stream"]
    assert [one["name"] for one in said["calls"]] == ["ring_alarm"]
    assert said["calls reason"] == ["tool_calls"] * 2


def test_a_local_file_is_sent_up_and_seen(said: dict[str, Any]) -> None:
    assert said["local file"] == said["picture"]["text"]


def test_a_task_is_waited_for(said: dict[str, Any], hello: str) -> None:
    assert said["task"] == ["SUCCEEDED", hello]


def test_errors_have_status_and_code(said: dict[str, Any]) -> None:
    assert said["missing"] == [404, "ModelNotFound"]
    status, code, message = said["wrong"]
    assert (status, code) == (400, "InvalidParameter")
    assert "top_p" in message


def test_an_answer_is_heard_whole_and_streamed(programs: Programs, omni_checkpoint: Path) -> None:
    options = ("--model", str(omni_checkpoint), "--served-name", "qwen2.5-omni-7b")
    program = str(PROGRAMS / "dashscope_1_speech.py")
    with serving(*options, "--dtype", "float32") as house:
        where = {"DASHSCOPE_HTTP_BASE_URL": f"{house.address}/api/v1"}
        said = json.loads(programs.say("python", program, **where).splitlines()[-1])
    assert said["version"].startswith("1.")
    text, sound = said["whole"]
    with wave.open(BytesIO(base64.b64decode(sound))) as file:
        assert file.getframerate() == 24_000
        frames = file.readframes(file.getnframes())
        assert file.getnframes() == 480 * said["audio_tokens"] > 480 * 8
    for way in ("stream True", "stream False"):
        assert said[way] == [text, base64.b64encode(frames).decode()]
