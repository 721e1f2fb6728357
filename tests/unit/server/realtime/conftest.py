"""A small Omni behind a real port, and a client of its sockets."""

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from tests.omni_checkpoint import write_omni_checkpoint
from tests.voiced import RATE_HZ, to_pcm
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from qianyan.engine.engine import Engine
from qianyan.server.app import create_app
from qianyan.server.settings import RealtimeLimits, ServerLimits, ServerSettings
from qianyan.server.wire import listen_config

KEY, OTHER_KEY = "sk-test-0123456789", "sk-test-9876543210"
BAILIAN, OPENAI = "/api-ws/v1/realtime", "/v1/realtime"
BRIEF: dict[str, Any] = {
    "instructions": "",
    "turn_detection": None,
    "max_response_output_tokens": 10,
    "temperature": 0,
    "seed": 3,
}
"""Settings under which the small model says little, and that fits its voice."""
PIECE_S = 0.1


class Talker:
    """One socket, from its first event on."""

    def __init__(self, wire: ClientConnection) -> None:
        self.wire = wire
        self.created = self.next()

    def send(self, kind: str, **fields: Any) -> None:
        """Send an event."""
        self.wire.send(json.dumps({"type": kind, **fields}))

    def say(self, samples: np.ndarray, rate_hz: int = RATE_HZ) -> None:
        """Send sound in pieces of a tenth of a second."""
        step = int(PIECE_S * rate_hz)
        for start in range(0, len(samples), step):
            data = base64.b64encode(to_pcm(samples[start : start + step])).decode()
            self.send("input_audio_buffer.append", audio=data)

    def next(self) -> dict[str, Any]:
        """Wait for the next event."""
        event: dict[str, Any] = json.loads(self.wire.recv(timeout=60))
        return event

    def until(self, kind: str) -> list[dict[str, Any]]:
        """Collect events up to one of a kind."""
        events = [self.next()]
        while events[-1]["type"] != kind:
            events.append(self.next())
        return events

    def update(self, **session: Any) -> dict[str, Any]:
        """Change settings; give the session."""
        self.send("session.update", session=session)
        event = self.next()
        assert event["type"] == "session.updated", event
        changed: dict[str, Any] = event["session"]
        return changed

    def refused(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send what is refused; give the error, and see that the socket lives on."""
        self.send(kind, event_id="mine", **fields)
        event = self.next()
        assert event["type"] == "error", event
        assert event["error"]["event_id"] == "mine"
        error: dict[str, Any] = event["error"]
        return error

    def closed(self) -> tuple[int, str]:
        """Wait for the close; give its code and reason."""
        with suppress(ConnectionClosed):
            while True:
                self.wire.recv(timeout=60)
        return self.wire.close_code or 0, self.wire.close_reason or ""


Open = Callable[..., AbstractContextManager[Talker]]


class Served:
    """A server with a model that speaks."""

    def __init__(self, address: str, app: FastAPI) -> None:
        self.address, self.app = address, app

    @contextmanager
    def talk(
        self,
        path: str = BAILIAN,
        *,
        model: str = "omni",
        key: str | None = KEY,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> Iterator[Talker]:
        """Open a socket."""
        given = {**({"authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
        url = f"{self.address}{path}?model={model}"
        with connect(url, additional_headers=given, max_size=None, **options) as wire:
            yield Talker(wire)


@contextmanager
def serving(
    model: Engine, *, keys: tuple[str, ...] = (KEY, OTHER_KEY), **limits: Any
) -> Iterator[Served]:
    """Serve a model over TCP as the command does."""
    names = {name: limits.pop(name) for name in list(limits) if hasattr(RealtimeLimits, name)}
    settings = ServerSettings(
        model_names=("omni",),
        api_keys=keys,
        limits=ServerLimits(**{"drain_s": 5, **limits}),
        realtime=RealtimeLimits(**names),
    )
    app = create_app(settings, model)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(listen_config(app, settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Served(f"ws://127.0.0.1:{listener.getsockname()[1]}", app)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def omni(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A model that hears, sees and speaks, with little room for speech: it ends by that alone."""
    folder = write_omni_checkpoint(tmp_path_factory.mktemp("omni"), talker_positions=150)
    return Engine(folder, dtype="float32")


@pytest.fixture(scope="session")
def serve(omni: Engine) -> Callable[..., AbstractContextManager[Served]]:
    """Make a server with the given limits."""

    def run(model: Engine | None = None, **limits: Any) -> AbstractContextManager[Served]:
        return serving(model or omni, **limits)

    return run


@pytest.fixture(scope="session")
def served(omni: Engine) -> Iterator[Served]:
    """One server for all tests that do not change it."""
    with serving(omni) as one:
        yield one
