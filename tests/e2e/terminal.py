"""A program on a pseudo-terminal: what a person would type and see. Loaded by tests with runpy."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

PROMPT = "\n> "
CTRL_C = "\x03"
_SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")
PATIENCE_S = 60


class Terminal:
    """A process whose input and output are one terminal of 100 columns."""

    def __init__(self, *arguments: str, folder: Path, **environment: str) -> None:
        self._end, program = pty.openpty()
        fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qianyan", *arguments],
            stdin=program,
            stdout=program,
            stderr=program,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", **environment},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        os.close(program)
        self._raw = b""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._end)

    @property
    def raw(self) -> str:
        """Everything shown so far, with colours and movements."""
        return self._raw.decode(errors="replace")

    @property
    def text(self) -> str:
        """Everything shown so far, without colours and movements."""
        return _SEQUENCES.sub("", self.raw)

    def expect(self, words: str) -> str:
        """Wait for words that were not waited for before; returns what is shown up to them."""
        end = time.monotonic() + PATIENCE_S
        while (at := self.text.find(words, self._seen)) < 0:
            if not self._read(end - time.monotonic()):
                raise AssertionError(f"{words!r} does not come after:\n{self.text[self._seen :]}")
        shown = self.text[self._seen : at + len(words)]
        self._seen = at + len(words)
        return shown

    def type(self, line: str, end: str = "\r") -> None:
        """Press the keys of a line."""
        os.write(self._end, (line + end).encode())

    def answer(self, line: str, end: str = "\r") -> None:
        """Type a line when the program asks for one; what is typed before may get lost."""
        self.expect(PROMPT)
        self.type(line, end)

    def interrupt(self) -> None:
        """Press Ctrl-C when the program is surely waiting: readline misses it just before that."""
        time.sleep(0.3)
        self.type(CTRL_C, end="")

    def close(self) -> int:
        """Wait until the program has ended; returns its exit code."""
        end = time.monotonic() + PATIENCE_S
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(PATIENCE_S)

    def _read(self, limit_s: float) -> bool:
        """Take in what is shown next; False when nothing more comes in time."""
        ready, _, _ = select.select([self._end], [], [], max(limit_s, 0))
        if not ready:
            return False
        try:
            data = os.read(self._end, 65536)
        except OSError:  # the program has closed its side
            return False
        self._raw += data
        return bool(data)
