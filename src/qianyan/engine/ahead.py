"""Things made on threads ahead of whoever takes them, a bounded number, handed out in order.

Preparing a question (decoding, resizing, cutting patches) runs in libraries that let other threads
run, so that it costs a model that is busy meanwhile nothing but its share of the cores.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Generic, Self, TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")

MOST_AHEAD = 8
"""Things that are being made or lie ready; of large pictures each takes some ten MB."""
MOST_THREADS = 4


class Ahead(Generic[Given, Made]):
    """Makes something of each item, in order; of a single one without a thread."""

    def __init__(self, make: Callable[[Given], Made], items: Sequence[Given]) -> None:
        self._make = make
        self._rest = iter(items)
        threads = min(MOST_THREADS, os.cpu_count() or 1, len(items))
        self._pool = ThreadPoolExecutor(threads) if len(items) > 1 else None
        self._making: deque[Future[Made]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def take(self, most: int, *, is_idle: bool) -> list[Made]:
        """Hand out up to `most` things: those that are ready, or to an idle taker all begun ones.

        Raises what making the next one raised.
        """
        self._begin()
        taken: list[Made] = []
        while self._making and len(taken) < most and (is_idle or self._making[0].done()):
            taken.append(self._making.popleft().result())
        self._begin()
        return taken

    def _begin(self) -> None:
        for item in islice(self._rest, MOST_AHEAD - len(self._making)):
            self._making.append(self._start(item))

    def _start(self, item: Given) -> Future[Made]:
        if self._pool is not None:
            return self._pool.submit(self._make, item)
        made: Future[Made] = Future()
        made.set_result(self._make(item))
        return made
