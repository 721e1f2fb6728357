"""LiteLLM, unmodified, with its providers `openai` and `dashscope`, over TCP."""

import json
from typing import Any

import pytest


@pytest.fixture(scope="module")
def said(programs: Any) -> dict[str, Any]:
    answers: dict[str, Any] = programs.run("litellm_calls.py")
    return answers


@pytest.mark.parametrize("model", ["openai/qwen-plus", "dashscope/qwen-plus"])
def test_whole_streamed_looking_and_many_at_once(
    said: dict[str, Any], hello: str, model: str
) -> None:
    answers = said[model]
    assert answers["whole"] == answers["stream"] == hello
    assert answers["many"] == [hello] * 8
    assert answers["picture"] > answers["hello"]
    assert answers["refused"] == "NotFoundError"


def test_calls_come_whole_and_are_joined_from_pieces(said: dict[str, Any]) -> None:
    (whole,), (joined,) = said["calls"]
    assert whole["name"] == joined["name"] == "ring_alarm"
    assert json.loads(whole["arguments"]) == json.loads(joined["arguments"])
