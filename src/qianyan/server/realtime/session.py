"""One conversation over a socket: each event of the client, in order, and what follows from it.

Events are handled one after the other; what takes time of the processor (decoding, listening) is
done on threads. Answers are tasks beside them, one at a time.
"""

import asyncio
import uuid
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from qianyan.errors import QianyanError
from qianyan.inputs.images import read_image
from qianyan.inputs.messages import refuse_placeholders
from qianyan.inputs.turn import Turn
from qianyan.server.errors import RefusedError, to_failure
from qianyan.server.realtime.answering import Answering, Asker
from qianyan.server.realtime.client_events import (
    AppendFrame,
    AppendSound,
    CancelResponse,
    ClearBuffer,
    ClientEvent,
    CommitBuffer,
    CreateItem,
    CreateResponse,
    DeleteItem,
    FinishSession,
    ResponseFields,
    RetrieveItem,
    TruncateItem,
    UnreadableEventError,
    UpdateSession,
    decode_base64,
    read_event,
)
from qianyan.server.realtime.ear import Began, Ear, Ended, check_size, to_samples
from qianyan.server.realtime.ending import FINISHED, End
from qianyan.server.realtime.forms import Form, SessionFacts
from qianyan.server.realtime.items import Conversation, Item, Part, read_item
from qianyan.server.realtime.prefilling import Prefilling
from qianyan.server.realtime.queues import Inbox, Outbox
from qianyan.server.realtime.responses import AskedResponse, Response
from qianyan.server.realtime.session_settings import (
    Abilities,
    SessionSettings,
    change_answer,
    change_session,
)
from qianyan.server.settings import RealtimeLimits
from qianyan.server.stream import to_json

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a session is given."""

    form: Form
    facts: SessionFacts
    able: Abilities
    asker: Asker
    limits: RealtimeLimits
    threads: Executor


class Session:
    """One conversation; used on one event loop only."""

    def __init__(
        self, given: Surroundings, settings: SessionSettings, ear: Ear, outbox: Outbox
    ) -> None:
        self._given, self._ear, self._outbox = given, ear, outbox
        self._processor = given.asker.worker.engine.processor
        self._settings = settings
        self._conversation = Conversation(given.limits, self._processor.limits)
        self._conversation_id = f"conv_{uuid.uuid4().hex}"
        self._answering: Answering | None = None
        self._prefilling = Prefilling(given.asker.worker)
        self._ear.detect(settings.detection)

    @property
    def is_answering(self) -> bool:
        """Whether an answer is on its way."""
        return self._answering is not None and not self._answering.is_over

    async def run(self, inbox: Inbox) -> End:
        """Handle the client's events until it says that it has finished."""
        form = self._given.form
        self._emit("session.created", session=form.session(self._given.facts, self._settings))
        while True:
            text = await inbox.get()
            event: ClientEvent | None = None
            try:
                event = read_event(text, max_values=self._given.limits.max_event_values)
                if isinstance(event, FinishSession):
                    await self._finish()
                    return FINISHED
                await self._handle(event)
            except UnreadableEventError as error:
                self._tell_error(error, error.event_id)
            except QianyanError as error:
                self._tell_error(error, None if event is None else event.event_id)

    async def leave(self) -> None:
        """Stop what is on its way; nothing more is told."""
        self._prefilling.stop()
        if self._answering is not None:
            await self._answering.abandon()

    async def _handle(self, event: ClientEvent) -> None:
        """Do what an event says; raises what it cannot do."""
        if isinstance(event, AppendSound):
            await self._hear(decode_base64(event.audio, "audio"))
        elif isinstance(event, AppendFrame):
            picture = decode_base64(event.image.partition("base64,")[2] or event.image, "image")
            await self._on_thread(partial(self._ear.see, picture))
        elif isinstance(event, CommitBuffer):
            self._take_turn(await self._on_thread(self._ear.commit))
        elif isinstance(event, ClearBuffer):
            self._prefilling.stop()
            await self._on_thread(self._ear.clear)
            self._emit("input_audio_buffer.cleared")
        elif isinstance(event, CreateResponse):
            await self._create_response(event.response)
        elif isinstance(event, CancelResponse):
            await self._cancel()
        elif isinstance(event, UpdateSession):
            self._update(event)
        else:
            await self._handle_item(event)

    async def _handle_item(self, event: ClientEvent) -> None:
        conversation, form = self._conversation, self._given.form
        if isinstance(event, CreateItem):
            item = await self._on_thread(partial(self._read_item, event.item))
            self._add(item, event.previous_item_id)
        elif isinstance(event, DeleteItem):
            conversation.delete(event.item_id)
            self._emit("conversation.item.deleted", item_id=event.item_id)
        elif isinstance(event, RetrieveItem):
            found = conversation.find(event.item_id)
            self._emit("conversation.item.retrieved", item=form.item(found))
        elif isinstance(event, TruncateItem):
            place = event.item_id, event.content_index, event.audio_end_ms
            conversation.truncate(*place)
            self._emit(
                "conversation.item.truncated",
                **dict(zip(("item_id", "content_index", "audio_end_ms"), place, strict=True)),
            )

    def _update(self, event: UpdateSession) -> None:
        changed = change_session(self._settings, event.session, self._given.able)
        refuse_placeholders(changed.instructions, self._processor.pads.words)
        self._settings = changed
        self._ear.detect(self._settings.detection)
        session = self._given.form.session(self._given.facts, self._settings)
        self._emit("session.updated", session=session)

    async def _hear(self, pcm: bytes) -> None:
        hear = partial(self._ear.hear, pcm, self._settings.input_rate_hz)
        for change in await self._on_thread(hear):
            if isinstance(change, Began):
                await self._note_speech(change)
            else:
                await self._note_silence(change)
        await self._prefill()

    async def _note_speech(self, began: Began) -> None:
        self._emit(
            "input_audio_buffer.speech_started",
            audio_start_ms=began.at_ms,
            item_id=began.item_id,
        )
        detection = self._settings.detection
        if detection is not None and detection.interrupt_response and self._answering is not None:
            await self._answering.interrupt("turn_detected")

    async def _note_silence(self, turn: Ended) -> None:
        self._emit(
            "input_audio_buffer.speech_stopped", audio_end_ms=turn.at_ms, item_id=turn.item_id
        )
        self._take_turn(turn)
        detection = self._settings.detection
        if detection is not None and detection.create_response and not self.is_answering:
            await self._create_response(None)

    async def _prefill(self) -> None:
        """Let the model begin with what is said so far; an answer on its way goes first."""
        num_blocks = self._ear.num_blocks
        if self.is_answering or not self._prefilling.wants(num_blocks):
            return
        part = await self._on_thread(self._ear.part_so_far)
        if part is not None:
            said = [{"role": "user", "content": [part]}]
            messages = self._conversation.messages(self._settings.instructions) + said
            self._prefilling.begin(messages, self._settings.options, num_blocks)

    def _take_turn(self, turn: Ended) -> None:
        """Make an item of what the user has said."""
        self._prefilling.stop()
        before = self._conversation.items[-1].item_id if self._conversation.items else None
        self._emit("input_audio_buffer.committed", item_id=turn.item_id, previous_item_id=before)
        part = Part(kind="audio", told=turn.told, seconds=turn.seconds)
        self._add(Item(role="user", parts=[part], item_id=turn.item_id), None)

    def _add(self, item: Item, after: str | None) -> None:
        before = self._conversation.add(item, after)
        told = self._given.form.item(item)
        self._emit("conversation.item.added", previous_item_id=before, item=told)
        self._emit("conversation.item.done", previous_item_id=before, item=told)
        for item_id in self._conversation.forget():
            self._emit("conversation.item.deleted", item_id=item_id)

    def _read_item(self, data: dict[str, Any]) -> Item:
        """Read an item; what the model could not read of it is refused now, not at each answer."""
        item = read_item(data, self._given.limits, self._make_sound)
        for part in item.parts:
            refuse_placeholders(part.text, self._processor.pads.words)
            if part.kind == "image" and part.told is not None:
                url = part.told["image_url"]["url"]
                picture = decode_base64(url.partition("base64,")[2], "image_url")
                check_size(picture, self._given.limits.max_frame_bytes)
                read_image(picture, limits=self._processor.limits.image)
        return item

    def _make_sound(self, data: str) -> Part:
        """Make a part of samples that come all at once."""
        samples = to_samples(decode_base64(data, "item.content.audio"))
        turn = Turn(self._processor.sounds, limits=self._processor.limits)
        turn.add_sound(samples, self._settings.input_rate_hz)
        return Part(kind="audio", told=turn.finish(), seconds=turn.duration_s)

    async def _create_response(self, fields: ResponseFields | None) -> None:
        if self.is_answering:
            raise RefusedError(
                "Another answer is on its way; expected response.create after its response.done, "
                "or response.cancel before.",
                status=409,
                code="conversation_already_has_active_response",
            )
        asked = await self._read_response(fields)
        response = Response(
            form=self._given.form,
            emit=self._emit,
            asked=asked,
            conversation=self._conversation,
            conversation_id=self._conversation_id,
        )
        self._answering = Answering(self._given.asker, response)
        await asyncio.sleep(0)  # so that it has begun before anything can stop it

    async def _read_response(self, fields: ResponseFields | None) -> AskedResponse:
        if fields is None:
            return AskedResponse(settings=self._settings)
        settings = change_answer(self._settings, fields, self._given.able, where="response")
        if fields.conversation not in (None, "auto", "none"):
            raise RefusedError(
                "response.conversation is another one; expected auto or none.",
                status=400,
                code="invalid_value",
                param="response.conversation",
            )
        items = None
        if fields.input is not None:
            items = [await self._find_or_read(one) for one in fields.input]
        return AskedResponse(
            settings=settings,
            items=items,
            is_kept=fields.conversation != "none",
            metadata=fields.metadata,
        )

    async def _find_or_read(self, data: dict[str, Any]) -> Item:
        if data.get("type") == "item_reference":
            return self._conversation.find(str(data.get("id")))
        return await self._on_thread(partial(self._read_item, data))

    async def _cancel(self) -> None:
        if self._answering is None or self._answering.is_over:
            raise RefusedError(
                "No answer is on its way that could be cancelled.",
                status=409,
                code="response_cancel_not_active",
            )
        await self._answering.interrupt("client_cancelled")

    async def _finish(self) -> None:
        if self._answering is not None:
            await self._answering.over()
        self._emit("session.finished")
        await self._outbox.drained()

    async def _on_thread(self, work: Callable[[], Made]) -> Made:
        return await asyncio.get_running_loop().run_in_executor(self._given.threads, work)

    def _tell_error(self, error: QianyanError, event_id: str | None) -> None:
        self._outbox.put(error_event(error, event_id))

    def _emit(self, name: str, /, **fields: Any) -> None:
        called = self._given.form.event_name(name)
        if called is not None:
            self._outbox.put(write_event(called, fields))


def write_event(name: str, fields: dict[str, Any]) -> str:
    """Write an event with an id of its own."""
    return to_json({"type": name, "event_id": f"event_{uuid.uuid4().hex}", **fields})


def error_event(error: QianyanError, event_id: str | None) -> str:
    """Write what is wrong with an event, whose id is given where it had one."""
    failure = to_failure(error)
    told = {
        "type": failure.type,
        "code": failure.code,
        "message": failure.message,
        "param": failure.param,
        "event_id": event_id,
    }
    return write_event("error", {"error": told})
