"""Pictures in a line: several are worked on at once, on threads, and come out in their order.

So that what is written down is the same as one by one, whatever finishes first. A piece of the work
can ask for its turn, which comes in the order of the line as well, and for room in memory.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition, Event
from types import TracebackType
from typing import Self, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

PICTURES_AHEAD = 4
"""Pictures in line beside those that a model answers: read, decoded, prepared, or marked."""
MOST_BYTES = 2**30
"""Of all decoded pictures in line; one that is larger by itself waits until it is alone."""


class Turn:
    """An item's turn: what is done `with` it comes after the turns of all items before."""

    def __init__(self, before: "Turn | None") -> None:
        self._before = before
        self._is_over = Event()

    def __enter__(self) -> Self:
        if self._before is not None:
            self._before.wait()
            self._before = None  # else every turn would keep all before it
        return self

    def wait(self) -> None:
        """Wait until the turn is over."""
        self._is_over.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()


class Room:
    """Memory for decoded pictures, shared by threads."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._used = 0
        self._changed = Condition()

    def take(self, size_bytes: int) -> None:
        """Wait until there is room, or nobody else has any."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size_bytes <= self._most)
            self._used += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Let go of what was taken."""
        with self._changed:
            self._used -= size_bytes
            self._changed.notify_all()


def work_in_line(
    items: Iterable[Item], work: Callable[[Item, Turn], Made], *, at_once: int
) -> Iterator[tuple[Item, Made]]:
    """Give each item with what was made of it, in order; `at_once` are worked on by threads.

    Items are taken only as there is place for them. Closing the iterator waits for the work in
    hand and begins no more.
    """
    line: deque[tuple[Item, Future[Made]]] = deque()
    turn = None
    pool = ThreadPoolExecutor(at_once)
    try:
        for item in items:
            turn = Turn(turn)
            line.append((item, pool.submit(_work, work, item, turn)))
            if len(line) == at_once:
                first, future = line.popleft()
                yield first, future.result()
        for item, future in line:
            yield item, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _work(work: Callable[[Item, Turn], Made], item: Item, turn: Turn) -> Made:
    try:
        return work(item, turn)
    finally:
        with turn:  # whoever did not take it must not hold up the others
            pass
