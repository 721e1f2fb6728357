"""Items of the Responses API: checked once, named, and made into the messages of a chat.

An item is a message, a reasoning, a call of a function, or what that call gave. Those that one
answer was made of become one assistant's message again. Every message knows the place of the item
it was made of, so that an error about `messages[3]` can name what the client sent.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qianyan.errors import quote
from qianyan.server.errors import RefusedError

PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "web_search_call": "ws",
}
ROLES = ("user", "system", "developer", "assistant")
INPUT_PARTS = ("input_text", "input_image", "input_file", "input_video")
SPOKEN_PARTS = ("output_text", "refusal", "input_text")
THOUGHT_PARTS = ("reasoning_text", "summary_text")
_TEXT_KEYS = {
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "reasoning_text": "text",
    "summary_text": "text",
}
_HINTS = ("min_pixels", "max_pixels")
_VIDEO_HINTS = (*_HINTS, "fps", "total_pixels", "max_frames")

Item = dict[str, Any]


def refused(where: str, got: object, expected: str) -> RefusedError:
    """Say of one place what was got there and what was expected."""
    message = f"{where} is {quote(got)}; expected {expected}."
    return RefusedError(message, status=400, code="invalid_value", param=where)


def missing(where: str, expected: str) -> RefusedError:
    """Say of one place that nothing is there and what was expected."""
    message = f"{where} is missing; expected {expected}."
    return RefusedError(message, status=400, code="invalid_value", param=where)


def item_id(kind: str, response_id: str, side: str, at: int) -> str:
    """Name an item of a response; `side` is "i" for input, "o" for output."""
    return f"{PREFIXES[kind]}_{response_id.removeprefix('resp_')}{side}{at}"


def read_items(sent: Any, response_id: str) -> list[Item]:
    """Check what was sent as `input` and name its items; raises RefusedError for what is none.

    Each is as it will be shown: with an id, a status, and parts where it was sent as plain text.
    References are left for whoever knows the items they name.
    """
    if isinstance(sent, str):
        sent = [{"type": "message", "role": "user", "content": sent}]
    if not isinstance(sent, list):
        raise refused("input", sent, "text or a list of items")
    return [_read_item(item, f"input[{at}]", response_id, at) for at, item in enumerate(sent)]


def _read_item(item: Any, where: str, response_id: str, at: int) -> Item:
    if not isinstance(item, dict):
        raise refused(where, item, "an item, an object with a type")
    usual = "message" if "role" in item else "item_reference" if "id" in item else None
    kind = item.get("type") or usual
    known = ", ".join((*_READERS, "item_reference"))
    if kind is None:
        raise missing(f"{where}.type", f"one of {known}")
    if kind == "item_reference":
        return {"type": kind, "id": _text(item, "id", where)}
    if not isinstance(kind, str) or kind not in _READERS:
        raise refused(f"{where}.type", kind, f"one of {known}")
    name = item["id"] if item.get("id") else item_id(kind, response_id, "i", at)
    if not isinstance(name, str) or len(name) > 200:
        raise refused(f"{where}.id", name, "text of at most 200 characters")
    return {"id": name, "type": kind, **_READERS[kind](item, where)}


def _read_message(item: Item, where: str) -> Item:
    role = item.get("role")
    if role not in ROLES:
        raise refused(f"{where}.role", role, f"one of {', '.join(ROLES)}")
    is_spoken = role == "assistant"
    parts = _read_parts(item.get("content"), f"{where}.content", is_spoken=is_spoken)
    return {"role": role, "status": "completed", "content": parts}


def _read_call(item: Item, where: str) -> Item:
    read = {name: _text(item, name, where) for name in ("call_id", "name", "arguments")}
    if item.get("status") == "incomplete":
        return {**read, "status": "incomplete"}
    try:
        json.loads(read["arguments"])
    except (ValueError, RecursionError) as error:
        raise refused(f"{where}.arguments", read["arguments"], "JSON") from error
    return {**read, "status": "completed"}


def _read_call_output(item: Item, where: str) -> Item:
    output = item.get("output")
    if not isinstance(output, str):
        output = _read_parts(output, f"{where}.output", is_spoken=False)
    return {"call_id": _text(item, "call_id", where), "output": output, "status": "completed"}


def _read_reasoning(item: Item, where: str) -> Item:
    found = {}
    for name in ("summary", "content"):
        parts = item.get(name) or []
        if not isinstance(parts, list):
            raise refused(f"{where}.{name}", parts, "a list of parts")
        found[name] = [
            _read_part(part, f"{where}.{name}[{at}]", THOUGHT_PARTS)
            for at, part in enumerate(parts)
        ]
    return found


def _read_search(item: Item, where: str) -> Item:
    action = item.get("action")
    if not isinstance(action, dict):
        raise refused(f"{where}.action", action, "an object with a type")
    return {"action": action, "status": "completed"}


_READERS = {
    "message": _read_message,
    "function_call": _read_call,
    "function_call_output": _read_call_output,
    "reasoning": _read_reasoning,
    "web_search_call": _read_search,
}


def _read_parts(content: Any, where: str, *, is_spoken: bool) -> list[Item]:
    kind = "output_text" if is_spoken else "input_text"
    if isinstance(content, str):
        content = [{"type": kind, "text": content}]
    if not isinstance(content, list):
        raise refused(where, content, "text or a list of parts")
    known = SPOKEN_PARTS if is_spoken else (*INPUT_PARTS, "output_text")
    return [_read_part(part, f"{where}[{at}]", known) for at, part in enumerate(content)]


def _read_part(part: Any, where: str, known: Sequence[str]) -> Item:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in known:
        raise refused(f"{where}.type", kind, f"one of {', '.join(known)}")
    if kind not in _TEXT_KEYS:
        return {key: value for key, value in part.items() if value is not None}
    key = _TEXT_KEYS[kind]
    annotations: Item = {"annotations": []} if kind == "output_text" else {}
    return {"type": kind, key: _text(part, key, where), **annotations}


def _text(item: Item, name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise refused(f"{where}.{name}", value, "text")
    return value


@dataclass
class Conversation:
    """The messages that items become, and the place of the item that each was made of."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    _is_answer_open: bool = False

    def add(self, item: Item, place: str) -> None:
        """Add an item; raises RefusedError for a part that nothing can be made of."""
        kind = item["type"]
        if kind == "web_search_call":  # what was found is in the answer
            return
        if kind == "reasoning":
            thought = "".join(part["text"] for part in item["content"] or item["summary"])
            if thought:
                self._answer(place, is_new=True)["reasoning_content"] = thought
        elif kind == "function_call":
            if item["status"] == "incomplete":  # its length was cut: half of JSON
                return
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            self._answer(place).setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            content = _to_content(item["output"], f"{place}.output")
            self._append(
                {"role": "tool", "tool_call_id": item["call_id"], "content": content}, place
            )
        elif item["role"] == "assistant":
            said = self._answer(place)
            if said["content"] or said.get("tool_calls"):
                said = self._answer(place, is_new=True)
            said["content"] = _to_content(item["content"], f"{place}.content")
        else:
            content = _to_content(item["content"], f"{place}.content")
            self._append({"role": item["role"], "content": content}, place)

    @property
    def num_turns(self) -> int:
        """Count what users said, each with the answers to it."""
        return sum(message["role"] == "user" for message in self.messages)

    def without_oldest(self, num_turns: int) -> "Conversation":
        """Leave the oldest turns out; what system and developer said stays."""
        users = [at for at, message in enumerate(self.messages) if message["role"] == "user"]
        first = users[num_turns] if num_turns < len(users) else 0
        kept = [
            at
            for at, message in enumerate(self.messages)
            if at >= first or message["role"] in ("system", "developer")
        ]
        return Conversation([self.messages[at] for at in kept], [self.places[at] for at in kept])

    def _answer(self, place: str, *, is_new: bool = False) -> dict[str, Any]:
        """Find the assistant's message that is being put together, or begin one."""
        if is_new or not self._is_answer_open:
            self._append({"role": "assistant", "content": ""}, place)
            self._is_answer_open = True
        return self.messages[-1]

    def _append(self, message: dict[str, Any], place: str) -> None:
        self.messages.append(message)
        self.places.append(place)
        self._is_answer_open = False


