"""Chat messages from outside, checked once and rebuilt from plain values for a template.

Messages are OpenAI chat messages: content is text or a list of parts. A part is text, a picture
(`image_url` with an http(s) URL, a data: URI or, in process, a local path; `image` with a
PIL.Image), a video (`video_url`, `video`), a sound (`input_audio`, `audio_url`, `audio`) or a
document (`file`). A message outside the form is an InputError; what its pictures, videos, sounds
and documents hold is `media.py`'s matter.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qianyan.errors import InputError, quote
from qianyan.inputs.chat import ChatTemplate
from qianyan.inputs.media import Media
from qianyan.inputs.parts import AUDIO_KINDS, IMAGE_KINDS, VIDEO_KINDS, only_keys

ROLES = ("system", "user", "assistant", "tool")
_MESSAGE_KEYS = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "partial"}
)


class MessageReader:
    """Reads messages for one template; pictures, videos and documents go to `media` in order."""

    def __init__(self, template: ChatTemplate, media: Media) -> None:
        self._template = template
        self._media = media

    def read(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Check messages and rebuild them from plain values; lists of parts stay lists."""
        if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
            raise InputError("messages is empty or not a list; expected a list of chat messages.")
        plain = [
            self._message(message, f"messages[{index}]") for index, message in enumerate(messages)
        ]
        for index, message in enumerate(plain):
            if "partial" in message and (
                message["role"] != "assistant" or message is not plain[-1]
            ):
                raise InputError(
                    f"messages[{index}] is partial; expected that of the last message only, an "
                    "assistant's whose text goes on."
                )
        return plain

    def _message(self, message: Any, where: str) -> dict[str, Any]:
        checked = _check_message(message, where)
        content = message.get("content")
        if isinstance(content, list | tuple) and content:
            checked["content"] = [
                plain
                for number, part in enumerate(content)
                for plain in self._parts(part, f"{where}.content[{number}]")
            ]
        elif isinstance(content, str):
            self._media.add_text(content, f"{where}.content")
            checked["content"] = content
        elif content is None and message.get("tool_calls"):
            checked["content"] = ""
        else:
            raise InputError(f"{where} has no content; expected text or a list of parts.")
        if message.get("tool_calls"):
            checked["tool_calls"] = self._tool_calls(message["tool_calls"], where)
        return checked

    def for_template(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Join parts to one text in messages where the template wants that."""
        shown = []
        for message in messages:
            content = message["content"]
            if isinstance(content, list) and not self._keeps_parts(content):
                message = {**message, "content": _joined(content)}  # noqa: PLW2901
            shown.append(message)
        return shown

    def _keeps_parts(self, parts: list[dict[str, Any]]) -> bool:
        """Whether the template is given parts as they are, rather than their text joined."""
        return self._template.takes_parts or any(part["type"] != "text" for part in parts)

    def _parts(self, part: Any, where: str) -> list[dict[str, Any]]:
        """Check one content part; what is no text joins the media and leaves a placeholder."""
        if not isinstance(part, Mapping):
            raise InputError(f"{where} is {type(part).__name__}; expected an object with a type.")
        kind = str(part.get("type"))
        if kind == "text":
            only_keys(part, {"type", "text"}, where)
            text = _text(part.get("text"), f"{where}.text")
            self._media.add_text(text, where)
            return [{"type": "text", "text": text}]
        if kind in IMAGE_KINDS:
            self._media.add_image(part, where)
            return [{"type": "image"}]
        if kind in VIDEO_KINDS:
            self._media.add_video(part, where)
            return [{"type": "video"}]
        if kind in AUDIO_KINDS:
            self._media.add_audio(part, where)
            return [{"type": "audio"}]
        if kind == "file":
            return self._media.add_document(part, where)
        known = ", ".join(("text", *IMAGE_KINDS, *VIDEO_KINDS, *AUDIO_KINDS, "file"))
        raise InputError(f"{where} is of type {quote(kind)}; expected {known}.")

    def _tool_calls(self, calls: Any, where: str) -> list[dict[str, Any]]:
        """Check an assistant's tool calls; their arguments as the template wants them."""
        if not isinstance(calls, list | tuple):
            raise InputError(f"{where}.tool_calls is {type(calls).__name__}; expected a list.")
        plain = []
        for number, call in enumerate(calls):
            at = f"{where}.tool_calls[{number}]"
            function = call.get("function") if isinstance(call, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise InputError(f"{at} has no function with a name.")
            arguments = function.get("arguments") or {}
            if isinstance(arguments, str) and not self._template.takes_arguments_as_text:
                arguments = _parsed_arguments(arguments, at)
            named = {"name": function["name"], "arguments": arguments}
            call_id = {"id": _text(call["id"], f"{at}.id")} if call.get("id") else {}
            plain.append({"type": "function", **call_id, "function": named})
        return plain


def take_begun(messages: list[dict[str, Any]]) -> str | None:
    """Take a partial message off the end of checked messages; give its text, None without one."""
    if "partial" not in messages[-1]:
        return None
    message = messages.pop()
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if message.get("tool_calls") or any(part["type"] != "text" for part in parts):
        raise InputError("A partial message holds more than text, which alone can go on.")
    return _joined(parts)


def refuse_placeholders(value: Any, placeholders: Sequence[str]) -> None:
    """Refuse texts that spell a placeholder, which would shift every picture after it.

    Other control tokens in a text are read as such, as the checkpoints' own tools do.
    """
    if isinstance(value, str):
        for placeholder in placeholders:
            if placeholder in value:
                raise InputError(
                    f"A text contains {placeholder}, the model's own placeholder for pictures and "
                    "the like. Remove it and send pictures as image_url parts."
                )
    elif isinstance(value, Mapping):
        for key, item in value.items():
            refuse_placeholders(key, placeholders)
            refuse_placeholders(item, placeholders)
    elif isinstance(value, list | tuple):
        for item in value:
            refuse_placeholders(item, placeholders)


def _check_message(message: Any, where: str) -> dict[str, Any]:
    """Check a message's role and keys; returns it without content and tool calls."""
    if not isinstance(message, Mapping):
        raise InputError(f"{where} is {type(message).__name__}; expected an object with a role.")
    role = message.get("role")
    if role not in ROLES:
        raise InputError(f"{where} has the role {quote(role)}; expected one of {', '.join(ROLES)}.")
    # Clients send back whole replies, with null for all that a reply did not have.
    stated = {key: value for key, value in message.items() if value is not None}
    only_keys(stated, _MESSAGE_KEYS, where)
    checked: dict[str, Any] = {"role": role}
    if not isinstance(stated.get("partial", False), bool):
        raise InputError(f"{where}.partial is {quote(stated['partial'])}; expected true or false.")
    if stated.get("partial"):
        checked["partial"] = True
    for key in ("name", "tool_call_id", "reasoning_content"):
        if key in stated:
            checked[key] = _text(stated[key], f"{where}.{key}")
    return checked


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} is {type(value).__name__}; expected text.")
    return value


def _parsed_arguments(arguments: str, where: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError as error:
        raise InputError(
            f"{where}.function.arguments is not valid JSON: {quote(arguments)}."
        ) from error


def _joined(parts: list[dict[str, Any]]) -> str:
    return "".join(part["text"] for part in parts)
