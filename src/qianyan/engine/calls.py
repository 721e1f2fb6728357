"""Calls of functions in a reply as they grow: whose arguments the next characters belong to.

A call is a JSON object between <tool_call> and </tool_call> (Hermes; templates of Qwen2.5 and
later). The reader here is for calls that a grammar wrote, which have exactly one layout; what a
model wrote freely is read when it is whole (`reply.py`).
"""

import json
import re
from dataclasses import dataclass

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
HEAD = '\n{{"name": {name}, "arguments": '
"""What stands between <tool_call> and the arguments; `name` is a JSON string."""
TAIL = "}\n"
"""What stands between the arguments and </tool_call>."""
_HEAD_PATTERN = re.compile(r'\s*\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')


@dataclass(frozen=True, kw_only=True)
class CallPiece:
    """The next characters of a call's arguments.

    The first piece of each call has its `name` and no characters; later ones have no name.
    """

    index: int
    name: str | None = None
    arguments: str = ""


class CallReader:
    """Read calls of the one layout, piece by piece; `num_whole` are complete so far."""

    def __init__(self) -> None:
        self.num_whole = 0
        self._held = ""
        self._is_in_arguments = False
        self._has_arguments = False
        self._depth = 0
        self._is_in_string = self._is_escaped = False

    @property
    def is_inside(self) -> bool:
        """Whether a call has begun and is not whole yet."""
        return self._is_in_arguments or self._has_arguments or CALL_START in self._held

    def push(self, text: str) -> list[CallPiece]:
        """Take further characters, from the first <tool_call> on."""
        self._held += text
        pieces: list[CallPiece] = []
        while self._step(pieces):
            pass
        return pieces

    def _step(self, pieces: list[CallPiece]) -> bool:
        """Go on by a head, some arguments or a tail; say whether there was enough for it."""
        if self._is_in_arguments:
            return self._read_arguments(pieces)
        if self._has_arguments:
            end = self._held.find(CALL_END)
            if end < 0:
                return False
            self._held = self._held[end + len(CALL_END) :]
            self._has_arguments = False
            self.num_whole += 1
            return True
        start = self._held.find(CALL_START)
        head = _HEAD_PATTERN.match(self._held, start + len(CALL_START)) if start >= 0 else None
        if head is None:
            return False
        pieces.append(CallPiece(index=self.num_whole, name=json.loads(head[1])))
        self._held = self._held[head.end() :]
        self._is_in_arguments = True
        return True

    def _read_arguments(self, pieces: list[CallPiece]) -> bool:
        """Take characters up to the bracket that closes the arguments."""
        text = self._held
        for at, char in enumerate(text):
            if self._closes(char):
                self._held, text = text[at + 1 :], text[: at + 1]
                self._is_in_arguments, self._has_arguments = False, True
                break
        else:
            self._held = ""
        if text:
            pieces.append(CallPiece(index=self.num_whole, arguments=text))
        return self._has_arguments

    def _closes(self, char: str) -> bool:
        """Step over one character of an object; tell whether it is its last."""
        if self._is_in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif char == "\\":
                self._is_escaped = True
            elif char == '"':
                self._is_in_string = False
            return False
        if char == '"':
            self._is_in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            return self._depth == 0
        return False
