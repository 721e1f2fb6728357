"""The sockets at which one speaks with the model: opened, held, and closed with a reason.

OpenAI's paths have its present events, or those of its beta where a client asks for them; Bailian's
path has Bailian's.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from qianyan.errors import QianyanError
from qianyan.server.errors import RefusedError
from qianyan.server.realtime.answering import Asker
from qianyan.server.realtime.ear import Ear
from qianyan.server.realtime.ending import FAILED, GONE, End, over, refusing
from qianyan.server.realtime.forms import Form, SessionFacts
from qianyan.server.realtime.queues import Inbox, Outbox
from qianyan.server.realtime.session import Session, Surroundings, error_event
from qianyan.server.realtime.session_settings import Abilities, SessionSettings, TurnDetection
from qianyan.server.realtime.switchboard import Switchboard
from qianyan.server.serving import Serving

logger = logging.getLogger(__name__)
openai_router = APIRouter()
bailian_router = APIRouter()
PRESENT = Form(is_beta=False, input_rate_hz=24_000)
BETA = Form(is_beta=True, input_rate_hz=24_000)
BAILIAN = Form(is_beta=True, input_rate_hz=16_000)
BAILIAN_SILENCE_MS = 800
SUBPROTOCOL, BETA_PROTOCOL = "realtime", "openai-beta.realtime-v1"
BETA_HEADER = "realtime=v1"
CLOSE_TIMEOUT_S = 5.0
USUAL_INSTRUCTIONS = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving"
    " auditory and visual inputs, as well as generating text and speech."
)
"""The words under which Qwen2.5-Omni was taught to speak (its model card)."""


@openai_router.websocket("/realtime")
async def converse(websocket: WebSocket) -> None:
    """Speak with the model by OpenAI's realtime events."""
    offered = websocket.scope.get("subprotocols", [])
    is_beta = BETA_PROTOCOL in offered or websocket.headers.get("openai-beta") == BETA_HEADER
    await _hold(websocket, BETA if is_beta else PRESENT)


@bailian_router.websocket("/api-ws/v1/realtime")
async def converse_at_bailian(websocket: WebSocket) -> None:
    """Speak with the model by the events of Bailian's Qwen-Omni-Realtime."""
    await _hold(websocket, BAILIAN)


async def _hold(websocket: WebSocket, form: Form) -> None:
    """Hold one conversation from the first event to the close."""
    offered = websocket.scope.get("subprotocols", [])
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
    board: Switchboard = websocket.app.state.switchboard
    outbox = Outbox(board.limits.max_unsent_bytes)
    with ExitStack() as held:
        try:
            held.enter_context(board.place(websocket.state.owner_id))
            session = await _begin(websocket, form, board, outbox)
        except QianyanError as error:
            refused = error if isinstance(error, RefusedError) else _broken(error)
            end = refusing(refused)
        else:
            end = await _talk(websocket, session, board, outbox)
    await _close(websocket, end)


async def _begin(websocket: WebSocket, form: Form, board: Switchboard, outbox: Outbox) -> Session:
    """Make a session; raises RefusedError for a model that does not hear, and what loading does."""
    serving: Serving = websocket.app.state.serving
    worker = serving.worker
    worker.refuse_unless_ready()
    model = websocket.query_params.get("model") or serving.settings.model_names[0]
    serving.check_model(model)
    if worker.engine.processor.sounds is None:
        raise RefusedError(
            f"The model {model[:80]} does not hear; expected one that does, such as Qwen2.5-Omni.",
            status=400,
            code="unsupported_model",
            param="model",
        )
    speech = worker.engine.speech
    voices = (await asyncio.to_thread(speech.load)).voices if speech.is_there else ()
    detector = await board.speech_model()
    able = Abilities(
        voices=voices,
        has_vad=detector is not None,
        max_text_characters=board.limits.max_text_characters,
    )
    facts = SessionFacts(
        session_id=f"sess_{uuid.uuid4().hex}",
        model=model,
        voices=voices,
        expires_at=int(time.time() + board.limits.max_session_s),
    )
    asker = Asker(
        worker=worker,
        metrics=websocket.app.state.metrics,
        owner_id=websocket.state.owner_id,
        model=model,
        route=websocket.scope["path"],
    )
    given = Surroundings(
        form=form,
        facts=facts,
        able=able,
        asker=asker,
        limits=board.limits,
        threads=board.threads,
    )
    ear = Ear(worker.engine.processor, board.limits, detector)
    return Session(given, _usual_settings(form, able), ear, outbox)


