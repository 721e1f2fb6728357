"""A simulated endpoint: a real HTTP server that looks at the pictures it is sent.

It finds coloured squares in the pixels and answers in the OpenAI protocol, in a chosen notation,
after a chosen hidden resizing, with chosen faults. What it cannot do is understand a picture.
"""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import pytest
from PIL import Image, ImageChops

from qianyan.inputs.grounding import Notation, to_model_box
from qianyan.inputs.images import smart_resize

COLOURS = {"red": (230, 30, 30), "green": (20, 160, 60), "blue": (40, 80, 230)}
PIECE = 5
IS_NEAR = [255 if distance < 25 else 0 for distance in range(256)]
HAZARDS = {
    "red": ("火灾", "严重", "fire", "severe"),
    "green": ("人员", "未佩戴安全帽", "person", "no helmet"),
    "blue": ("烟雾", "轻微", "smoke", "minor"),
}


@dataclass
class Behaviour:
    """What the endpoint does; statuses in `failures` are answered first, one by one."""

    notation: Notation = Notation.RESIZED_PIXELS
    factor: int = 28
    max_pixels: int = 12_845_056
    most_accepted_pixels: int = 10**9
    models: tuple[str, ...] = ("squares-vl",)
    api_key: str | None = None
    schema: str = "kept"  # kept, ignored, refused
    logprobs: str = "given"  # given, ignored, refused
    penalty: str = "taken"  # taken, refused
    stream: str = "whole"  # whole, pieces, refused
    form: str = "{}"
    reply: str | None = None
    finish_reason: str = "stop"
    delay_s: float = 0.0
    piece_s: float = 0.0
    failures: list[int] = field(default_factory=list)
    retry_after: str | None = None
    body: bytes | None = None
    drops_connection: bool = False


