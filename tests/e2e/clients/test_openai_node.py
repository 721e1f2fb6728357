"""openai-node, unmodified, against `qianyan serve` over TCP."""

import json
from typing import Any

import pytest


@pytest.fixture(scope="module")
def said(programs: Any) -> dict[str, Any]:
    answers: dict[str, Any] = programs.run("openai_node.mjs")
    return answers


def test_whole_streamed_and_by_the_helper_it_says_the_same(
    said: dict[str, Any], hello: str
) -> None:
    assert said["whole"]["text"] == said["stream"]["text"] == said["helper"] == hello
    assert said["whole"]["id"], "the request's id is in the header that the client reads"
    assert said["stream"]["roles"] == ["assistant"]
    assert said["stream"]["usage"]["total_tokens"] == said["whole"]["usage"]["total_tokens"]


def test_a_picture_is_seen(said: dict[str, Any]) -> None:
    assert said["picture"]["text"]
    assert said["picture"]["usage"]["prompt_tokens"] > said["whole"]["usage"]["prompt_tokens"]


def test_calls_come_whole_and_in_pieces_with_one_id_and_name(said: dict[str, Any]) -> None:
    whole, streamed = said["calls"]
    assert whole["functions"] == streamed["functions"]
    assert [one["name"] for one in whole["functions"]] == ["ring_alarm"]
    assert set(json.loads(whole["functions"][0]["arguments"])) == {"level", "loud"}
    assert whole["finish_reason"] == streamed["finish_reason"] == "tool_calls"
    assert len(streamed["ids"][0]) == len(whole["ids"][0]), "an id sent twice is joined"


def test_many_at_once_get_what_each_gets_alone(said: dict[str, Any], hello: str) -> None:
    assert said["many"] == [hello] * 8


def test_a_stream_left_midway_frees_its_place(said: dict[str, Any], house: Any) -> None:
    house.wait_until_idle(1)


def test_models_and_errors_have_their_classes(said: dict[str, Any]) -> None:
    assert "qwen-plus" in said["models"]
    assert said["refused"] == {"kind": "NotFoundError", "status": 404, "code": "model_not_found"}
