"""A conversation in memory: what was said, what is attached, commands, and the file of /save.

Knows no terminal and no model. A turn is kept only when it is settled, so that whatever goes wrong
in between leaves the conversation as it was.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from qianyan.cli.chat_words import WORDS
from qianyan.cli.options import Lang
from qianyan.errors import InputError, quote

SCHEMA = "qianyan.conversation/1"
Kind = Literal["image", "video", "audio", "file"]
Verb = Literal[
    "image", "video", "audio", "file", "detach", "system", "reset", "save", "help", "quit"
]
_OTHER_NAMES: Mapping[str, Verb] = {"?": "help", "exit": "quit", "q": "quit"}
_NEEDS = ("image", "video", "audio", "file", "save")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A line that begins with a slash; `argument` is None where nothing follows the word."""

    verb: Verb
    argument: str | None = None


def read_command(line: str) -> Command | str:
    """Tell a command from a message; a message comes back as it is to be sent.

    A path such as /etc/hosts at the beginning is a message, and so is what follows a second slash.
    Raises InputError for a command that does not exist or lacks what it needs.
    """
    text = line.strip()
    if not text.startswith("/"):
        return text
    word, _, argument = text[1:].partition(" ")
    if "/" in word:
        return text.removeprefix("/") if text.startswith("//") else text
    verb = _OTHER_NAMES.get(word.lower(), word.lower())
    if verb not in get_args(Verb):
        near = difflib.get_close_matches(verb, get_args(Verb), n=1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists the commands."
        raise InputError(
            f"{quote('/' + word)} is not a command; {hint} "
            "A message that begins with a slash is written with two."
        )
    given = _unquoted(argument.strip()) if argument.strip() else None
    if verb in _NEEDS and not given:
        raise InputError(f"/{verb} names no file; expected one after it.")
    return Command(verb=verb, argument=given)  # type: ignore[arg-type]  # one of Verb's words


def _unquoted(argument: str) -> str:
    """Take the quotes off a path that was dragged into the terminal."""
    if len(argument) > 1 and argument[0] == argument[-1] and argument[0] in "'\"":
        return argument[1:-1]
    return argument


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """A picture, video, sound or document that was read: its name, and its parts of a message.

    `photo_wh` is a picture's own width and height, `seen_wh` the size that the model sees it in.
    """

    kind: Kind
    name: str
    parts: tuple[dict[str, Any], ...]
    photo_wh: tuple[int, int] | None = None
    seen_wh: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model said: `text` without its thinking; `is_cut` when it did not come to its end."""

    text: str
    reasoning: str = ""
    is_cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question with what was attached to it, and its answer."""

    question: str
    attachments: tuple[Attachment, ...]
    answer: Answer


@dataclass(kw_only=True)
class Conversation:
    """The turns so far, the system prompt, and what is attached to the next question."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    attached: list[Attachment] = field(default_factory=list)

    def messages(self, question: str) -> list[dict[str, Any]]:
        """Write everything out as OpenAI messages, with `question` as the last one.

        Thinking goes with the answers as `reasoning_content`; templates decide what of it to show.
        Raises InputError when there is neither a question nor anything attached.
        """
        if not question.strip() and not self.attached:
            raise InputError("The message is empty; expected a question.")
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        for turn in self.turns:
            messages.append(_user_message(turn.question, turn.attachments))
            messages.append(_assistant_message(turn.answer))
        return [*messages, _user_message(question, self.attached)]

    def settle(self, question: str, answer: Answer) -> None:
        """Keep a turn that has its answer; what was attached belongs to it from now on."""
        attachments = tuple(self.attached)
        self.turns.append(Turn(question=question, attachments=attachments, answer=answer))
        self.attached.clear()

    def reset(self) -> None:
        """Forget all turns and attachments; the system prompt stays."""
        self.turns.clear()
        self.attached.clear()


def _user_message(question: str, attachments: Sequence[Attachment]) -> dict[str, Any]:
    if not attachments:
        return {"role": "user", "content": question}
    parts = [part for one in attachments for part in one.parts]
    if question:
        parts.append({"type": "text", "text": question})
    return {"role": "user", "content": parts}


def _assistant_message(answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text}
    return {**message, "reasoning_content": answer.reasoning} if answer.reasoning else message


def write_conversation(path: Path, text: str, *, may_replace: bool = False) -> None:
    """Write a saved conversation.

    Raises FileExistsError for a file that is there and may not be replaced, another OSError where
    the file cannot be written.
    """
    with path.open("w" if may_replace else "x", encoding="utf-8") as file:
        file.write(text)


def save_text(conversation: Conversation, path: Path, *, model: str, lang: Lang) -> str:
    """Write a conversation out in the form that the file's suffix asks for.

    Raises InputError for another suffix, and for a conversation without turns.
    """
    form = path.suffix.lower()
    if form not in {".json", ".md", ".markdown"}:
        raise InputError(f"The file is {quote(path.name)}; expected a name ending in .md or .json.")
    if not conversation.turns:
        raise InputError("There is nothing to save yet; ask something first.")
    if form == ".json":
        record = as_record(conversation, model=model)
        return json.dumps(record, ensure_ascii=False, indent=2) + "\n"
    return as_markdown(conversation, model=model, lang=lang)


def as_record(conversation: Conversation, *, model: str) -> dict[str, Any]:
    """Write a conversation as JSON values: roles, texts, and attachments by name."""
    messages: list[dict[str, Any]] = []
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    for turn in conversation.turns:
        asked: dict[str, Any] = {"role": "user", "content": turn.question}
        if turn.attachments:
            asked["attachments"] = [
                {"kind": one.kind, "name": one.name} for one in turn.attachments
            ]
        messages += [asked, _assistant_message(turn.answer)]
        if turn.answer.is_cut:
            messages[-1]["is_cut"] = True
    return {"schema": SCHEMA, "model": model, "messages": messages}


def as_markdown(conversation: Conversation, *, model: str, lang: Lang) -> str:
    """Write a conversation for people to read."""
    words = WORDS[lang]
    lines = [f"# {words['conversation'].format(model=model)}", ""]
    if conversation.system:
        lines += [f"## {words['system']}", "", conversation.system, ""]
    for turn in conversation.turns:
        lines += [f"## {words['user']}", ""]
        lines += [f"- {words[one.kind]}: {one.name}" for one in turn.attachments]
        lines += [""] if turn.attachments else []
        lines += [turn.question, ""] if turn.question else []
        lines += [f"## {words['assistant']}", ""]
        if turn.answer.reasoning:
            thought = turn.answer.reasoning.strip().splitlines()
            lines += [f"> **{words['thinking']}**", ">", *(f"> {one}".rstrip() for one in thought)]
            lines.append("")
        lines += [turn.answer.text, ""]
        lines += [f"*{words['cut']}*", ""] if turn.answer.is_cut else []
    return "\n".join(lines)
