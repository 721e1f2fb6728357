"""What people and programs see while a model is pulled, or quantised.

On a terminal a bar with bytes, speed and time left; elsewhere a plain line for each further tenth.
"""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from qianyan.cli.model_words import size_word, words
from qianyan.cli.options import Lang
from qianyan.cli.terminal import printable

if TYPE_CHECKING:
    from qianyan.engine.pull import PullProgress

_LONGEST_NAME = 60


class PullDisplay:
    """Shows a pull on standard error; standard output is left to the result.

    `sentence` is the key of what is said of each tenth.
    """

    def __init__(self, *, lang: Lang, is_quiet: bool, sentence: str = "pulled") -> None:
        self._words = words(lang)
        self._sentence = sentence
        self._console = Console(stderr=True, quiet=is_quiet, highlight=False)
        self._bar = Progress(
            BarColumn(bar_width=20),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[files]}", markup=False),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._num_tenths = -1

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, progress: "PullProgress") -> None:
        """Take in how far the pull has come."""
        if self._console.is_terminal:
            self._move(progress)
        else:
            self._tell(progress)

    def _move(self, progress: "PullProgress") -> None:
        files = self._words["files"].format(done=progress.num_files_done, total=progress.num_files)
        if self._task is None:  # begun where an earlier pull stopped, so that the speed is true
            self._task = self._bar.add_task(
                "", total=progress.total_bytes, completed=progress.done_bytes, files=files
            )
        self._bar.update(self._task, completed=progress.done_bytes, files=files)

    def _tell(self, progress: "PullProgress") -> None:
        tenths = progress.done_bytes * 10 // max(progress.total_bytes, 1)
        if tenths > self._num_tenths:
            self._num_tenths = tenths
            line = self._words[self._sentence].format(
                done=size_word(progress.done_bytes),
                total=size_word(progress.total_bytes),
                percent=progress.done_bytes * 100 // max(progress.total_bytes, 1),
                file=printable(progress.file)[:_LONGEST_NAME],
            )
            self._console.print(line, markup=False, soft_wrap=True)

    def close(self, licence: str) -> None:
        """Say at the end what the model's licence allows."""
        self._console.print(licence, markup=False, soft_wrap=True)
