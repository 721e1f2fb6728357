"""Threads that read what requests hold, shared fairly among keys, within each request's time.

Reading a long document or video cannot be stopped from outside: its thread is busy until one of the
reader's own limits ends it, though whoever asked may be gone. So one key never holds all threads:
another one's picture finds one free however many such files a key sends.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from typing import Any, TypeVar

from qianyan.server.asking import Asked
from qianyan.server.errors import RefusedError, stopping
from qianyan.server.line import Line
from qianyan.server.settings import ServerLimits

Made = TypeVar("Made")
NO_LIMIT = 1 << 30
"""Who prepares has a seat before the model already, and these are counted."""


class Preparing:
    """`max_preparing` threads for each key, and one more for all; made and used on one loop."""

    def __init__(self, limits: ServerLimits) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_closed = False
        num_threads = limits.max_preparing + 1
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="prepare")
        # Times are those of requests, which the line before the model has let in.
        unlimited = replace(limits, max_waiting=NO_LIMIT, max_wait_s=NO_LIMIT, max_open_per_key=0)
        self._line = Line(num_threads, unlimited, most_each=limits.max_preparing)

    async def call(self, asked: Asked, work: Callable[[], Made]) -> Made:
        """Do work on a thread and give what it makes, or raise what it raises.

        Raises RefusedError with 504 when the request's time is over before that.
        """
        left_s = None if asked.ends_at is None else asked.ends_at - time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                await self._line.sit(asked.owner_id)
                return await asyncio.wrap_future(self._begin(asked.owner_id, work))
        except TimeoutError as error:
            raise RefusedError(
                "The time for this request was over before its pictures, videos and documents "
                "were read. Send fewer, or smaller ones.",
                status=504,
                code="request_timeout",
            ) from error

    def close(self) -> None:
        """Begin nothing more; what is being read ends by itself."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, owner_id: str, work: Callable[[], Made]) -> Future[Made]:
        """Let work run on a thread that is free; its place is free again when it has ended."""
        if self._is_closed:
            self._line.stand_up(owner_id)
            raise stopping()

        def leave(_: Future[Any]) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._line.stand_up, owner_id)

        job = self._threads.submit(copy_context().run, work)
        job.add_done_callback(leave)
        return job