def _usual_settings(form: Form, able: Abilities) -> SessionSettings:
    detection = TurnDetection()
    if form is BAILIAN:
        detection = TurnDetection(silence_duration_ms=BAILIAN_SILENCE_MS)
    return SessionSettings(
        is_spoken=bool(able.voices),
        input_rate_hz=form.input_rate_hz,
        voice=able.usual_voice,
        instructions=USUAL_INSTRUCTIONS if able.voices else "",
        detection=detection if able.has_vad else None,
    )


async def _talk(websocket: WebSocket, session: Session, board: Switchboard, outbox: Outbox) -> End:
    """Let a session run until it is over, for whatever reason comes first."""
    inbox = Inbox(board.limits.max_unread_bytes)
    watch = _Watch(board.limits.max_session_s, board.limits.max_idle_s)
    work: list[Coroutine[Any, Any, End]] = [
        _receive(websocket, inbox, watch),
        session.run(inbox),
        _send(websocket, outbox, watch),
        watch.run(),
    ]
    tasks: list[asyncio.Future[End]] = [asyncio.ensure_future(one) for one in work]
    tasks.append(outbox.overflow)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        first = next(one for one in tasks if one in done)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await session.leave()
    error = first.exception()
    if isinstance(error, Exception):
        logger.error("conversation failed", exc_info=error)
        return End(code=FAILED, refused=_broken(error))
    return first.result()


class _Watch:
    """Ends a conversation that is too long, or in which nothing happens."""

    def __init__(self, max_session_s: float, max_idle_s: float) -> None:
        self._max_session_s, self._max_idle_s = max_session_s, max_idle_s
        self._last_at = self._began_at = time.monotonic()

    def note(self) -> None:
        """Something has happened."""
        self._last_at = time.monotonic()

    async def run(self) -> End:
        """Wait until it has to end."""
        while True:
            now = time.monotonic()
            ends_at = self._began_at + self._max_session_s
            idle_at = self._last_at + self._max_idle_s
            if now >= ends_at:
                return over("has lasted", self._max_session_s)
            if now >= idle_at:
                return over("has been silent for", self._max_idle_s)
            await asyncio.sleep(min(ends_at, idle_at) - now)


async def _receive(websocket: WebSocket, inbox: Inbox, watch: _Watch) -> End:
    """Take events of the client until it goes away."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return GONE
        watch.note()
        text = message.get("text")
        await inbox.put(
            message.get("bytes", b"").decode(errors="replace") if text is None else text
        )


async def _send(websocket: WebSocket, outbox: Outbox, watch: _Watch) -> End:
    """Send events to the client until it goes away."""
    while True:
        event = await outbox.get()
        try:
            await websocket.send_text(event)
        except WebSocketDisconnect:
            return GONE
        outbox.sent()
        watch.note()


async def _close(websocket: WebSocket, end: End) -> None:
    """Say why a conversation is over, and close; who takes nothing is cut off."""
    if end.code is None:
        return
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            if end.refused is not None:
                await websocket.send_text(error_event(end.refused, None))
            await websocket.close(end.code, end.reason)
    except (WebSocketDisconnect, TimeoutError):
        return


def _broken(error: Exception) -> RefusedError:
    """Say that the server failed; what it was stands in the log."""
    if isinstance(error, QianyanError):
        return RefusedError(str(error), status=500, code=error.code)
    return RefusedError(
        "The server failed at this conversation; its log says why, under the request's id.",
        status=500,
        code="internal_error",
    )
