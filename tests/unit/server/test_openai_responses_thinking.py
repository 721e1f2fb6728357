"""Thoughts are an item of their own, told and counted apart, and go on with a conversation."""

import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai.types.responses import Response
from tests.thinking_model import BY_SWITCH, write_thinking_model

from qianyan.engine.engine import Engine

HERE = Path(__file__)
fold: Callable[..., dict[str, Any]] = runpy.run_path(str(HERE.with_name("folded_response.py")))[
    "fold"
]
BUDGET = 7
FORM = {"format": {"type": "json_schema", "name": "v", "schema": {"type": "boolean"}}}


@pytest.fixture(scope="module")
def thinker(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A server whose model thinks as long as it may, and may for BUDGET tokens by default."""
    folder = write_thinking_model(tmp_path_factory.mktemp("thinker"), BY_SWITCH)
    state = tmp_path_factory.mktemp("state")
    with serve(model=Engine(folder), thinking_budget=BUDGET, state_folder=state) as client:
        yield client


def post(client: httpx2.Client, **fields: Any) -> httpx2.Response:
    body = {"model": "judge", "input": "so", "temperature": 0, "max_output_tokens": 400, **fields}
    answer = client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def ask(client: httpx2.Client, **fields: Any) -> dict[str, Any]:
    response: dict[str, Any] = post(client, **fields).json()
    Response.model_validate(response)
    return response


def stream(client: httpx2.Client, **fields: Any) -> list[dict[str, Any]]:
    lines = post(client, stream=True, **fields).text.split("\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_thoughts_are_an_item_before_the_answer(thinker: httpx2.Client) -> None:
    response = ask(thinker)
    thought, message = response["output"]
    assert thought["type"] == "reasoning"
    assert thought["summary"] == []
    (part,) = thought["content"]
    assert part["type"] == "reasoning_text"
    assert part["text"]
    assert message["type"] == "message"
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == BUDGET
    assert response["reasoning"] == {"effort": None, "summary": None}


def test_a_summary_is_the_thoughts_where_it_is_asked_for(thinker: httpx2.Client) -> None:
    whole = ask(thinker, seed=1, reasoning={"summary": "auto"})
    thought = whole["output"][0]
    assert thought["content"] == []
    assert thought["summary"] == [
        {"type": "summary_text", "text": ask(thinker, seed=1)["output"][0]["content"][0]["text"]}
    ]
    events = stream(thinker, seed=1, reasoning={"summary": "auto"})
    kinds = [event["type"] for event in events]
    assert "response.reasoning_summary_text.delta" in kinds
    assert "response.reasoning_text.delta" not in kinds
    assert fold(events)["output"][0]["summary"] == thought["summary"]


def test_thoughts_are_streamed_apart(thinker: httpx2.Client) -> None:
    whole = ask(thinker, seed=1)
    response = fold(stream(thinker, seed=1))
    assert [item["content"] for item in response["output"]] == [
        item["content"] for item in whole["output"]
    ]


def test_efforts_say_how_much_is_thought(thinker: httpx2.Client) -> None:
    none = ask(thinker, reasoning={"effort": "none"})
    assert [item["type"] for item in none["output"]] == ["message"]
    assert none["usage"]["output_tokens_details"]["reasoning_tokens"] == 0
    low = ask(thinker, reasoning={"effort": "low"}, max_output_tokens=40)
    assert low["usage"]["output_tokens_details"]["reasoning_tokens"] > BUDGET
    assert [item["status"] for item in low["output"]] == ["incomplete"], "cut while it thought"
    assert low["status"] == "incomplete"
    both = {"model": "judge", "input": "x", "reasoning": {"effort": "low"}, "thinking_budget": 5}
    refused = thinker.post("/v1/responses", json=both)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "reasoning.effort"


def test_a_form_and_thoughts_go_together(thinker: httpx2.Client) -> None:
    response = ask(thinker, text=FORM, enable_thinking=True)
    thought, message = response["output"]
    assert thought["type"] == "reasoning"
    assert message["content"][0]["text"] in ("true", "false")
    assert response["status"] == "completed"


def test_a_conversation_goes_on_with_its_thoughts(thinker: httpx2.Client) -> None:
    first = ask(thinker, text=FORM, enable_thinking=True)
    by_id = ask(thinker, input="why", previous_response_id=first["id"])
    said = [{"role": "user", "content": "so"}, *first["output"], {"role": "user", "content": "why"}]
    by_hand = ask(thinker, input=said)
    assert by_id["usage"]["input_tokens"] == by_hand["usage"]["input_tokens"]
