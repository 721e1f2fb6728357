"""A real HTTP server that streams chat completions; each of its models has one way to behave.

Loaded by tests with runpy.
"""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

MODELS = [
    "thinks",
    "mumbles",
    "slow",
    "strict",
    "steers",
    "breaks",
    "drops",
    "lies",
    "nonsense",
    "busy",
]
WORDS = ["The ", "roof ", "burns."]
KEY = "secret-key"


class ChatServer:
    """The running server: its address, what it was sent, and how many answers were given up."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.num_given_up = 0
        config = uvicorn.Config(
            self._app(), port=0, log_level="critical", ws="none", lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        def models() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": name} for name in MODELS]}

        @app.post("/v1/chat/completions")
        async def complete(request: Request) -> Any:
            body = await request.json()
            if request.headers.get("authorization") != f"Bearer {KEY}":
                return refuse(401, "Incorrect API key provided.")
            if body["model"] not in MODELS:
                return refuse(404, "No such model.")
            if body["model"] == "busy":
                return refuse(400, "The model is being replaced.")
            if body["model"] == "strict" and "stream_options" in body:
                return refuse(400, "Unknown parameter: 'stream_options'.")
            self.bodies.append(body)
            return StreamingResponse(self._events(body), media_type="text/event-stream")

        return app

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        try:
            async for event in events(body["model"]):
                yield event
            if body.get("stream_options"):
                yield line({"choices": [], "usage": {"completion_tokens": len(WORDS)}})
            yield b"data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.num_given_up += 1
            raise


async def events(model: str) -> AsyncIterator[bytes]:
    """Speak as this model does."""
    yield b": welcome\n\n"
    yield chunk(role="assistant", content="")
    for piece in before(model):
        yield piece
    has_fault = model in {"breaks", "drops", "lies", "nonsense"}
    for words in WORDS[: 1 if has_fault else None]:
        yield chunk(content=words)
    if model == "slow":
        for _ in range(600):
            await asyncio.sleep(0.1)
            yield chunk(content=".")
    for piece in after(model):
        yield piece
    yield chunk("stop")


def before(model: str) -> list[bytes]:
    """What comes before the answer."""
    if model == "thinks":
        return [chunk(reasoning_content=words, content=None) for words in ("Grey, ", "rising.")]
    if model == "mumbles":
        inline = ("<thi", "nk>Grey, ", "rising.</think>", "\n\n")
        return [chunk(content=words) for words in inline]
    return [chunk(content="\x1b]0;owned\x07\x1b[2J")] if model == "steers" else []


def after(model: str) -> list[bytes]:
    """What comes where the rest of the answer should."""
    if model == "drops":
        raise ConnectionResetError
    if model == "breaks":
        return [line({"error": {"message": "CUDA out of memory", "code": 500}})]
    if model == "nonsense":
        return [b"data: {nonsense\n\n"]
    return [line({"object": "something else"})] if model == "lies" else []


def chunk(finish_reason: str | None = None, **delta: Any) -> bytes:
    return line({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def line(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def refuse(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status)
