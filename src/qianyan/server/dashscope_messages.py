"""Conversations as DashScope's clients send them, made into OpenAI's chat messages.

A content part there has no type: its one key names what it holds ({"image": …}, {"text": …}), and
hints such as `fps` stand beside it. Parts that state a type are OpenAI's already. What parts hold
is checked where OpenAI's are (`openai_messages.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qianyan.errors import InputError

_KINDS = ("text", "image", "video", "audio", "file", "doc_url")


def to_openai_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give every content part the type that OpenAI's have."""
    return [_message(message, f"messages[{at}]") for at, message in enumerate(messages)]


def history_messages(history: Sequence[Mapping[str, str]], prompt: str) -> list[dict[str, Any]]:
    """Make a conversation of `history`, the older form, and the prompt that follows it."""
    messages: list[dict[str, Any]] = []
    for at, turn in enumerate(history):
        if set(turn) != {"user", "bot"}:
            raise InputError(f"history[{at}] is no turn; expected an object with user and bot.")
        messages.append({"role": "user", "content": turn["user"]})
        messages.append({"role": "assistant", "content": turn["bot"]})
    return [*messages, {"role": "user", "content": prompt}]


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    parts = [_part(part, f"{where}.content[{at}]") for at, part in enumerate(content)]
    # Answers that call functions are sent back with an empty list for their content.
    return {**message, "content": parts or None}


def _part(part: Any, where: str) -> Any:
    """Give a part its type; one that is no object is refused with the other kinds."""
    if not isinstance(part, Mapping):
        return part
    kind = part.get("type")
    if isinstance(kind, str) and kind in part:
        return part
    held = [one for one in _KINDS if part.get(one) is not None]
    if len(held) != 1:
        holds = "nothing that is known here" if not held else f"both {held[0]} and {held[1]}"
        raise InputError(f"{where} holds {holds}; expected one of {', '.join(_KINDS)}.")
    return {**part, "type": held[0]}
