"""The text of an answer as it grows: reasoning apart, cut at stop strings, tool calls taken out.

Forms are those of the released templates: reasoning stands between <think> and </think> before
the answer, or begins in the prompt (QwQ); a call is a JSON object between <tool_call> and
</tool_call> after the answer's text (Hermes). Text is held back while it may still turn out to
begin a stop string or a call, so what was shown is never taken back.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qianyan.engine.calls import CALL_END, CALL_START, CallPiece, CallReader
from qianyan.inputs.processor import THINK_END, THINK_START
from qianyan.inputs.tokenizer import Tokenizer

CLOSING = f"\n{THINK_END}\n\n"
CLOSING_WORDS = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the "
    "thinking directly now."
)
"""What ends a reasoning at its budget (Qwen3 report, arXiv 2505.09388, section 4.3)."""


class TextDecoder(Protocol):
    """Turn tokens into text one by one, holding back bytes of an unfinished character."""

    def push(self, token_id: int) -> str:
        """Take one token and return the text that is complete."""

    def finish(self) -> str:
        """Return what is left when no more tokens come."""


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A function that the model wants called; `arguments` is JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class ReplyForm:
    """How the replies of a model are divided.

    think_start: the token <think>, None where the vocabulary has none; think_end likewise.
    is_thinking: the reply begins inside the reasoning, because the prompt opened it.
    has_tools: functions were offered, so calls are looked for.
    gap: the tokens of the blank line between </think> and the answer.
    closing: the tokens that end a reasoning from outside, </think> and the blank line included;
        `empty_closing` does so where nothing was thought yet.
    """

    think_start: int | None = None
    think_end: int | None = None
    is_thinking: bool = False
    has_tools: bool = False
    gap: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()
    empty_closing: tuple[int, ...] = ()


def find_reply_form(
    tokenizer: Tokenizer, prompt_token_ids: list[int], *, is_thinking: bool, has_tools: bool
) -> ReplyForm:
    """Make the form of replies to a prompt in a checkpoint's vocabulary."""
    think_end = tokenizer.token_id(THINK_END)
    begins_line = tokenizer.decode(prompt_token_ids[-1:]).endswith("\n")
    return ReplyForm(
        think_start=tokenizer.token_id(THINK_START),
        think_end=think_end,
        is_thinking=is_thinking and think_end is not None,
        has_tools=has_tools,
        gap=tuple(tokenizer.encode("\n\n")),
        closing=tuple(tokenizer.encode(CLOSING_WORDS + CLOSING)),
        empty_closing=tuple(tokenizer.encode(CLOSING if begins_line else "\n" + CLOSING)),
    )


