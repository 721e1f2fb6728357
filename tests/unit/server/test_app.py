"""The skeleton over TCP: counts, refusals of the framework in our own words, size of bodies."""

from collections.abc import Callable
from typing import Any

import httpx2

from qianyan.server.errors import ModelFailedError


def test_metrics_count_what_runs_and_waits(client: httpx2.Client) -> None:
    text = client.get("/metrics").text
    assert "qianyan_requests_running 0.0\n" in text
    assert "qianyan_requests_waiting 0.0\n" in text


def test_what_is_not_there_is_said_in_openai_s_form(client: httpx2.Client) -> None:
    missing = client.get("/v1/nothing")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "not_found"
    wrong = client.delete("/metrics")
    assert wrong.status_code == 405
    assert wrong.json()["error"]["code"] == "method_not_allowed"


def test_ready_says_so_when_the_model_is_broken(serve: Callable[..., Any]) -> None:
    with serve() as client:
        assert client.get("/ready").json() == {"status": "ready"}
        client.app.state.serving.worker.failure = ModelFailedError("The model failed.")
        answer = client.get("/ready")
        assert client.get("/health").status_code == 200
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "model_failed"
    assert int(answer.headers["retry-after"]) > 0
