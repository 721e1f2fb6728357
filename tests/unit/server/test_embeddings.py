"""Embeddings of the model here and of upstream ones, and the refusal of other models."""

import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import dashscope
import httpx2
import pytest
import torch
from openai import OpenAI

from qianyan.engine.engine import Engine
from qianyan.engine.scheduler import EngineConfig
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


TEXTS = ["hard hat", "安全帽", "a"]


@pytest.fixture(scope="module")
def own(embedding_checkpoint: Path) -> Engine:
    return Engine(embedding_checkpoint, config=EngineConfig(max_batch_tokens=64))


@pytest.fixture(scope="module")
def local(serve: Served, own: Engine) -> Iterator[ServedClient]:
    with serve(model=own) as one:
        yield one


def embed(client: httpx2.Client, given: Any, **more: Any) -> httpx2.Response:
    return client.post("/v1/embeddings", json={"model": "judge", "input": given, **more})


def test_the_model_here_embeds_for_openais_client(local: ServedClient, own: Engine) -> None:
    openai = OpenAI(base_url=str(local.base_url.join("/v1")), api_key=KEY)
    done = openai.embeddings.create(model="judge", input=TEXTS)
    found = torch.tensor([one.embedding for one in done.data])
    expected = own.embed(TEXTS)
    torch.testing.assert_close(found, expected.vectors)
    assert done.usage.prompt_tokens == done.usage.total_tokens == expected.num_tokens == 21
    short = openai.embeddings.create(
        model="judge", input="hard hat", dimensions=8, encoding_format="float"
    )
    assert torch.tensor(short.data[0].embedding).norm() == pytest.approx(1, abs=1e-6)
    assert len(short.data[0].embedding) == 8


def test_token_ids_and_question_words_are_taken(local: ServedClient, own: Engine) -> None:
    ids = own.processor.tokenizer.encode_whole("hat")
    query, told = own.embed(["Instruct: find\nQuery:hat", "Instruct: look\nQuery:hat"]).vectors
    plain = own.embed(["hat"]).vectors[0]
    asked: list[tuple[Any, dict[str, Any], torch.Tensor]] = [
        (ids, {}, plain),
        ([ids], {}, plain),
        ("hat", {"text_type": "query"}, query),
        ("hat", {"instruct": "look"}, told),
        ("hat", {"text_type": "document", "instruct": "look"}, plain),
    ]
    for given, more, expected in asked:
        (one,) = embed(local, given, **more).json()["data"]
        torch.testing.assert_close(torch.tensor(one["embedding"]), expected)


def test_the_model_here_embeds_for_bailians_client(
    local: ServedClient, own: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", str(local.base_url.join("/api/v1")))
    answer = dashscope.TextEmbedding.call(
        "judge", input=TEXTS, dimension=16, text_type="query", api_key=KEY
    )
    assert answer.status_code == HTTPStatus.OK, answer
    expected = own.embed(TEXTS, dimensions=16, kind="query")
    found = torch.tensor([one["embedding"] for one in answer.output["embeddings"]])
    torch.testing.assert_close(found, expected.vectors)
    assert answer.usage["total_tokens"] == expected.num_tokens


@pytest.mark.parametrize(
    ("given", "more", "code", "words"),
    [
        ("a" * 600, {}, "context_length_exceeded", "601 tokens"),
        ("a", {"dimensions": 65}, "bad_input", "expected 1 to 64"),
        ([264], {}, "bad_input", "token 264"),
        ("a", {"text_type": "answer"}, "invalid_value", "text_type"),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    local: ServedClient, given: Any, more: dict[str, Any], code: str, words: str
) -> None:
    answer = embed(local, given, **more)
    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert answer.json()["error"]["code"] == code
    assert words in answer.json()["error"]["message"]
    parameters = {{"dimensions": "dimension"}.get(name, name): one for name, one in more.items()}
    if isinstance(given, str):
        body = {"model": "judge", "input": {"texts": [given]}, "parameters": parameters}
        native = local.post(NATIVE, json=body)
        assert native.status_code == HTTPStatus.BAD_REQUEST, native.text
        assert words in native.json()["message"]


def test_a_model_that_embeds_answers_no_conversations(local: ServedClient) -> None:
    said = [{"role": "user", "content": "hello"}]
    answer = local.post("/v1/chat/completions", json={"model": "judge", "messages": said})
    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert answer.json()["error"]["code"] == "unsupported_model"
    assert "makes embeddings" in answer.json()["error"]["message"]


def test_many_texts_let_a_single_one_pass(
    local: ServedClient, own: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two passes of one request there is room for another's."""
    assert own.embedder is not None
    run, passes = own.embedder.run, []

    def slow(*given: Any) -> torch.Tensor:
        passes.append(given)
        time.sleep(0.02)
        return run(*given)

    monkeypatch.setattr(own.embedder, "run", slow)
    done: list[httpx2.Response] = []
    many = threading.Thread(target=lambda: done.append(embed(local, ["a" * 40] * 200)))
    many.start()
    while not passes:
        time.sleep(0.001)
    assert embed(local, "one").status_code == HTTPStatus.OK
    assert not done, "the many are still being embedded"
    many.join()
    assert len(done[0].json()["data"]) == 200
    assert len(passes) == 201


def test_the_time_of_a_request_is_kept(
    serve: Served, own: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert own.embedder is not None
    run = own.embedder.run

    def slow(*given: Any) -> torch.Tensor:
        time.sleep(0.3)
        return run(*given)

    monkeypatch.setattr(own.embedder, "run", slow)
    with serve(model=own, max_answer_s=0.5) as client:
        answer = embed(client, ["a" * 40] * 50)
        assert answer.status_code == HTTPStatus.GATEWAY_TIMEOUT
        assert answer.json()["error"]["code"] == "request_timeout"
        assert "qianyan_requests_running 0.0" in client.get("/metrics").text


def test_a_model_that_breaks_is_told_and_memory_that_lacks_passes(
    serve: Served, embedding_checkpoint: Path
) -> None:
    own = Engine(embedding_checkpoint)

    with serve(model=own) as client:
        norm: Any = own.model.model.norm
        hook = norm.register_forward_pre_hook(_raising("DefaultCPUAllocator: not enough memory"))
        full = embed(client, "a")
        hook.remove()
        assert embed(client, "a").status_code == HTTPStatus.OK
        hook = norm.register_forward_pre_hook(_raising("bad kernel at 0xdeadbeef"))
        broken = embed(client, "a")
        hook.remove()
        after, ready = embed(client, "a"), client.get("/ready")
    assert (full.status_code, full.json()["error"]["code"]) == (503, "no_memory")
    assert (broken.status_code, broken.json()["error"]["code"]) == (500, "model_failed")
    assert "0xdead" not in broken.text
    assert after.status_code == ready.status_code == HTTPStatus.SERVICE_UNAVAILABLE


def _raising(words: str) -> Any:
    def refuse(*_: Any) -> None:
        raise RuntimeError(words)

    return refuse
