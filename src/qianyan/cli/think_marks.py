"""Thinking that an endpoint leaves in the answer, between <think> and </think> at its beginning."""

from collections.abc import Iterator

START, END = "<think>", "</think>"


class ThinkMarks:
    """Divides an answer that comes in pieces; the marks themselves are dropped."""

    def __init__(self) -> None:
        self._held = ""
        self._is_open = True  # the answer may still turn out to begin with thinking
        self._is_thinking = False

    def push(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield what is certain of the text so far, each time with whether it is thinking."""
        self._held += text
        if self._is_open:
            begun = self._held.lstrip()
            if START.startswith(begun):
                return
            self._is_open = False
            if begun.startswith(START):
                self._held, self._is_thinking = begun.removeprefix(START), True
        if self._is_thinking:
            thought, mark, rest = self._held.partition(END)
            if not mark:
                size = _overlap(thought)
                thought, rest = thought[: len(thought) - size], thought[len(thought) - size :]
            self._is_thinking, self._held = not mark, rest
            yield thought, True
        if not self._is_thinking:
            yield self.finish()

    def finish(self) -> tuple[str, bool]:
        """Give what was still held back."""
        rest, self._held = self._held, ""
        return rest, self._is_thinking


def _overlap(text: str) -> int:
    """Count the last characters of `text` that begin the closing mark."""
    return next((n for n in range(len(END) - 1, 0, -1) if text.endswith(END[:n])), 0)
