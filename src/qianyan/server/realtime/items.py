"""A conversation as items: what was said on both sides, in order, for clients and for the model.

An item is one message. The model is given the sounds and pictures of the user, and of its own
answers the text. What is too old for the model, or for memory, is forgotten from the oldest on.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qianyan.inputs.media import MediaLimits
from qianyan.server.errors import RefusedError
from qianyan.server.realtime.session_settings import check_text
from qianyan.server.settings import RealtimeLimits

Role = Literal["system", "user", "assistant"]
Kind = Literal["text", "audio", "image"]
FIRST = "root"
"""The `previous_item_id` that puts an item before all others."""
MAX_PARTS = 64


@dataclass(kw_only=True)
class Part:
    """One piece of an item; `told` is what the model gets of it, `seconds` how long it sounds.

    `text` is that of a text, or what an answer says in sound; None where nobody knows it.
    """

    kind: Kind
    text: str | None = None
    told: dict[str, Any] | None = None
    seconds: float = 0.0


@dataclass(kw_only=True)
class Item:
    """One message."""

    role: Role
    parts: list[Part]
    item_id: str = field(default_factory=lambda: f"item_{uuid.uuid4().hex}")
    status: Literal["in_progress", "completed", "incomplete"] = "completed"

    def to_message(self) -> dict[str, Any] | None:
        """Write the message that the model reads; None for one without anything in it."""
        if self.role != "user":
            text = "".join(part.text or "" for part in self.parts)
            return {"role": self.role, "content": text} if text else None
        told = [part.told for part in self.parts if part.told is not None]
        return {"role": self.role, "content": told} if told else None


MakeSound = Callable[[str], Part]
"""Makes a part of base64 samples."""


def read_item(data: dict[str, Any], limits: RealtimeLimits, make_sound: MakeSound) -> Item:
    """Read an item that a client sends; raises RefusedError, and MediaError for its sounds."""
    if data.get("type") != "message":
        raise _refused("item.type", "is no message; expected one of type message")
    role = data.get("role")
    if role not in ("system", "user", "assistant"):
        raise _refused("item.role", "is none; expected system, user or assistant")
    content = data.get("content")
    if not isinstance(content, list) or not 0 < len(content) <= MAX_PARTS:
        raise _refused("item.content", f"is no list of 1 to {MAX_PARTS} parts")
    read = _read_of_user if role == "user" else _read_text
    parts = [
        read(part if isinstance(part, dict) else {}, f"item.content[{at}]", limits, make_sound)
        for at, part in enumerate(content)
    ]
    item_id = data.get("id")
    if item_id is None:
        return Item(role=role, parts=parts)
    if not isinstance(item_id, str) or not 0 < len(item_id) <= 64:
        raise _refused("item.id", "is no text of 1 to 64 characters")
    return Item(role=role, parts=parts, item_id=item_id)


def _read_text(
    part: dict[str, Any], where: str, limits: RealtimeLimits, _make_sound: MakeSound
) -> Part:
    """Read a part of a message that is text, or whose text alone the model reads."""
    kind = part.get("type")
    spoken = kind in ("audio", "output_audio")
    if not spoken and kind not in ("input_text", "text", "output_text"):
        raise _refused(f"{where}.type", "is not known here; expected a text")
    text = part.get("transcript" if spoken else "text")
    if not isinstance(text, str):
        raise _refused(where, f"has no {'transcript' if spoken else 'text'}")
    check_text(text, where, limits.max_text_characters)
    return Part(kind="audio" if spoken else "text", text=text, told={"type": "text", "text": text})


def _read_of_user(
    part: dict[str, Any], where: str, limits: RealtimeLimits, make_sound: MakeSound
) -> Part:
    kind = part.get("type")
    if kind == "input_audio":
        if not isinstance(part.get("audio"), str):
            raise _refused(where, "has no audio; expected base64 of its samples")
        return make_sound(part["audio"])
    if kind != "input_image":
        return _read_text(part, where, limits, make_sound)
    url = part.get("image_url")
    if not isinstance(url, str) or not url.startswith("data:"):
        raise _refused(where, "has no image_url with a data: URI")
    return Part(kind="image", told={"type": "image_url", "image_url": {"url": url}})


class Conversation:
    """The items of a session, oldest first."""

    def __init__(self, limits: RealtimeLimits, media: MediaLimits) -> None:
        self.items: list[Item] = []
        self._limits, self._media = limits, media

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Put an item behind another one, by default the last; give that one's id.

        Raises RefusedError for an id that is there already, or one to follow that is not.
        """
        if any(one.item_id == item.item_id for one in self.items):
            raise _refused("item.id", "is that of another item; expected one of its own")
        at = len(self.items)
        if after == FIRST:
            at = 0
        elif after is not None:
            at = self.items.index(self.find(after)) + 1
        self.items.insert(at, item)
        return self.items[at - 1].item_id if at else None

    def find(self, item_id: str) -> Item:
        """Find an item; raises RefusedError where there is none."""
        for item in self.items:
            if item.item_id == item_id:
                return item
        raise RefusedError(
            "There is no item with this id in the conversation; the oldest are forgotten.",
            status=404,
            code="item_not_found",
            param="item_id",
        )

    def delete(self, item_id: str) -> None:
        """Take an item out; raises RefusedError."""
        self.items.remove(self.find(item_id))

    def truncate(self, item_id: str, content_index: int, audio_end_ms: int) -> None:
        """Keep of an answer what was heard of it; raises RefusedError.

        Where the sound stands in the text nobody knows: the text is cut in proportion.
        """
        item = self.find(item_id)
        if item.role != "assistant" or item.status == "in_progress":
            raise _refused("item_id", "is not that of an answer that is over")
        if content_index >= len(item.parts) or item.parts[content_index].kind != "audio":
            raise _refused("content_index", "is not that of a sound")
        part = item.parts[content_index]
        if audio_end_ms > round(part.seconds * 1000):
            raise _refused("audio_end_ms", f"is beyond the {round(part.seconds * 1000)} ms of it")
        text, share = part.text or "", audio_end_ms / 1000 / part.seconds if part.seconds else 0.0
        part.text, part.seconds = text[: round(len(text) * share)], audio_end_ms / 1000

    def messages(self, instructions: str, items: Sequence[Item] | None = None) -> list[Any]:
        """Write what the model reads."""
        told = [item.to_message() for item in (self.items if items is None else items)]
        system = [{"role": "system", "content": instructions}] if instructions else []
        return [*system, *(one for one in told if one is not None)]

    def forget(self) -> list[str]:
        """Drop the oldest items beyond the limits; give their ids."""
        dropped = []
        while len(self.items) > 1 and self._is_too_much():
            dropped.append(self.items.pop(0).item_id)
        return dropped

    def forget_oldest(self) -> list[str]:
        """Drop a quarter of the items, at least a turn with its answer; none of the last turn.

        So a long conversation does not have to be read anew at each of its turns.
        """
        last = max((at for at, one in enumerate(self.items) if one.role == "user"), default=0)
        count = min(max(len(self.items) // 4, 2), last)
        dropped, self.items = self.items[:count], self.items[count:]
        return [item.item_id for item in dropped]

    def _is_too_much(self) -> bool:
        parts = [part for item in self.items if item.role == "user" for part in item.parts]
        told = [part.told for part in parts if part.told is not None]
        kinds = [one["type"] for one in told]
        num_videos = kinds.count("video")
        num_frames = sum(len(one["video"]) for one in told if one["type"] == "video")
        urls = [one["image_url"]["url"] for one in told if one["type"] == "image_url"]
        return (
            len(self.items) > self._limits.max_items
            or sum(part.seconds for part in parts) > self._limits.max_heard_s
            or kinds.count("audio") + num_videos > self._media.max_audios
            or num_videos > self._media.max_videos
            or num_frames > self._limits.max_seen_frames
            or len(urls) > self._media.max_images
            or sum(map(len, urls)) > self._limits.max_picture_bytes
        )


def _refused(where: str, what: str) -> RefusedError:
    return RefusedError(f"{where} {what}.", status=400, code="invalid_value", param=where)
