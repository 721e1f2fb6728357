"""One answer of the model as its client is told of it: the events, from the first to the last."""

import base64
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from qianyan.server.errors import Failure
from qianyan.server.realtime.forms import Form
from qianyan.server.realtime.items import Conversation, Item, Part
from qianyan.server.realtime.session_settings import SPOKEN_RATE_HZ, SessionSettings

SAMPLE_BYTES = 2


class Emit(Protocol):
    """Sends an event to the client."""

    def __call__(self, name: str, /, **fields: Any) -> None:
        """Send it, under its name in OpenAI's present form."""


@dataclass(frozen=True, kw_only=True)
class AskedResponse:
    """What is asked for; `items` None: an answer to the conversation, of which it becomes part."""

    settings: SessionSettings
    items: Sequence[Item] | None = None
    is_kept: bool = True
    metadata: dict[str, str] | None = None


@dataclass(kw_only=True)
class Response:
    """An answer as its client is told of it."""

    form: Form
    emit: Emit
    asked: AskedResponse
    conversation: Conversation
    conversation_id: str
    item: Item = field(
        default_factory=lambda: Item(role="assistant", parts=[], status="in_progress")
    )
    response_id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    status: str = "in_progress"
    status_details: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    has_item: bool = False
    _before: str | None = None

    def begin(self) -> None:
        """Tell that it has begun."""
        self.emit("response.created", response=self._whole())

    def begin_item(self) -> None:
        """Tell of the message that it will be."""
        kind: Literal["audio", "text"] = "audio" if self.asked.settings.is_spoken else "text"
        self.has_item = True
        self.emit(
            "response.output_item.added",
            response_id=self.response_id,
            output_index=0,
            item=self.form.item(self.item),
        )
        self._before = self.conversation.add(self.item) if self.asked.is_kept else None
        self._tell_item("conversation.item.added")
        self.item.parts.append(Part(kind=kind, text=""))
        self._tell("response.content_part.added", part=self.form.part(self._part))

    def add_text(self, text: str) -> None:
        """Tell more of its text."""
        self._part.text = (self._part.text or "") + text
        self._tell(f"response.{self._text_name}.delta", delta=text)

    def add_sound(self, pcm: bytes) -> None:
        """Tell more of its sound."""
        self._part.seconds += len(pcm) / SAMPLE_BYTES / SPOKEN_RATE_HZ
        self._tell("response.output_audio.delta", delta=base64.b64encode(pcm).decode())

    def end(
        self, status: Literal["completed", "incomplete", "cancelled"], reason: str = ""
    ) -> None:
        """Tell that it is over."""
        self.status = status
        if reason:
            self.status_details = {"type": status, "reason": reason}
        self._end()

    def fail(self, failure: Failure) -> None:
        """Tell that it has failed."""
        self.status = "failed"
        error = {"type": failure.type, "code": failure.code, "message": failure.message}
        self.status_details = {"type": "failed", "error": error}
        self._end()

    def _end(self) -> None:
        if self.has_item:
            self.item.status = "completed" if self.status == "completed" else "incomplete"
            part = self._part
            if part.kind == "audio":
                self._tell("response.output_audio.done")
            name = "transcript" if part.kind == "audio" else "text"
            self._tell(f"response.{self._text_name}.done", **{name: part.text})
            self._tell("response.content_part.done", part=self.form.part(part))
            self._tell_item("conversation.item.done")
            self.emit(
                "response.output_item.done",
                response_id=self.response_id,
                output_index=0,
                item=self.form.item(self.item),
            )
        self.emit("response.done", response=self._whole())

    @property
    def _part(self) -> Part:
        return self.item.parts[0]

    @property
    def _text_name(self) -> str:
        return "output_audio_transcript" if self._part.kind == "audio" else "output_text"

    def _tell(self, name: str, **fields: Any) -> None:
        """Send an event about the one part of the one item."""
        place = {"item_id": self.item.item_id, "output_index": 0, "content_index": 0}
        self.emit(name, response_id=self.response_id, **place, **fields)

    def _tell_item(self, name: str) -> None:
        if self.asked.is_kept:
            self.emit(name, previous_item_id=self._before, item=self.form.item(self.item))

    def _whole(self) -> dict[str, Any]:
        settings = self.asked.settings
        return {
            "object": "realtime.response",
            "id": self.response_id,
            "status": self.status,
            "status_details": self.status_details,
            "output": [self.form.item(self.item)] if self.has_item else [],
            "conversation_id": self.conversation_id if self.asked.is_kept else None,
            **self.form.modalities(is_spoken=settings.is_spoken, voice=settings.voice),
            "max_output_tokens": settings.options.get("max_tokens") or "inf",
            "metadata": self.asked.metadata,
            "usage": self.usage,
        }
