"""Clients that hold a connection open for nothing, over TCP."""

import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi import FastAPI

from qianyan.engine.engine import Engine
from qianyan.server.settings import ServerLimits, ServerSettings
from qianyan.server.wire import OTHER_FILES, listen_config

PATH = "/v1/chat/completions"


@contextmanager
def connected(client: httpx2.Client) -> Iterator[socket.socket]:
    address = urlsplit(str(client.base_url))
    with socket.create_connection((address.hostname, address.port), timeout=20) as raw:
        yield raw


def head(client: httpx2.Client, length: int, path: str = PATH) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: {client.headers['authorization']}\r\n"
        f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


def read_all(raw: socket.socket) -> bytes:
    held = b""
    try:
        while piece := raw.recv(65_536):
            held += piece
    except ConnectionResetError:
        pass
    return held


def drip(raw: socket.socket, piece: bytes, *, every_s: float) -> float:
    """Send a piece again and again until the server ends the connection; say how long it took."""
    started = time.monotonic()
    raw.settimeout(every_s)
    while time.monotonic() - started < 20:
        try:
            raw.sendall(piece)
            if raw.recv(1) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - started


@pytest.mark.parametrize("first", [b"", b"POST /v1/chat/completions HTTP/1.1\r\n"])
def test_a_head_that_does_not_end_is_cut_off(serve: Callable[..., Any], first: bytes) -> None:
    """Silent or one line at a time (slow-loris)."""
    with serve(head_timeout_s=0.6) as client, connected(client) as raw:
        raw.sendall(first)
        assert drip(raw, b"x-a: b\r\n" if first else b"", every_s=0.1) < 15
        assert client.get("/health").status_code == 200


def test_a_second_head_on_the_same_connection_is_timed_as_well(
    serve: Callable[..., Any],
) -> None:
    with serve(head_timeout_s=0.6) as client, connected(client) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert raw.recv(65_536).startswith(b"HTTP/1.1 200")
        raw.sendall(b"GET /health HTTP/1.1\r\n")
        assert drip(raw, b"x-a: b\r\n", every_s=0.1) < 15


def test_a_body_that_drips_is_answered_with_408(serve: Callable[..., Any]) -> None:
    with serve(body_timeout_s=0.5) as client, connected(client) as raw:
        raw.sendall(head(client, 100_000))
        started = time.monotonic()
        for _ in range(3):
            raw.sendall(b" " * 10)
            time.sleep(0.1)
        answer = b""
        while b"request_timeout" not in answer and (more := raw.recv(65_536)):
            answer += more
        assert time.monotonic() - started < 5
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer


