"""Streaming from a real HTTP server that does what servers do, good and bad."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from qianyan.errors import EndpointError
from qianyan.inspection.remote.chat_endpoint import ChatEndpoint, Patience, RefusedError

PATIENCE = Patience(timeout_s=5, attempts=3, first_wait_s=0.01, longest_wait_s=0.02)
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
Script = Callable[["Handler", int], None]


class Handler(BaseHTTPRequestHandler):
    """Runs the server's script for each request; `number` counts them from 1."""

    protocol_version = "HTTP/1.1"
    script: Script
    bodies: list[dict[str, Any]]
    gone: threading.Event

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        type(self).script(self, len(self.bodies))

    def do_GET(self) -> None:
        self.whole(200, {"data": [{"id": "other"}]})

    def whole(self, status: int, data: object, kind: str = "application/json") -> None:
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def piece(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def say(self, text: str) -> None:
        self.piece(b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode())
        self.piece(b"\n\n")

    def end(self) -> None:
        self.piece(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def serve() -> Iterator[Callable[[Script], tuple[ChatEndpoint, type[Handler]]]]:
    """Start servers that follow a script; they end with the test."""
    running: list[ThreadingHTTPServer] = []

    def start(script: Script) -> tuple[ChatEndpoint, type[Handler]]:
        scripted = {"script": staticmethod(script), "bodies": [], "gone": threading.Event()}
        handler = type("Scripted", (Handler,), scripted)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        running.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        return ChatEndpoint(url, patience=PATIENCE, concurrency=1), handler

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def speak(handler: Handler, number: int) -> None:
    handler.begin()
    for word in ("Smoke", " over", " the", " roof."):
        handler.say(word)
    handler.end()


def test_words_arrive_while_the_server_is_still_speaking(serve: Any) -> None:
    heard = threading.Event()

    def wait_for_the_listener(handler: Handler, number: int) -> None:
        handler.begin()
        handler.say("first")
        assert heard.wait(5)
        handler.say(" second")
        handler.end()

    endpoint, handler = serve(wait_for_the_listener)
    stream = endpoint.stream(BODY)
    assert next(stream).text == "first"
    heard.set()
    assert [one.text for one in stream] == [" second"]
    assert handler.bodies == [{**BODY, "stream": True}]


def test_a_request_is_repeated_until_the_answer_begins(serve: Any) -> None:
    def fail_twice(handler: Handler, number: int) -> None:
        if number == 1:
            handler.whole(503, {"error": {"message": "loading"}})
        elif number == 2:
            handler.hang_up()
        else:
            speak(handler, number)

    endpoint, handler = serve(fail_twice)
    assert "".join(one.text for one in endpoint.stream(BODY)) == "Smoke over the roof."
    assert len(handler.bodies) == 3


def test_a_begun_answer_is_not_repeated(serve: Any) -> None:
    def drop(handler: Handler, number: int) -> None:
        handler.begin()
        handler.say("Smo")
        handler.hang_up()

    endpoint, handler = serve(drop)
    stream = endpoint.stream(BODY)
    assert next(stream).text == "Smo"
    with pytest.raises(EndpointError, match="broke off the connection while answering"):
        next(stream)
    assert len(handler.bodies) == 1


def test_an_iterator_that_is_closed_frees_its_place_and_ends_the_request(serve: Any) -> None:
    def speak_for_ever(handler: Handler, number: int) -> None:
        if number == 2:
            speak(handler, number)
            return
        handler.begin()
        try:
            while True:
                handler.say("on and on ")
        except OSError:
            handler.gone.set()

    endpoint, handler = serve(speak_for_ever)
    stream = endpoint.stream(BODY)
    next(stream)
    stream.close()
    assert handler.gone.wait(5), "the server notices"
    assert next(one.text for one in endpoint.stream(BODY)) == "Smoke", "one request at a time"


def test_a_server_that_does_not_stream_is_heard_in_one_piece(serve: Any) -> None:
    def answer(handler: Handler, number: int) -> None:
        message = {"role": "assistant", "content": "Smoke.", "reasoning_content": "Grey."}
        choice = {"message": message, "finish_reason": "stop"}
        handler.whole(200, {"choices": [choice], "usage": {"completion_tokens": 3}})

    endpoint, _ = serve(answer)
    (delta,) = endpoint.stream(BODY)
    assert (delta.text, delta.reasoning, delta.completion_tokens) == ("Smoke.", "Grey.", 3)


@pytest.mark.parametrize(
    ("status", "data", "kind", "error", "sentence"),
    [
        (400, {"error": {"message": "too long"}}, "json", RefusedError, "(status 400): 'too long'"),
        (401, {}, "json", RefusedError, "wants an API key (status 401)"),
        (404, {}, "json", EndpointError, "has no model 'm'; it offers 'other'"),
        (500, {}, "json", EndpointError, "still fails after 3 attempts (status 500)"),
        (200, b"<html>Log in</html>", "html", EndpointError, "'text/html' where JSON was expected"),
        (200, {"error": {"message": "no"}}, "json", RefusedError, "answers with an error: 'no'"),
    ],
)
def test_a_refusal_is_one_sentence(
    serve: Any, status: int, data: object, kind: str, error: type[Exception], sentence: str
) -> None:
    kind = {"json": "application/json", "html": "text/html; charset=utf-8"}[kind]
    endpoint, _ = serve(lambda handler, number: handler.whole(status, data, kind))
    with pytest.raises(error) as caught:
        list(endpoint.stream(BODY))
    assert sentence in str(caught.value)


def test_nothing_at_the_address_is_one_sentence() -> None:
    endpoint = ChatEndpoint("http://127.0.0.1:1/v1", patience=PATIENCE)
    with pytest.raises(EndpointError, match=r"Nothing answers at http://127\.0\.0\.1:1/v1"):
        list(endpoint.stream(BODY))
