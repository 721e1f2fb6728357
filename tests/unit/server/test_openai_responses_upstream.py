"""Responses of models at other servers: the same items and events, kept here."""

import json
import runpy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai.types.responses import Response

from qianyan.server.upstream_settings import UpstreamLimits, UpstreamSettings

from .conftest import Served, ServedClient
from .upstream_server import KEY, MODEL, UpstreamServer, upstream_server

NAME = "team/remote"
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object"}}
fold: Callable[..., dict[str, Any]] = runpy.run_path(
    str(Path(__file__).with_name("folded_response.py"))
)["fold"]


@pytest.fixture(scope="module")
def upstream() -> Iterator[UpstreamServer]:
    with upstream_server() as one:
        yield one


@pytest.fixture(autouse=True)
def behaves(upstream: UpstreamServer) -> None:
    upstream.way = "good"
    upstream.bodies.clear()


@pytest.fixture(scope="module")
def client(
    serve: Served, upstream: UpstreamServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedClient]:
    named = UpstreamSettings(
        name=NAME,
        base_url=upstream.address,
        model=MODEL,
        api_key=KEY,
        limits=UpstreamLimits(timeout_s=2, max_connections=2),
    )
    folder = tmp_path_factory.mktemp("state")
    with serve(upstreams=(named,), state_folder=folder) as one:
        yield one


def post(client: httpx2.Client, **fields: Any) -> httpx2.Response:
    return client.post("/v1/responses", json={"model": NAME, "input": "Hello?", **fields})


def ask(client: httpx2.Client, **fields: Any) -> dict[str, Any]:
    answer = post(client, **fields)
    assert answer.status_code == 200, answer.text
    response: dict[str, Any] = answer.json()
    Response.model_validate(response)
    return response


def events_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    lines = answer.text.split("\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_an_answer_from_elsewhere_has_the_same_items(
    client: httpx2.Client, upstream: UpstreamServer
) -> None:
    response = ask(client, instructions="Be brief.", max_output_tokens=50, top_k=5)
    assert response["model"] == NAME
    thought, message = response["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert message["content"][0]["text"] == "Hello"
    assert response["status"] == "completed"
    assert response["usage"]["total_tokens"] == 10
    assert upstream.body["model"] == MODEL
    assert [message["role"] for message in upstream.body["messages"]] == ["system", "user"]
    assert (upstream.body["max_completion_tokens"], upstream.body["top_k"]) == (50, 5)
    assert client.get(f"/v1/responses/{response['id']}").json() == response


@pytest.mark.parametrize("way", ["good", "whole", "no mark", "tools"])
def test_a_stream_folds_to_the_same_response(
    client: httpx2.Client, upstream: UpstreamServer, way: str
) -> None:
    upstream.way = way
    response = fold(events_of(post(client, stream=True, tools=[LOOK])))
    whole = ask(client, tools=[LOOK])
    kept = ("type", "content", "name", "arguments", "status")
    assert [[item.get(name) for name in kept] for item in response["output"]] == [
        [item.get(name) for name in kept] for item in whole["output"]
    ]


def test_a_call_and_its_result_go_on_there(client: httpx2.Client, upstream: UpstreamServer) -> None:
    upstream.way = "tools"
    first = ask(client, tools=[LOOK], tool_choice={"type": "function", "name": "look"})
    look, find = first["output"]
    assert (look["name"], look["arguments"]) == ("look", '{"a": 1}')
    assert (find["name"], find["arguments"]) == ("find", "{}")
    chosen = {"type": "function", "function": {"name": "look"}}
    assert upstream.body["tool_choice"] == chosen
    upstream.way = "good"
    given = [
        {"type": "function_call_output", "call_id": call["call_id"], "output": "seen"}
        for call in (look, find)
    ]
    ask(client, input=given, previous_response_id=first["id"])
    roles = [message["role"] for message in upstream.body["messages"]]
    assert roles == ["user", "assistant", "tool", "tool"]
    calls = upstream.body["messages"][1]["tool_calls"]
    assert [call["id"] for call in calls] == [look["call_id"], find["call_id"]]


def test_a_server_that_breaks_off_fails_the_response(
    client: httpx2.Client, upstream: UpstreamServer
) -> None:
    upstream.way = "stops"
    response = fold(events_of(post(client, stream=True)))
    assert response["status"] == "failed"
    assert response["output"][0]["status"] == "incomplete"
    assert client.get(f"/v1/responses/{response['id']}").status_code == 404
    assert post(client).status_code == 502


def test_who_leaves_ends_the_answer_there(client: httpx2.Client, upstream: UpstreamServer) -> None:
    upstream.way = "endless"
    body = {"model": NAME, "input": "x", "stream": True}
    with client.stream("POST", "/v1/responses", json=body) as answer:
        assert any(line.endswith("output_text.delta") for line in answer.iter_lines())
        assert upstream.num_streaming == 1
    until = time.monotonic() + 30
    while upstream.num_streaming:
        assert time.monotonic() < until, "it goes on there"
        time.sleep(0.02)


def test_it_is_made_in_the_background_too(client: httpx2.Client) -> None:
    queued = ask(client, background=True)
    while (found := client.get(f"/v1/responses/{queued['id']}").json())["status"] in (
        "queued",
        "in_progress",
    ):
        pass
    assert found["status"] == "completed"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"background": True, "top_logprobs": 2}, "top_logprobs"),
    ],
)
def test_what_stays_here_is_refused(
    client: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    answer = post(client, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_what_is_refused_there_is_refused_here(
    client: httpx2.Client, upstream: UpstreamServer
) -> None:
    upstream.way = "too long"
    assert post(client).json()["error"]["code"] == "context_length_exceeded"
    upstream.way = "busy"
    assert post(client).status_code == 429