@pytest.mark.parametrize("path", [PATH, "/v1/files"])
def test_a_client_that_goes_away_in_mid_body_is_no_fault_of_the_server(
    serve: Callable[..., Any], tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(state_folder=tmp_path) as client:
        with connected(client) as raw:
            form = head(client, 100_000, path).replace(
                b"application/json",
                b"multipart/form-data; boundary=x" if path != PATH else b"application/json",
            )
            raw.sendall(form + b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"')
        wait_until(lambda: 'status="499"} 1.0' in client.get("/metrics").text)
        assert (
            'qianyan_errors_total{code="client_closed_request"} 1.0' in client.get("/metrics").text
        )
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


def test_a_body_that_comes_fast_may_take_longer(serve: Callable[..., Any]) -> None:
    asked = {"model": "judge", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    body = json.dumps(asked).encode() + b" " * 60_000
    with serve(body_timeout_s=0.4, least_body_rate=10_000) as client, connected(client) as raw:
        raw.sendall(head(client, len(body)))
        for at in range(0, len(body), 15_000):
            raw.sendall(body[at : at + 15_000])
            time.sleep(0.2)
        assert raw.recv(65_536).startswith(b"HTTP/1.1 200")


def test_a_refused_client_cannot_keep_its_connection_by_sending_on(
    serve: Callable[..., Any],
) -> None:
    with serve(head_timeout_s=0.6, body_timeout_s=0.5) as client, connected(client) as raw:
        raw.sendall(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 999999\r\n\r\n".encode())
        assert raw.recv(65_536).startswith(b"HTTP/1.1 401")
        assert drip(raw, b"x", every_s=0.1) < 15


def test_a_server_may_open_the_files_that_its_connections_take() -> None:
    """Many systems begin with 1024, which the limit of connections is far beyond."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    settings = ServerSettings(model_names=("m",), limits=ServerLimits(max_connections=300))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        listen_config(FastAPI(), settings)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300 + OTHER_FILES
        listen_config(FastAPI(), replace(settings, limits=ServerLimits(max_connections=3)))
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300 + OTHER_FILES
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_one_connection_too_many_is_told_to_come_again(serve: Callable[..., Any]) -> None:
    with serve(max_connections=3) as client:
        assert client.get("/health").status_code == 200
        with connected(client), connected(client), connected(client) as fourth:
            fourth.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = read_all(fourth)
            assert client.get("/health").status_code == 200
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 2" in answer
        assert b'"code":"server_busy"' in answer
        wait_until(lambda: is_let_in(client))


def is_let_in(client: httpx2.Client) -> bool:
    with connected(client) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        return read_all(raw).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "lines",
    ["x-long: " + "a" * 200_000, "\r\n".join(f"x-{number}: b" for number in range(20_000))],
)
def test_a_head_that_is_too_large_is_refused(client: httpx2.Client, lines: str) -> None:
    with connected(client) as raw:
        try:
            raw.sendall(f"GET /health HTTP/1.1\r\nhost: x\r\n{lines}\r\n\r\n".encode())
        except OSError:
            return  # refused before all of it was read
        answer = read_all(raw)
    assert not answer.startswith(b"HTTP/1.1 200")
    assert client.get("/health").status_code == 200


def test_a_reader_that_takes_nothing_is_cut_off_and_its_seat_is_free(
    serve: Callable[..., Any], engine: Engine
) -> None:
    """Twelve long streams on one connection that reads nothing would fill memory for ever."""
    body = json.dumps(
        {
            "model": "judge",
            "messages": [{"role": "user", "content": "a story"}],
            "stream": True,
            "n": 4,
            "logprobs": True,
            "top_logprobs": 20,
            "max_tokens": 1500,
            "logit_bias": {str(token): -100 for token in engine._defaults.stop_token_ids},
        }
    ).encode()
    with serve(write_timeout_s=0.5) as client:
        address = urlsplit(str(client.base_url))
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect((address.hostname, address.port))
            raw.sendall(head(client, len(body)) + body)
            wait_until(lambda: running(client) > 0)
            wait_until(lambda: running(client) == 0)
            raw.settimeout(20)
            received = read_all(raw)
    assert b"[DONE]" not in received, "it was cut off before its end"
    wait_until(lambda: engine.num_used_blocks == 0)


def running(client: httpx2.Client) -> float:
    (line,) = [
        one
        for one in client.get("/metrics").text.splitlines()
        if one.startswith("qianyan_requests_running")
    ]
    return float(line.split()[1])


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(4000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it never came true")


def test_an_answer_ends_at_its_time_limit_with_what_there_is(
    serve: Callable[..., Any], engine: Engine
) -> None:
    fields: dict[str, Any] = {
        "model": "judge",
        "messages": [{"role": "user", "content": "a story"}],
        "max_tokens": 1500,
        "logit_bias": {str(token): -100 for token in engine._defaults.stop_token_ids},
    }
    step = engine.step

    def slow_step() -> Any:
        time.sleep(0.01)
        return step()

    engine.step = slow_step  # type: ignore[method-assign]
    try:
        with serve(max_answer_s=1.0) as client:
            started = time.monotonic()
            whole = client.post(PATH, json=fields).json()
            assert 0.9 < time.monotonic() - started < 12, "a whole answer takes 15 s at least"
            streamed = client.post(PATH, json={**fields, "stream": True}).text
            wait_until(lambda: engine.num_used_blocks == 0)
    finally:
        engine.step = step  # type: ignore[method-assign]
    (choice,) = whole["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["stop_reason"] == "time_limit"
    assert choice["message"]["content"]
    assert 0 < whole["usage"]["completion_tokens"] < 1500
    assert '"finish_reason":"length"' in streamed
    assert streamed.endswith("data: [DONE]\n\n")
