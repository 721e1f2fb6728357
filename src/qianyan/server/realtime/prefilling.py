"""Let the model take in what a user has said so far while they still speak."""

import asyncio
from contextlib import suppress
from typing import Any

from qianyan.engine.options import ChatOptions
from qianyan.errors import QianyanError
from qianyan.server.worker import Worker


class Prefilling:
    """Computes the complete blocks of a turn under way, as far as the model is free for it.

    What cannot be computed is told when the turn is answered, not before.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._task: asyncio.Task[None] | None = None
        self._num_blocks = 0

    def wants(self, num_blocks: int) -> bool:
        """Whether there are blocks that are not known, and nothing is being computed."""
        if num_blocks < self._num_blocks:  # of a turn before this one
            self._num_blocks = 0
        is_idle = self._task is None or self._task.done()
        return is_idle and num_blocks > self._num_blocks

    def begin(self, messages: list[Any], options: ChatOptions, num_blocks: int) -> None:
        """Begin to compute a conversation with these blocks of its last turn."""
        self._num_blocks = num_blocks
        self._task = asyncio.create_task(self._compute(messages, options))

    def stop(self) -> None:
        """Let the model go: the turn is over. What was computed stays known."""
        self._num_blocks = 0
        if self._task is not None:
            self._task.cancel()

    async def _compute(self, messages: list[Any], options: ChatOptions) -> None:
        with suppress(QianyanError):
            await self._worker.prefill(messages, options)
