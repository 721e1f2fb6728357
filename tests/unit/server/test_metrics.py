"""Counts over TCP: by route, model and status; tokens; times; what is held now."""

import re
from collections.abc import Callable
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families


def read(client: httpx2.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_an_answer_counts_its_request_its_tokens_and_its_times(
    serve: Callable[..., Any],
) -> None:
    with serve() as client:
        body = {"model": "qwen-plus", "messages": [{"role": "user", "content": "hello"}]}
        usage = client.post("/v1/chat/completions", json={**body, "max_tokens": 5}).json()["usage"]
        client.post("/v1/chat/completions", json={**body, "max_tokens": 5, "stream": True})
        client.post("/v1/chat/completions", json={**body, "model": "nobody-s"})
        client.post("/v1/chat/completions", content=b"{")
        client.get("/v1/nothing/at/all")
        client.get("/v1/models", headers={"authorization": "Bearer wrong"})
        counts = read(client)
        text = client.get("/metrics").text
    route = "/v1/chat/completions"
    requests = "qianyan_requests_total"
    assert counts[key(requests, route=route, model="qwen-plus", status="200")] == 2
    assert counts[key(requests, route=route, model="", status="404")] == 1
    assert counts[key(requests, route="none", model="", status="404")] == 1
    assert counts[key(requests, route="none", model="", status="401")] == 1
    assert counts[key("qianyan_errors_total", code="model_not_found")] == 1
    assert counts[key("qianyan_errors_total", code="invalid_api_key")] == 1
    tokens = {
        kind: counts[key("qianyan_tokens_total", model="qwen-plus", kind=kind)]
        for kind in ("prompt", "completion")
    }
    assert tokens == {
        "prompt": 2 * usage["prompt_tokens"],
        "completion": 2 * usage["completion_tokens"],
    }
    assert counts[key("qianyan_first_token_seconds_count", model="qwen-plus")] == 2
    assert counts[key("qianyan_token_seconds_count", model="qwen-plus")] == 2
    assert counts[key("qianyan_request_seconds_count", route=route)] == 4
    assert counts[key("qianyan_ready")] == 1
    assert counts[key("qianyan_cache_blocks")] > counts[key("qianyan_cache_blocks_used")] == 0
    assert not re.search("nobody|at/all|hello", text), "labels come from closed sets"
    assert not re.search("_created", text), "nobody asks when a series began"


def test_rates_are_told_and_kept_over_tcp(serve: Callable[..., Any]) -> None:
    body = {"model": "judge", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    with serve(requests_per_minute=3, tokens_per_minute=10_000) as client:
        first, second, third, fourth = (
            client.post("/v1/chat/completions", json=body) for _ in range(4)
        )
        dashscope = client.post("/api/v1/services/aigc/text-generation/generation", json=body)
        assert client.get("/v1/models").status_code == 200
        other = {"authorization": "Bearer sk-test-9876543210"}
        others = client.post("/v1/chat/completions", json=body, headers=other)
    assert (first.status_code, third.status_code) == (200, 200)
    assert first.headers["x-ratelimit-remaining-requests"] == "2"
    used = first.json()["usage"]["total_tokens"]
    assert int(second.headers["x-ratelimit-remaining-tokens"]) >= 10_000 - 2 * used
    assert fourth.status_code == dashscope.status_code == 429
    assert fourth.json()["error"]["code"] == "limit_requests"
    assert fourth.json()["error"]["type"] == "rate_limit_error"
    assert 0 < int(fourth.headers["retry-after"]) <= 20
    assert fourth.headers["x-ratelimit-remaining-requests"] == "0"
    assert dashscope.json()["code"].startswith("Throttling")
    assert others.status_code == 200
