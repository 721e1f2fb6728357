"""The app: every router under its paths, behind one edge.

A new part of the API is one line here: its router in `OPENAI_ROUTERS` (mounted under both of
OpenAI's prefixes) or in `ROUTERS` (paths as they are), what it opens at the start and closes at the
end in `LIFESPANS`, and the body of its errors in `errors.ENVELOPES`.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from fastapi import APIRouter, FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from qianyan import __version__
from qianyan.engine.engine import Engine
from qianyan.server import (
    dashscope_files,
    dashscope_generation,
    dashscope_models,
    dashscope_tasks,
    dashscope_tokenizer,
    dashscope_uploads,
    embeddings,
    health,
    openai_audio_speech,
    openai_batches,
    openai_chat,
    openai_files,
    openai_models,
    openai_responses,
    voice_page,
)
from qianyan.server.auth import Edge
from qianyan.server.dashscope_errors import PREFIX, dashscope_body
from qianyan.server.documents import keep_documents
from qianyan.server.errors import ENVELOPES, add_handlers
from qianyan.server.metrics import Metrics
from qianyan.server.realtime import socket
from qianyan.server.realtime.switchboard import listen
from qianyan.server.searching import open_web
from qianyan.server.serving import Serving
from qianyan.server.settings import ServerSettings
from qianyan.server.upstream_chat import open_upstreams
from qianyan.server.worker import Worker
from qianyan.server.works import keep_and_work

OPENAI_PREFIXES = ("/v1", "/compatible-mode/v1")
OPENAI_ROUTERS: tuple[APIRouter, ...] = (
    openai_chat.router,
    openai_models.router,
    openai_files.router,
    openai_batches.router,
    openai_responses.router,
    openai_audio_speech.router,
    embeddings.openai_router,
    socket.openai_router,
)
ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    dashscope_generation.router,
    dashscope_tasks.router,
    dashscope_uploads.router,
    dashscope_files.router,
    dashscope_tokenizer.router,
    dashscope_models.router,
    embeddings.dashscope_router,
    socket.bailian_router,
    voice_page.router,
)
ENVELOPES[PREFIX] = dashscope_body
LIFESPANS: tuple[Callable[[FastAPI], AbstractAsyncContextManager[None]], ...] = (
    keep_documents,
    keep_and_work,
    listen,
)
"""Entered after the worker is there (`app.state.serving`), left before it is closed."""


def create_app(settings: ServerSettings, engine: Engine) -> FastAPI:
    """Serve a loaded model; routes that upload files state a larger `max_body_size` themselves."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            worker = Worker(engine, settings.limits, metrics)
            metrics.watch(health.gauges_of(worker))
            stack.push_async_callback(worker.close)
            web = open_web(settings.search, engine.processor, metrics)
            if web is not None:
                stack.callback(web.threads.close)
            upstreams = open_upstreams(settings, engine.processor.limits, metrics)
            stack.push_async_callback(upstreams.close)
            app.state.serving = Serving(
                settings=settings, worker=worker, upstreams=upstreams, web=web
            )
            for enter in LIFESPANS:
                await stack.enter_async_context(enter(app))
            yield

    metrics = Metrics(settings.limits)
    app = FastAPI(
        title="qianyan",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.metrics = metrics
    for router in OPENAI_ROUTERS:
        for prefix in OPENAI_PREFIXES:
            app.include_router(router, prefix=prefix)
    for router in ROUTERS:
        app.include_router(router)
    add_handlers(app)
    # Inside the edge, unlike FastAPI's own: whoever has no key is refused before any size is.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.limits.max_body_bytes)
    app.add_middleware(Edge, settings=settings, metrics=metrics)
    return app
