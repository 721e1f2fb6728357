"""A conversation on the terminal: lines in, words out as they come, Ctrl-C in its place."""

import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path

from rich.console import Console

from qianyan.cli.answering import End, Events, Model, Piece, TalkOptions
from qianyan.cli.attachments import fit, open_attachment
from qianyan.cli.chat_words import WORDS
from qianyan.cli.conversation import (
    Answer,
    Attachment,
    Conversation,
    Kind,
    Verb,
    read_command,
    save_text,
    write_conversation,
)
from qianyan.cli.exit_codes import DONE
from qianyan.cli.options import Lang
from qianyan.cli.terminal import printable, printable_text
from qianyan.errors import CapacityError, QianyanError
from qianyan.inputs.fetch import FetchLimits

PROMPT, MORE = "> ", "… "
STOPPED = 128 + signal.SIGINT


@dataclass(kw_only=True)
class Heard:
    """What has come of an answer so far."""

    text: str = ""
    thinking: str = ""
    is_cut: bool = False
    num_tokens: int | None = None
    started_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None

    def take(self, event: Piece | End) -> str:
        """Take in one event, and return what of it is to be shown."""
        if isinstance(event, End):
            self.is_cut = not event.is_full
            self.num_tokens = event.num_tokens
            return ""
        self.first_s = self.first_s or time.monotonic()
        if event.is_thinking:
            shown = event.text if self.thinking else event.text.lstrip()
            self.thinking += shown
        else:
            shown = event.text if self.text else event.text.lstrip()
            self.text += shown
        return shown

    def answer(self) -> Answer:
        """Make the answer that the conversation keeps."""
        return Answer(text=self.text.rstrip(), reasoning=self.thinking.strip(), is_cut=self.is_cut)


def answer_once(
    model: Model, conversation: Conversation, question: str, options: TalkOptions
) -> Heard:
    """Answer one question on standard output and print nothing else there."""
    heard = Heard()
    with closing(model.answer(conversation.messages(question), options)) as events:
        for event in events:
            shown = heard.take(event)
            if isinstance(event, Piece) and not event.is_thinking:
                sys.stdout.write(printable_text(shown))
                sys.stdout.flush()
    sys.stdout.write("" if heard.text.endswith("\n") else "\n")
    return heard


