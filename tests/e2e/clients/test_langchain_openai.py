"""langchain-openai, unmodified, against `qianyan serve` over TCP."""

from typing import Any

import pytest


@pytest.fixture(scope="module")
def said(programs: Any) -> dict[str, Any]:
    answers: dict[str, Any] = programs.run("langchain_chat.py")
    return answers


def test_invoke_stream_batch_and_gather_say_the_same(said: dict[str, Any], hello: str) -> None:
    assert said["whole"]["text"] == said["stream"] == hello
    assert said["batch"] == [hello] * 2
    assert said["many"] == [hello] * 8
    usage = said["whole"]["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0


def test_a_picture_is_seen(said: dict[str, Any]) -> None:
    assert said["picture"]["input_tokens"] > said["whole"]["usage"]["input_tokens"]


def test_an_answer_of_a_class(said: dict[str, Any]) -> None:
    assert isinstance(said["form"]["fire"], bool)


def test_a_bound_tool_is_called_whole_and_streamed_and_its_result_taken_back(
    said: dict[str, Any],
) -> None:
    (whole,), (streamed,) = said["calls"]
    assert whole["name"] == streamed["name"] == "ring_alarm"
    assert whole["args"] == streamed["args"]
    assert isinstance(whole["args"]["loud"], bool)
    assert said["after"] in ("stop", "length", "tool_calls")