class SimulatedEndpoint:
    """The running server: its address, its behaviour, and what it was sent."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests: list[dict[str, Any]] = []
        self.pictures: list[Image.Image] = []
        self.arrived_s: list[float] = []
        self.most_at_once = 0
        self.pieces_sent = 0
        self._now = 0
        self._lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def respond(self, path: str, key: str | None, body: dict[str, Any]) -> tuple[int, Any]:
        """Decide status and JSON for one request."""
        does = self.behaviour
        if does.api_key is not None and key != f"Bearer {does.api_key}":
            said = f"Incorrect API key provided: {key}"
            return 401, {"error": {"message": said, "code": "invalid_api_key"}}
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": name} for name in does.models]}
        if path != "/v1/chat/completions":
            return 404, {"detail": "Not Found"}
        with self._lock:
            self.requests.append(body)
            self.arrived_s.append(time.monotonic())
            failure = does.failures.pop(0) if does.failures else None
        if failure is not None:
            return failure, {"error": {"message": f"trouble {failure} with {key}"}}
        if body["model"] not in does.models:
            return 404, {"error": {"message": f"The model {body['model']} does not exist."}}
        if "response_format" in body and does.schema == "refused":
            return 400, {"error": {"message": "response_format json_schema is not supported"}}
        if body.get("logprobs") and does.logprobs == "refused":
            return 400, {"error": {"message": "logprobs are not supported with this model"}}
        if "presence_penalty" in body and does.penalty == "refused":
            return 422, {"detail": "Unexpected fields in the request: {'presence_penalty'}"}
        if body.get("stream") and does.stream == "refused":
            return 400, {"error": {"message": "stream is not supported"}}
        return self._answer(body)

    def pieces(self, completion: dict[str, Any]) -> Iterator[bytes]:
        """Cut a completion into events of a few letters, the last one with the usage."""
        (choice,) = completion["choices"]
        text = choice["message"]["content"]
        logprobs = (choice["logprobs"] or {}).get("content")
        for start in range(0, len(text), PIECE):
            delta: dict[str, Any] = {"index": 0, "delta": {"content": text[start : start + PIECE]}}
            if logprobs:
                delta["logprobs"] = {"content": logprobs[start : start + PIECE]}
            yield b"data: " + json.dumps({"choices": [delta]}).encode() + b"\n\n"
        end = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
        last = {"choices": [end], "usage": completion["usage"]}
        yield b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n"

    def _answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        does = self.behaviour
        (image_part,) = (
            part for part in body["messages"][0]["content"] if part["type"] == "image_url"
        )
        data = base64.b64decode(image_part["image_url"]["url"].partition(",")[2])
        picture = Image.open(BytesIO(data)).convert("RGB")
        self.pictures.append(picture)
        if picture.width * picture.height > does.most_accepted_pixels:
            return 400, {"error": {"message": "the picture has too many tokens"}}
        text = does.reply if does.reply is not None else self._listing(picture, _words(body))
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
        if does.schema == "kept" and "properties" in schema:
            text = json.dumps({key: one["enum"][-1] for key, one in schema["properties"].items()})
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": does.finish_reason,
            "logprobs": None,
        }
        if body.get("logprobs") and does.logprobs == "given":
            choice["logprobs"] = {"content": [_token(letter) for letter in text]}
        usage = {"prompt_tokens": 1234, "completion_tokens": len(text), "total_tokens": 0}
        return 200, {"object": "chat.completion", "choices": [choice], "usage": usage}

    def _listing(self, picture: Image.Image, prompt: str) -> str:
        """List the squares, as hazards when they are asked for, else by their colours."""
        does = self.behaviour
        seen = smart_resize(
            picture.height,
            picture.width,
            factor=does.factor,
            min_pixels=3136,
            max_pixels=does.max_pixels,
        )[::-1]
        items = []
        for colour, rgb in COLOURS.items():
            distance = ImageChops.difference(picture, Image.new("RGB", picture.size, rgb))
            corners = distance.convert("L").point(IS_NEAR).getbbox()
            if corners is None:
                continue
            box = to_model_box(
                tuple(map(float, corners)),
                notation=does.notation,
                seen_wh=picture.size if "sent" in does.notation else seen,
                photo_wh=picture.size,
            )
            item: dict[str, Any] = {"bbox_2d": list(box), "label": colour}
            if "sub_label" in prompt:
                words = HAZARDS[colour][:2] if "火灾" in prompt else HAZARDS[colour][2:]
                item["label"], item["sub_label"] = words
            items.append(item)
        return does.form.replace("{}", json.dumps(items, ensure_ascii=False))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._reply({})

            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                with endpoint._lock:
                    endpoint._now += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint._now)
                time.sleep(endpoint.behaviour.delay_s)
                body = json.loads(self.rfile.read(size))
                with endpoint._lock:
                    endpoint._now -= 1
                self._reply(body)

            def _reply(self, body: dict[str, Any]) -> None:
                does = endpoint.behaviour
                status, data = endpoint.respond(self.path, self.headers["Authorization"], body)
                if status == 200 and body.get("stream") and does.stream == "pieces":
                    self._stream(data)
                    return
                raw = does.body if does.body is not None else json.dumps(data).encode()
                if does.drops_connection:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header(
                    "Content-Type", "application/json" if not does.body else "text/html"
                )
                self.send_header("Content-Length", str(len(raw)))
                if status in {429, 503} and does.retry_after is not None:
                    self.send_header("Retry-After", does.retry_after)
                if status in {301, 302, 307, 308}:
                    self.send_header("Location", "http://elsewhere.example/v1")
                self.end_headers()
                self.wfile.write(raw)

            def _stream(self, completion: dict[str, Any]) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                self.close_connection = True
                try:
                    for piece in endpoint.pieces(completion):
                        self.wfile.write(piece)
                        endpoint.pieces_sent += 1
                        time.sleep(endpoint.behaviour.piece_s)
                except (BrokenPipeError, ConnectionResetError):
                    return

            def log_message(self, format: str, *args: object) -> None:
                """Keep the tests' output clean."""

        return Handler


def _words(body: dict[str, Any]) -> str:
    return "".join(part.get("text", "") for part in body["messages"][0]["content"])


def _token(letter: str) -> dict[str, Any]:
    top = [{"token": letter, "logprob": -0.25, "bytes": list(letter.encode())}]
    return {**top[0], "top_logprobs": [*top, {"token": "?", "logprob": -2.0, "bytes": [63]}]}


@pytest.fixture
def start_endpoint() -> Iterator[Callable[..., SimulatedEndpoint]]:
    """Start endpoints with the given behaviour; they end with the test."""
    running: list[SimulatedEndpoint] = []

    def start(**behaviour: Any) -> SimulatedEndpoint:
        running.append(SimulatedEndpoint(Behaviour(**behaviour)))
        return running[-1]

    yield start
    for endpoint in running:
        endpoint.close()
