"""A small server that speaks OpenAI's chat protocol, well or in one of the ways that others do."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

MODEL = "Org/Remote-7B"
KEY = "sk-upstream-secret-1"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


class UpstreamServer:
    """What it was asked, and in which `way` it is to answer the next time."""

    def __init__(self) -> None:
        self.address = ""
        self.way = "good"
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.num_streaming = 0
        self.num_left = 0

    @property
    def body(self) -> dict[str, Any]:
        """The last request."""
        return self.bodies[-1]


def make_app(server: UpstreamServer) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        server.bodies.append(await request.json())
        server.headers.append(dict(request.headers))
        if (refused := REFUSALS.get(server.way)) is not None:
            status, body, headers = refused
            return JSONResponse(body, status, headers)
        if server.way == "silent":
            for _ in range(300):
                await asyncio.sleep(0.1)
                if await request.is_disconnected():
                    server.num_left += 1
                    break
        if server.way == "garbage":
            return Response(b"<html>welcome</html>", media_type="text/html")
        if server.body["stream"] and server.way != "whole":
            return StreamingResponse(events(server), media_type="text/event-stream")
        return JSONResponse(whole(server))

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        server.bodies.append(await request.json())
        data: list[dict[str, Any]] = [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}]
        if server.way == "backwards":
            places = reversed(range(len(server.body["input"])))
            data = [{"index": at, "embedding": [at]} for at in places]
        return JSONResponse(
            {"object": "list", "data": data, "model": MODEL, "usage": {"prompt_tokens": 2}}
        )

    return app


def whole(server: UpstreamServer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "Hello", "reasoning": "hm"}
    reason = "stop"
    if server.way == "tools":
        call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        message, reason = {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
    if server.way == "spoken":
        message = {"role": "assistant", "content": None, "audio": {**SOUND, "transcript": "Hello"}}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return {"id": "theirs", "model": MODEL, "choices": [choice], "usage": USAGE}


async def events(server: UpstreamServer) -> AsyncIterator[bytes]:
    server.num_streaming += 1
    try:
        for chunk in STREAMS.get(server.way, STREAMS["good"]):
            yield f"data: {json.dumps(chunk)}\r\n\r\n".encode()
        if server.way == "dies":
            raise ConnectionResetError("died")
        if server.way == "endless":
            while True:
                yield f"data: {json.dumps(delta(content='x'))}\n\n".encode()
                await asyncio.sleep(0.02)
        if server.way == "broken json":
            yield b"data: {oops\n\n"
        if server.way not in ("stops", "no mark"):
            yield b"data: [DONE]\n\n"
    finally:
        server.num_streaming -= 1


def delta(reason: str | None = None, index: int = 0, **said: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": {"role": "assistant", **said}, "finish_reason": reason}
    return {"id": f"theirs-{len(said)}", "model": MODEL, "choices": [choice]}


def call(place: int, call_id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"index": place, "id": call_id, "type": "function", "function": function}


COUNTED = {"id": "theirs", "choices": [], "usage": USAGE}
SOUND = {"id": "audio_1", "data": "AAECAw==", "expires_at": 1_700_000_000}
STREAMS: dict[str, list[dict[str, Any]]] = {
    "good": [
        delta(content=""),
        delta(reasoning_content="hm"),
        delta(content="Hel"),
        {**delta(content="lo", reason="stop"), "search_info": {"half": "\ud83d"}},
        delta(content="never", reason="stop"),
        COUNTED,
    ],
    "tools": [
        delta(tool_calls=[call(0, "c1", "look", "")]),
        delta(tool_calls=[call(0, "c1", "look", '{"a"')]),
        delta(tool_calls=[call(0, "c1", "look", ": 1}")]),
        delta(tool_calls=[call(0, "c2", "find", "{}")]),  # another one under the same index
        delta(reason="stop"),
        COUNTED,
    ],
    "spoken": [
        delta(audio={"id": "audio_1", "transcript": "Hel"}),
        delta(audio=SOUND),
        delta(audio={"id": "audio_1", "transcript": "lo"}),
        delta(reason="stop"),
        COUNTED,
    ],
    "dies": [delta(content="Hel")],
    "stops": [delta(content="Hel")],
    "no mark": [delta(content="Hello"), delta(reason="stop")],
    "broken json": [delta(content="Hel")],
    "error": [delta(content="Hel"), {"error": {"message": f"out of memory, key {KEY}"}}],
    "endless": [],
}
REFUSALS: dict[str, tuple[int, dict[str, Any], dict[str, str]]] = {
    "busy": (429, {"error": {"message": "slow down"}}, {"retry-after": "17"}),
    "starting": (503, {"detail": "loading"}, {}),
    "too long": (
        400,
        {"error": {"message": f"too long {KEY}", "code": "context_length_exceeded"}},
        {},
    ),
    "wrong": (422, {"error": {"message": "top_k must be a number"}}, {}),
    "no key": (401, {"error": {"message": "bad key"}}, {}),
    "no model": (404, {"error": {"message": "no such model"}}, {}),
    "broken": (500, {"error": "CUDA error"}, {}),
    "moved": (307, {}, {"location": "http://169.254.169.254/"}),
}


@contextmanager
def upstream_server() -> Iterator[UpstreamServer]:
    """Run one on a free port."""
    server = UpstreamServer()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(server), log_config=None, timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    server.address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    try:
        yield server
    finally:
        running.should_exit = True
        thread.join()