class Reply:
    """One answer's text, reasoning and calls.

    `text` and `reasoning` grow by what `push` and `finish` return; `is_reasoning` says to which.
    `call_pieces` are those that became certain since they were last taken; together they make up
    `tool_calls`, and the beginning of `cut_call`, one that the answer ended in.
    """

    def __init__(
        self, decoder: TextDecoder, stop: Sequence[str] = (), form: ReplyForm | None = None
    ) -> None:
        self.text = ""
        self.reasoning = ""
        self.tool_calls: tuple[ToolCall, ...] = ()
        self.cut_call: str | None = None
        self.call_pieces: list[CallPiece] = []
        self.is_stopped = False
        self.form = form or ReplyForm()
        self.is_reasoning = self.has_reasoned = self.form.is_thinking
        self._decoder = decoder
        self._stop = stop
        self._marks = (*stop, CALL_START) if self.form.has_tools else tuple(stop)
        self._held = ""
        self._calls = ""  # everything from the first call on
        self._reader: CallReader | None = None

    @property
    def is_calling(self) -> bool:
        """Whether a call has begun; all that follows belongs to calls."""
        return bool(self._calls)

    @property
    def begun_call(self) -> str:
        """What stands behind the first <tool_call>."""
        return self._calls.removeprefix(CALL_START)

    def read_calls(self) -> None:
        """Read calls while they grow: a grammar writes them, in the one layout."""
        self._reader = CallReader()
        self.call_pieces += self._reader.push(self._calls)

    def push(self, token_id: int) -> str:
        """Take one token and return the text that is now certain."""
        if self.is_reasoning:
            return self._push_reasoning(token_id)
        if token_id == self.form.think_start and not (self.text or self._held.strip()):
            self.is_reasoning = self.has_reasoned = True
            self._held = ""
            return ""
        return self._release(self._decoder.push(token_id))

    def end_reasoning(self) -> None:
        """Go over to the answer."""
        self._decoder.finish()  # half a character does not run into the answer
        self.is_reasoning, self._held = False, ""

    def finish(self, *, is_cut: bool = False) -> str:
        """Return the text still held back when the answer has ended.

        One that `is_cut` may end inside a call, which is then no text.
        """
        if self.is_stopped:
            return ""
        if self.is_reasoning:
            return self._think(self._decoder.finish())
        certain = self._release(self._decoder.finish())
        if self.is_stopped:
            return certain
        rest = self._held
        if self._calls:
            unread = self._finish_calls(is_cut=is_cut)
            rest = rest + unread if unread else ""
        self._held = ""
        self.text += rest
        return certain + rest

    def _finish_calls(self, *, is_cut: bool) -> str:
        """Read all calls; return what is none."""
        self.tool_calls, unread = parse_tool_calls(self._calls)
        begun = unread.rfind(CALL_START) if is_cut else -1
        if begun >= 0 and CALL_END not in unread[begun:]:
            self.cut_call, unread = unread[begun:], unread[:begun].rstrip()
        if self._reader is None:  # none was told yet
            for index, call in enumerate(self.tool_calls):
                self.call_pieces.append(CallPiece(index=index, name=call.name))
                self.call_pieces.append(CallPiece(index=index, arguments=call.arguments))
        return unread

    def _push_reasoning(self, token_id: int) -> str:
        if token_id == self.form.think_end:
            self.end_reasoning()
            return ""
        if token_id == self.form.think_start and not self.reasoning:
            return ""
        return self._think(self._decoder.push(token_id))

    def _think(self, piece: str) -> str:
        """Add to the reasoning without the line breaks around it."""
        held = self._held + piece
        if not self.reasoning:
            held = held.lstrip("\n")
        certain = held.rstrip("\n")
        self._held = held[len(certain) :]
        self.reasoning += certain
        return certain

    def _release(self, piece: str) -> str:
        if self._calls:
            self._calls += piece
            if self._reader is not None:
                self.call_pieces += self._reader.push(piece)
            return ""
        held = self._held + piece
        if self.has_reasoned and not self.text:  # the blank lines after </think>
            held = held.lstrip()
        at, mark = min(((held.find(m), m) for m in self._marks if m in held), default=(-1, ""))
        if at < 0:
            keep = _overlap(held, self._marks)
            if self.form.has_tools:  # blanks before a call are not the answer's
                keep += len(held[: len(held) - keep]) - len(held[: len(held) - keep].rstrip())
            certain, self._held = held[: len(held) - keep], held[len(held) - keep :]
        elif mark == CALL_START and self.form.has_tools:
            certain = held[:at].rstrip()
            self._held, self._calls = held[len(certain) : at], held[at:]
        else:
            self.is_stopped = True
            certain, self._held = held[:at], ""
        self.text += certain
        return certain


def parse_tool_calls(text: str) -> tuple[tuple[ToolCall, ...], str]:
    """Read the calls out of a reply; also give the text that is none, as it stood.

    A block that is no JSON object with a name is no call: it stays text, so that nothing is lost.
    The last block may lack its end, as when the answer was cut.
    """
    calls: list[ToolCall] = []
    rest: list[str] = []
    at = 0
    while (start := text.find(CALL_START, at)) >= 0:
        rest.append(text[at:start])
        call, at = _read_call(text, start + len(CALL_START))
        if call is None:
            rest.append(text[start:at])
        else:
            calls.append(call)
    rest.append(text[at:])
    left = "".join(rest)
    return tuple(calls), left if left.strip() else ""


def _read_call(text: str, start: int) -> tuple[ToolCall | None, int]:
    """Read one call; also give the place behind its block. A mark in its strings ends nothing."""
    first = len(text) - len(text[start:].lstrip())
    try:
        call, stop = json.JSONDecoder().raw_decode(text, first)
    except (ValueError, RecursionError):
        call, stop = None, start
    end = text.find(CALL_END, stop)
    block_end = len(text) if end < 0 else end
    at = len(text) if end < 0 else end + len(CALL_END)
    if text[stop:block_end].strip() or not isinstance(call, dict):
        return None, at
    if not isinstance(call.get("name"), str):
        return None, at
    arguments = call.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(name=call["name"], arguments=arguments), at


def _overlap(text: str, marks: Sequence[str]) -> int:
    """Count the last characters of `text` that begin one of `marks`."""
    longest = max((len(mark) - 1 for mark in marks), default=0)
    for size in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in marks):
            return size
    return 0
