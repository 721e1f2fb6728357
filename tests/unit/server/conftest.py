"""The bundled judge, loaded once, and servers around it on a real port."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI

from qianyan.engine.engine import Engine
from qianyan.server.app import create_app
from qianyan.server.search_providers import SearchSettings
from qianyan.server.settings import KeepingLimits, ServerLimits, ServerSettings
from qianyan.server.upstream_settings import UpstreamSettings
from qianyan.server.wire import listen_config

KEY = "sk-test-0123456789"
OTHER_KEY = "sk-test-9876543210"
USUAL_KEEPING = KeepingLimits()


class ServedClient(httpx2.Client):
    """A client over TCP, with the app behind it at hand."""

    app: FastAPI


Served = Callable[..., AbstractContextManager[ServedClient]]


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The smallest model that sees pictures and is there without network."""
    return Engine("bundled", dtype="float32")


@contextmanager
def listening(app: FastAPI, settings: ServerSettings) -> Iterator[str]:
    """Serve an app over TCP as the command does; give its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(listen_config(app, settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def serve(engine: Engine) -> Served:
    """Make a server with the given limits, two keys, and a client that has the first one.

    Its model is the bundled one unless another is given.
    """

    @contextmanager
    def run(
        *,
        api_keys: tuple[str, ...] = (KEY, OTHER_KEY),
        state_folder: Path | None = None,
        model: Engine | None = None,
        search: SearchSettings | None = None,
        upstreams: tuple[UpstreamSettings, ...] = (),
        keeping: KeepingLimits = USUAL_KEEPING,
        **limits: Any,
    ) -> Iterator[httpx2.Client]:
        settings = ServerSettings(
            model_names=("judge", "qwen-plus"),
            api_keys=api_keys,
            limits=ServerLimits(**{"drain_s": 5, **limits}),
            state_folder=state_folder,
            search=search,
            upstreams=upstreams,
            keeping=keeping,
        )
        headers = {"authorization": f"Bearer {KEY}"} if api_keys else {}
        app = create_app(settings, model or engine)
        with (
            listening(app, settings) as address,
            ServedClient(base_url=address, headers=headers, timeout=60) as client,
        ):
            client.app = app
            yield client

    return run


@pytest.fixture(scope="session")
def client(serve: Served) -> Iterator[ServedClient]:
    """A client of one server for all tests that do not change it."""
    with serve() as one:
        yield one
