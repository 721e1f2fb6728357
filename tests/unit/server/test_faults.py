"""A server in trouble, over TCP: its model dies, disk or line are full, the database is locked."""

import asyncio
import json
import resource
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from qianyan.engine.engine import Engine
from qianyan.server import database
from qianyan.server.app import create_app
from qianyan.server.settings import ServerLimits, ServerSettings

from .conftest import KEY, OTHER_KEY, listening

CHAT = "/v1/chat/completions"
NATIVE = "/api/v1/services/aigc/text-generation/generation"
STORY = [{"role": "user", "content": "a long story"}]


def never_ending(engine: Engine, **fields: Any) -> dict[str, Any]:
    ends = {str(token): -100 for token in engine._defaults.stop_token_ids}
    return {"model": "judge", "messages": STORY, "logit_bias": ends, "max_tokens": 1500, **fields}


@contextmanager
def slowed(engine: Engine, seconds: float) -> Iterator[None]:
    """Let every pass of the model take longer."""
    step = engine.step

    def slow_step() -> Any:
        time.sleep(seconds)
        return step()

    engine.step = slow_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        engine.step = step  # type: ignore[method-assign]


def gauge(client: httpx2.Client, name: str) -> float:
    (line,) = [
        one for one in client.get("/metrics").text.splitlines() if one.startswith(f"{name} ")
    ]
    return float(line.split()[1])


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


def test_a_model_that_dies_in_mid_stream_says_so_and_the_server_lives() -> None:
    engine = Engine("bundled", dtype="float32")
    settings = ServerSettings(
        model_names=("judge",), api_keys=(KEY,), limits=ServerLimits(drain_s=2)
    )
    worked = engine.step
    passes = iter(range(10_000))

    def dying() -> Any:
        if next(passes) >= 6:
            raise RuntimeError("bad kernel at 0xdeadbeef in /usr/lib/libtorch.so")
        return worked()

    headers = {"authorization": f"Bearer {KEY}"}
    with (
        slowed(engine, 0.01),
        listening(create_app(settings, engine), settings) as address,
        httpx2.Client(base_url=address, headers=headers, timeout=30) as client,
    ):
        engine.step = dying  # type: ignore[method-assign]
        assert client.get("/ready").status_code == 200
        streamed = client.post(CHAT, json=never_ending(engine, stream=True))
        *_, last = [line for line in streamed.text.split("\n\n") if line]
        error = json.loads(last.removeprefix("data: "))["error"]
        refused = client.post(CHAT, json=never_ending(engine))
        native = client.post(NATIVE, json={"model": "judge", "input": {"prompt": "x"}})
        ready, health = client.get("/ready"), client.get("/health")
        assert gauge(client, "qianyan_ready") == 0
        assert gauge(client, "qianyan_requests_running") == 0
    assert streamed.status_code == 200
    assert error["code"] == "model_failed"
    assert "[DONE]" not in streamed.text
    assert refused.status_code == ready.status_code == native.status_code == 503
    assert refused.json()["error"]["code"] == "model_failed"
    assert int(refused.headers["retry-after"]) > 0
    assert health.status_code == 200
    for answer in (streamed, refused, native, ready):
        assert "0xdead" not in answer.text
        assert "/usr" not in answer.text


def test_what_finds_no_memory_now_is_503_and_what_never_fits_is_400(
    serve: Callable[..., Any], engine: Engine
) -> None:
    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory at 0xdeadbeef")

    body = {"model": "judge", "messages": STORY, "max_tokens": 2}
    with serve() as client:
        hook = engine.model.register_forward_pre_hook(refuse)
        try:
            now = client.post(CHAT, json=body)
            native = client.post(NATIVE, json={"model": "judge", "input": {"prompt": "x"}})
        finally:
            hook.remove()
        long = [{"role": "user", "content": "word " * 20_000}]
        never = client.post(CHAT, json={**body, "messages": long})
        assert client.post(CHAT, json=body).status_code == 200
        assert client.get("/ready").status_code == 200
    assert now.status_code == native.status_code == 503
    assert now.json()["error"]["code"] == "no_memory"
    assert int(now.headers["retry-after"]) > 0
    assert native.json()["code"] == "ModelServingError"
    assert "0xdead" not in now.text + native.text
    assert never.status_code == 400
    assert never.json()["error"]["code"] == "context_length_exceeded"
    assert "retry-after" not in never.headers