class ChatScreen:
    """One conversation with one model, line by line.

    Ctrl-C stops an answer; a second one, without a line in between, leaves.
    """

    def __init__(
        self,
        model: Model,
        conversation: Conversation,
        options: TalkOptions,
        *,
        lang: Lang,
        limits: FetchLimits,
    ) -> None:
        self.conversation = conversation
        self._model = model
        self._options = options
        self._lang: Lang = lang
        self._words = WORDS[lang]
        self._limits = limits
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._errors = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._was_interrupted = False
        self._is_leaving = False
        self._do: Mapping[Verb, Callable[[str | None], None]] = {
            "detach": self._detach,
            "system": self._system,
            "reset": self._reset,
            "save": self._save,
            "help": lambda _: self._say("help"),
            "quit": self._leave,
        }

    def converse(self, first: str = "") -> int:
        """Take lines until the user leaves; returns the exit code."""
        _prepare_input()
        self._say("greeting", model=printable(self._model.name))
        for one in self.conversation.attached:
            self._announce(one)
        if first:
            self._guarded(first)
        while not self._is_leaving:
            try:
                line = self._read()
            except EOFError:
                self._console.print()
                return DONE
            except KeyboardInterrupt:
                self._console.print()
                if self._was_interrupted:
                    return STOPPED
                self._was_interrupted = True
                self._say("leave")
                continue
            self._was_interrupted = False
            self._guarded(line)
        return DONE

    def _read(self) -> str:
        """Read a message; a backslash at the end of a line goes on with the next."""
        lines = [input(PROMPT)]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1].removesuffix("\\")
            lines.append(input(MORE))
        return "\n".join(lines)

    def _guarded(self, line: str) -> None:
        """Do what a line asks for, and say what went wrong."""
        if not line.strip():
            return
        try:
            asked = read_command(line)
            if isinstance(asked, str):
                self._ask(asked)
            elif asked.verb in ("image", "video", "audio", "file"):
                self._attach(asked.verb, asked.argument or "")
            else:
                self._do[asked.verb](asked.argument)
        except (QianyanError, OSError) as error:
            is_wrapped = self._errors.is_terminal
            self._errors.print(printable(str(error)), style="red", soft_wrap=not is_wrapped)
            if isinstance(error, CapacityError) and self.conversation.turns:
                self._say("shorten")

    def _ask(self, question: str) -> None:
        """Answer one question; the conversation keeps it when there is an answer."""
        heard = Heard()
        is_stopped = False
        try:
            with closing(
                self._model.answer(self.conversation.messages(question), self._options)
            ) as events:
                self._show(events, heard)
        except KeyboardInterrupt:
            is_stopped = self._was_interrupted = heard.is_cut = True
        except QianyanError:
            self._end_line(heard)
            raise
        self._end_line(heard)
        if is_stopped:
            self._say("stopped" if heard.text.strip() else "unanswered")
        if heard.text.strip() or not is_stopped:
            self.conversation.settle(question, heard.answer())
        if not is_stopped:
            self._sum_up(heard)

    def _show(self, events: Events, heard: Heard) -> None:
        """Write an answer as it comes, the thinking before it dimmed."""
        was_thinking = False
        for event in self._waited_for(events):
            shown = heard.take(event)
            if not shown or isinstance(event, End):
                continue
            if event.is_thinking and not was_thinking:
                self._console.out(f"{self._words['thinking']}: ", end="", style="dim italic")
            if was_thinking and not event.is_thinking:
                self._console.out("\n")
            was_thinking = event.is_thinking
            style = "dim" if was_thinking else None
            self._console.out(printable_text(shown), end="", style=style, highlight=False)

    def _waited_for(self, events: Events) -> Iterator[Piece | End]:
        """Show that something is going on until the first words are there."""
        if not self._console.is_terminal:
            yield from events
            return
        with self._console.status(self._words["waiting"]):
            first = next(events)
        yield first
        yield from events

    def _end_line(self, heard: Heard) -> None:
        if heard.text or heard.thinking:
            self._console.out("" if heard.text.endswith("\n") else "\n", end="")

    def _sum_up(self, heard: Heard) -> None:
        """Say how fast the answer was, and whether it was cut."""
        if heard.is_cut:
            self._say("length")
        if not self._console.is_terminal:
            return
        took_s = time.monotonic() - heard.started_s
        spoke_s = time.monotonic() - (heard.first_s or heard.started_s)
        if heard.num_tokens and heard.num_tokens > 1 and spoke_s > 0:
            # The first token ends the reading of the prompt; the others are written after it.
            rate = (heard.num_tokens - 1) / spoke_s
            self._say("speed", n=heard.num_tokens, rate=rate, seconds=took_s)
        else:
            self._say("seconds", seconds=took_s)

    def _attach(self, kind: Kind, source: str) -> None:
        attachment = fit(open_attachment(kind, source, self._limits), self._model)
        self.conversation.attached.append(attachment)
        self._announce(attachment)

    def _announce(self, attachment: Attachment) -> None:
        size = ""
        if attachment.photo_wh is not None and attachment.seen_wh is not None:
            width, height = attachment.photo_wh
            seen_width, seen_height = attachment.seen_wh
            size = self._words["seen"].format(
                width=width, height=height, seen_width=seen_width, seen_height=seen_height
            )
        kind, name = self._words[attachment.kind], printable(attachment.name)
        self._say("attached", kind=kind, name=name, size=size)
        for note in attachment.notes:
            self._console.print(f"- {printable(note)}", style="dim", soft_wrap=True)

    def _detach(self, _: str | None) -> None:
        num_attached = len(self.conversation.attached)
        self.conversation.attached.clear()
        self._say("detached" if num_attached else "nothing_attached", n=num_attached)

    def _system(self, prompt: str | None) -> None:
        if prompt is not None:
            self.conversation.system = prompt or None
        if prompt:
            self._say("system_set")
        elif self.conversation.system:
            self._console.print(printable_text(self.conversation.system), soft_wrap=True)
        else:
            self._say("system_none")

    def _reset(self, _: str | None) -> None:
        self.conversation.reset()
        self._say("was_reset")

    def _save(self, name: str | None) -> None:
        path = Path(name or "").expanduser()
        text = save_text(self.conversation, path, model=self._model.name, lang=self._lang)
        try:
            write_conversation(path, text)
        except FileExistsError:
            if not self._confirms(self._words["replace"].format(path=printable(str(path)))):
                self._say("not_saved")
                return
            write_conversation(path, text, may_replace=True)
        self._say("saved", path=printable(str(path)))

    def _confirms(self, question: str) -> bool:
        """Ask something that only a clear yes agrees to."""
        try:
            return input(question).strip().lower() in {"y", "yes", "是"}
        except (EOFError, KeyboardInterrupt):
            self._console.print()
            return False

    def _leave(self, _: str | None) -> None:
        self._is_leaving = True

    def _say(self, key: str, **gaps: object) -> None:
        is_wrapped = self._console.is_terminal
        said = self._words[key].format(**gaps)
        self._console.print(said, style="dim", soft_wrap=not is_wrapped)


@contextmanager
def loading(name: str, lang: Lang) -> Generator[None, None, None]:
    """Show on a terminal that a model is being loaded."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        yield
        return
    with console.status(WORDS[lang]["loading"].format(model=printable(name))):
        yield


def _prepare_input() -> None:
    """Edit lines with readline where there is one; take bytes that are no text as marks."""
    if find_spec("readline"):
        import_module("readline")  # input() uses it once it is there
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