def _to_content(content: str | list[Item], where: str) -> str | list[dict[str, Any]]:
    """Make a chat message's content of parts: text alone becomes one text."""
    if isinstance(content, str):
        return content
    if all(part["type"] in _TEXT_KEYS for part in content):
        return "".join(part[_TEXT_KEYS[part["type"]]] for part in content)
    return [_to_part(part, f"{where}[{at}]") for at, part in enumerate(content)]


def _to_part(part: Item, where: str) -> dict[str, Any]:
    kind = part["type"]
    if kind == "input_image":
        if "image_url" not in part:
            raise refused(f"{where}.image_url", None, "an http(s) URL or a data: URI")
        detail = {"detail": part["detail"]} if "detail" in part else {}
        source = {"url": _text(part, "image_url", where), **detail}
        return {"type": "image_url", "image_url": source, **_given(part, _HINTS)}
    if kind == "input_video":
        source = {"url": _text(part, "video_url", where)}
        return {"type": "video_url", "video_url": source, **_given(part, _VIDEO_HINTS)}
    if kind == "input_file":
        named = _given(part, ("filename", "file_id"))
        for key in ("file_data", "file_url"):
            if key in part:
                return {"type": "file", "file": {**named, "file_data": _text(part, key, where)}}
        if "file_id" not in part:
            raise refused(f"{where}.file_data", None, "the document in file_data or file_url")
        return {"type": "file", "file": named}
    return {"type": "text", "text": part[_TEXT_KEYS[kind]]}


def _given(part: Item, names: Sequence[str]) -> dict[str, Any]:
    return {name: part[name] for name in names if name in part}