def test_what_nobody_foresaw_is_500_without_a_word_of_it(
    serve: Callable[..., Any], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("bad table at 0xdeadbeef in /usr/lib")

    with serve() as client:
        monkeypatch.setattr(engine, "prepare_choices", broken)
        bodies = {CHAT: {"model": "judge", "messages": STORY}}
        bodies[NATIVE] = {"model": "judge", "input": {"prompt": "x"}}
        answers = [client.post(path, json=body) for path, body in bodies.items()]
        monkeypatch.undo()
        assert client.post(CHAT, json={**bodies[CHAT], "max_tokens": 1}).status_code == 200
        counted = client.get("/metrics").text
    for answer in answers:
        assert answer.status_code == 500
        assert answer.headers["x-request-id"] == answer.json()["request_id"]
        assert "0xdead" not in answer.text
    assert answers[0].json()["error"]["code"] == "internal_error"
    assert answers[1].json()["code"] == "InternalError"
    assert 'qianyan_errors_total{code="internal_error"} 2.0' in counted
    assert 'status="500"} 1.0' in counted
    assert "qianyan_requests_running 0.0" in counted


def test_a_disk_that_takes_no_more_is_a_503_and_leaves_nothing(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    """The limit is the kernel's own: a write beyond it fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serve(state_folder=tmp_path) as client:
        big = {"file": ("a.jsonl", b"x" * 3_000_000)}
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        try:
            full = client.post("/v1/files", files=big, data={"purpose": "batch"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
        assert client.get("/v1/files").json()["data"] == []
        again = client.post("/v1/files", files=big, data={"purpose": "batch"})
    assert full.status_code == 503
    assert full.json()["error"]["code"] == "storage_failed"
    assert str(tmp_path) not in full.text
    assert int(full.headers["retry-after"]) > 0
    assert again.status_code == 200


def test_a_locked_database_is_a_503_while_the_model_answers_on(
    serve: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.2)
    small = {"file": ("a.jsonl", b"{}")}

    def upload(client: httpx2.Client) -> httpx2.Response:
        return client.post("/v1/files", files=small, data={"purpose": "batch"})

    with serve(state_folder=tmp_path) as client:
        assert client.get("/v1/files").status_code == 200, "it has started"
        path = tmp_path / database.DATABASE_FILE
        locking = sqlite3.connect(path, isolation_level=None, timeout=60)
        locking.execute("BEGIN IMMEDIATE")
        locked = upload(client)
        listed = client.get("/v1/files")
        body = {"model": "judge", "messages": STORY, "max_tokens": 1}
        answered = client.post(CHAT, json=body)
        logged = [one for one in caplog.records if one.getMessage() == "request failed"]
        locking.execute("ROLLBACK")
        locking.close()
        # At once, unless the server's own writing takes the fifth of a second just then.
        wait_until(lambda: upload(client).status_code == 200)
    assert [bool(one.exc_info) for one in logged] == [True], "the cause is in the log"
    assert locked.status_code == 503
    assert locked.json()["error"]["code"] == "storage_failed"
    assert "sqlite" not in locked.text.lower()
    assert listed.status_code == answered.status_code == 200


def test_a_storm_of_clients_that_go_away_leaves_nothing_running(
    serve: Callable[..., Any], engine: Engine
) -> None:
    async def storm(address: str) -> None:
        async def come_and_go(number: int) -> None:
            headers = {"authorization": f"Bearer {KEY}"}
            body = never_ending(engine, stream=number % 2 == 0)
            async with httpx2.AsyncClient(base_url=address, headers=headers) as one:
                try:
                    async with asyncio.timeout(0.05 + number % 7 / 20):
                        await one.post(CHAT, json=body)
                except TimeoutError:
                    return

        await asyncio.gather(*(come_and_go(number) for number in range(80)))

    with serve() as client:
        with slowed(engine, 0.01):
            asyncio.run(storm(str(client.base_url)))
            # Answers of 1500 passes, at least 0.01 s each, would take longer.
            wait_until(lambda: gauge(client, "qianyan_requests_running") == 0, seconds=10)
        assert gauge(client, "qianyan_requests_waiting") == 0
        wait_until(lambda: engine.num_used_blocks == 0)
        body = {"model": "judge", "messages": STORY, "max_tokens": 2}
        assert client.post(CHAT, json=body).status_code == 200


def test_a_thousand_of_one_key_fill_the_line_and_another_s_one_is_answered(
    serve: Callable[..., Any], engine: Engine
) -> None:
    """What does not fit is refused at once with 429; the other key waits for one seat only."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 3000:
        pytest.skip("this system opens fewer files than a thousand connections need")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 3000), most))
    asked = never_ending(engine, max_tokens=10)

    async def flood(address: str) -> tuple[list[httpx2.Response], httpx2.Response]:
        limits = httpx2.Limits(max_connections=None)
        mine = {"authorization": f"Bearer {KEY}"}
        theirs = {"authorization": f"Bearer {OTHER_KEY}"}
        async with httpx2.AsyncClient(base_url=address, limits=limits, timeout=300) as one:
            many = [
                asyncio.create_task(one.post(CHAT, json=asked, headers=mine)) for _ in range(1000)
            ]
            await asyncio.wait(many, return_when=asyncio.FIRST_COMPLETED)
            other = await one.post(CHAT, json=asked, headers=theirs)
            return await asyncio.gather(*many), other

    try:
        patient = {"max_wait_s": 300, "head_timeout_s": 300, "max_answer_s": 300}
        with serve(max_waiting=100, **patient) as client, slowed(engine, 0.002):
            answers, other = asyncio.run(flood(str(client.base_url)))
            wait_until(lambda: gauge(client, "qianyan_requests_running") == 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) == {200, 429}, counts
    assert counts[200] >= 100
    full = next(answer for answer in answers if answer.status_code == 429)
    assert full.json()["error"]["code"] == "limit_requests"
    assert int(full.headers["retry-after"]) > 0
    assert other.status_code == 200
