"""Embeddings of upstream models, and the refusal of those that are no embedding models."""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import dashscope
import httpx2
import pytest
from openai import OpenAI

from qianyan.server.upstream_settings import UpstreamSettings

from .conftest import KEY, Served, ServedClient
from .upstream_server import MODEL, UpstreamServer, upstream_server

NATIVE = "/api/v1/services/embeddings/text-embedding/text-embedding"


@pytest.fixture(scope="module")
def upstream() -> Iterator[UpstreamServer]:
    with upstream_server() as one:
        yield one


@pytest.fixture(scope="module")
def client(serve: Served, upstream: UpstreamServer) -> Iterator[ServedClient]:
    named = UpstreamSettings(name="embed", base_url=upstream.address, model=MODEL)
    with serve(upstreams=(named,)) as one:
        yield one


def ask(client: httpx2.Client, **more: Any) -> httpx2.Response:
    return client.post("/v1/embeddings", json={"model": "embed", "input": "hard hat", **more})


def test_openais_client_gets_numbers_out_of_the_packed_form(
    client: httpx2.Client, upstream: UpstreamServer
) -> None:
    openai = OpenAI(base_url=str(client.base_url.join("/v1")), api_key=KEY)
    done = openai.embeddings.create(model="embed", input=["hard hat"], dimensions=2)
    assert done.data[0].embedding == pytest.approx([0.6, 0.8])
    assert (done.model, done.usage.total_tokens) == ("embed", 2)
    assert upstream.body["dimensions"] == 2
    assert upstream.body["model"] == MODEL


@pytest.mark.parametrize("given", ["hard hat", ["hard hat"], [1, 2, 3], [[1, 2, 3]]])
def test_every_form_of_one_input_is_passed_on(
    client: httpx2.Client, upstream: UpstreamServer, given: Any
) -> None:
    answer = ask(client, input=given)
    assert answer.json()["data"] == [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}]
    assert upstream.body["input"] == given


@pytest.mark.parametrize("given", [[], [[]], 5, ["a", 1], None, ["a"] * 2049])
def test_other_inputs_are_refused(client: httpx2.Client, given: Any) -> None:
    assert ask(client, input=given).status_code == HTTPStatus.BAD_REQUEST


def test_the_order_is_that_of_the_inputs(client: httpx2.Client, upstream: UpstreamServer) -> None:
    upstream.way = "backwards"
    data = ask(client, input=["one", "two", "three"]).json()["data"]
    upstream.way = "good"
    assert [(one["index"], one["embedding"]) for one in data] == [(0, [0]), (1, [1]), (2, [2])]


def test_too_few_embeddings_are_an_error(client: httpx2.Client) -> None:
    answer = ask(client, input=["one", "two"])
    assert answer.status_code == HTTPStatus.BAD_GATEWAY
    assert "one embedding for each input" in answer.json()["error"]["message"]


def test_a_chat_model_is_refused_with_a_sentence(client: httpx2.Client) -> None:
    answer = ask(client, model="judge")
    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert answer.json()["error"]["code"] == "unsupported_model"
    assert "makes no embeddings" in answer.json()["error"]["message"]
    assert ask(client, model="nobody").status_code == HTTPStatus.NOT_FOUND


def test_bailians_client_gets_embeddings(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", str(client.base_url.join("/api/v1")))
    answer = dashscope.TextEmbedding.call("embed", input="hard hat", dimension=2, api_key=KEY)
    assert answer.status_code == HTTPStatus.OK, answer
    assert answer.output["embeddings"][0]["embedding"] == [0.6, 0.8]


def test_dashscopes_form_is_answered(client: httpx2.Client, upstream: UpstreamServer) -> None:
    body = {"model": "embed", "input": {"texts": ["hard hat"]}, "parameters": {"dimension": 2}}
    answer = client.post(NATIVE, json=body).json()
    assert answer["output"] == {"embeddings": [{"text_index": 0, "embedding": [0.6, 0.8]}]}
    assert answer["usage"] == {"total_tokens": 2}
    assert upstream.body["dimensions"] == 2
    refused = client.post(NATIVE, json={**body, "model": "judge"})
    assert refused.status_code == HTTPStatus.BAD_REQUEST
    assert refused.json()["code"] == "InvalidParameter"
