"""One thread for the model, and questions from many others.

Whoever asks prepares the question on its own thread, waits for a seat, and waits for the answer;
one thread runs the model for all who are seated. One, because each thread that runs operators
keeps a team of its own in the processor's libraries, and teams that outnumber the cores hold each
other up: the bundled detector took 26 instead of 16 ms where two threads used it in turns.
"""

import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar, Unpack

from qianyan.engine.engine import Engine, Messages
from qianyan.engine.options import ChatOptions, check_names
from qianyan.engine.request import Completion, Request
from qianyan.engine.runner import Prompt

Given = ParamSpec("Given")
Item = TypeVar("Item")
Made = TypeVar("Made")


class _Group:
    """The questions that one caller waits for."""

    def __init__(self, prepared: Sequence[tuple[Request, Prompt]]) -> None:
        self.prepared = prepared
        self.requests = [request for request, _ in prepared]
        self.is_answered: Future[None] = Future()


class Desk:
    """Where models are used from any thread, each call made on the models' own.

    Seats are for callers whose questions run at the same time; others wait, prepared. Nothing is to
    be closed.
    """

    def __init__(self, seats: int = 1) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._seats = threading.Semaphore(seats)
        self._groups: dict[Engine, list[_Group]] = {}  # touched by the models' thread only

    def set_seats(self, seats: int) -> None:
        """Change the number of seats, while nobody waits for one."""
        self._seats = threading.Semaphore(seats)

    def call(self, work: Callable[Given, Made], *args: Given.args, **options: Given.kwargs) -> Made:
        """Do something on the models' thread, between two passes; return or raise what it does."""
        return self._thread.submit(work, *args, **options).result()

    def share(
        self, work: Callable[[list[Item]], list[Made]], *, at_once: int
    ) -> Callable[[Item], Made]:
        """Turn work on several items, at most `at_once`, into a call for one.

        Whoever calls shares a pass with those who wait; what it raises, they all raise.
        """
        waiting: deque[tuple[Item, Future[Made]]] = deque()

        def work_on_waiting() -> None:  # on the models' thread, which alone takes from the line
            served = [waiting.popleft() for _ in range(min(at_once, len(waiting)))]
            if not served:  # another call has served this caller
                return
            made: Sequence[Made] = ()
            try:
                made = work([item for item, _ in served])
            finally:  # whoever waits hears of every end
                error = sys.exception()
                for _, future in served if error else ():
                    future.set_exception(error)
            for (_, future), one in zip(served, made, strict=True):
                future.set_result(one)

        def call(item: Item) -> Made:
            future: Future[Made] = Future()
            waiting.append((item, future))
            self._thread.submit(work_on_waiting)
            return future.result()

        return call

    def chat_many(
        self, engine: Engine, conversations: Sequence[Messages], **options: Unpack[ChatOptions]
    ) -> list[Completion]:
        """Answer several conversations in order, in one batch with those of other callers.

        Raises what `Engine.chat_many` does; questions of other callers go on.
        """
        check_names(options)
        group = _Group([engine.prepare(messages, options) for messages in conversations])
        with self._seats:
            try:
                self.call(self._seat, engine, group)
                group.is_answered.result()
            finally:
                engine.forget(group.requests)  # finished ones are gone already
        return [request.completion() for request in group.requests]

    def _seat(self, engine: Engine, group: _Group) -> None:
        for request, prompt in group.prepared:
            engine.submit(request, prompt)
        seated = self._groups.setdefault(engine, [])
        seated.append(group)
        if len(seated) == 1:
            self._submit_step(engine)

    def _submit_step(self, engine: Engine) -> None:
        """Queue one pass behind the calls that wait, so that they are not held up by many."""
        step = self._thread.submit(engine.step)
        step.add_done_callback(lambda done: self._settle(engine, done))

    def _settle(self, engine: Engine, done: Future[list[Request]]) -> None:
        """Tell callers whose questions are answered; on the models' thread, after each pass."""
        error = done.exception()
        going_on = []
        for group in self._groups.pop(engine):
            if error is not None:
                group.is_answered.set_exception(error)
            elif all(request.is_finished for request in group.requests):
                group.is_answered.set_result(None)
            else:
                going_on.append(group)
        if going_on:
            self._groups[engine] = going_on
            self._submit_step(engine)
