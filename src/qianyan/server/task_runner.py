"""The runner: takes tasks out of the line and has their work done, several at a time.

The work of each kind is a coroutine function given from outside. What it raises decides: a request
that cannot be used fails at once; where the server has no room now, or the model is broken until
the server is started again, the task waits and no attempt is used up; anything else is tried
again, as often as the limits allow, and what nobody foresaw goes to the log with its traceback. A
runner that is cancelled puts its tasks back in line.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from qianyan.errors import CapacityError, InputError, NoMemoryError, QianyanError
from qianyan.server.asking import Asked, asking
from qianyan.server.database import StorageError
from qianyan.server.errors import RefusedError
from qianyan.server.task_rows import Task
from qianyan.server.tasks import TOO_LONG, Tasks

logger = logging.getLogger(__name__)

Work = Callable[[Task], Awaitable[dict[str, Any]]]
"""Does a task's work and gives its result, which must be JSON."""

BUSY = (429, 503)
"""Statuses that speak of the server at this moment, never of the request."""
POLL_S = 0.5  # other processes put tasks in line too
RENEWALS_PER_LEASE = 3


class TaskRunner:
    """Runs tasks until it is cancelled; `works` by the tasks' kinds."""

    def __init__(self, tasks: Tasks, works: Mapping[str, Work], *, concurrency: int) -> None:
        self._tasks = tasks
        self._works = works
        self._concurrency = concurrency
        self._id = uuid.uuid4().hex
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look at the line at once: something was put there; from the event loop only."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled; then what was begun is back in line."""
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._woken.clear()
                while len(running) < self._concurrency and (task := await self._claim()):
                    one = asyncio.create_task(self._do(task))
                    running.add(one)
                    one.add_done_callback(running.discard)
                    one.add_done_callback(lambda _: self._woken.set())
                await self._wait()
        finally:
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(POLL_S):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _claim(self) -> Task | None:
        """Claim a task; one that is claimed while the runner is cancelled goes back in line."""
        claiming = asyncio.ensure_future(asyncio.to_thread(self._tasks.claim, self._id))
        try:
            return await asyncio.shield(claiming)
        except StorageError:
            logger.exception("no task could be claimed; trying again")
            return None
        except asyncio.CancelledError:
            task = await claiming
            if task is not None:
                await self._settle(self._tasks.put_back, task, is_failed=False)
            raise

    async def _do(self, task: Task) -> None:
        """Do one task; whatever happens to its work, the task has its next state afterwards."""
        with asking(Asked(request_id=task.id, owner_id=task.owner_id)):
            work = asyncio.ensure_future(self._works[task.kind](task))
        renewing = asyncio.create_task(self._renew(task, work))
        try:
            await asyncio.wait({work}, timeout=self._tasks.limits.max_run_s)
        except asyncio.CancelledError:
            work.cancel()
            await asyncio.wait({work})
            await self._settle(self._tasks.put_back, task, is_failed=False)
            raise
        finally:
            renewing.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
            await self._fail(task, TOO_LONG, "The task took longer than a task may take.")
        elif not work.cancelled():  # else its lease was lost, and the task is another runner's
            await self._finish(task, work)

    async def _finish(self, task: Task, work: "asyncio.Future[dict[str, Any]]") -> None:
        error = work.exception()
        if error is None:
            await self._settle(self._tasks.succeed, task, work.result())
        elif isinstance(error, RefusedError) and error.status in BUSY:
            wait_s = error.retry_after_s or self._tasks.limits.retry_s
            await self._settle(self._tasks.put_back, task, is_failed=False, wait_s=wait_s)
        elif _is_of_request(error):
            await self._fail(task, _code(error), str(error))
        elif task.attempts < self._tasks.limits.max_attempts:
            logger.warning("task failed and is tried again task_id=%s", task.id, exc_info=error)
            await self._settle(self._tasks.put_back, task, is_failed=True)
        else:
            logger.error("task failed task_id=%s", task.id, exc_info=error)
            message = str(error) if isinstance(error, QianyanError) else UNFORESEEN
            await self._fail(task, _code(error), message)

    async def _fail(self, task: Task, code: str, message: str) -> None:
        await self._settle(self._tasks.fail, task, code=code, message=message)

    async def _settle(
        self, settle: Callable[..., bool], task: Task, *args: Any, **words: Any
    ) -> None:
        """Write a task's next state; when the disk fails, its lease runs out and it is redone."""
        try:
            if not await asyncio.to_thread(settle, task, self._id, *args, **words):
                logger.warning("task was taken up by another runner task_id=%s", task.id)
        except StorageError:
            logger.exception("the state of a task could not be kept task_id=%s", task.id)

    async def _renew(self, task: Task, work: "asyncio.Future[dict[str, Any]]") -> None:
        """Renew the lease while the work goes on; a lost one ends the work."""
        while True:
            await asyncio.sleep(self._tasks.limits.lease_s / RENEWALS_PER_LEASE)
            try:
                is_mine = await asyncio.to_thread(self._tasks.renew, task, self._id)
            except StorageError:
                logger.exception("a lease could not be renewed task_id=%s", task.id)
                continue
            if not is_mine:
                work.cancel()
                return


UNFORESEEN = "The server failed at this task; its log says why, under the task's id."


def _is_of_request(error: BaseException) -> bool:
    """Tell whether the same request would fail again."""
    if isinstance(error, RefusedError):
        return error.status < 500
    if isinstance(error, NoMemoryError):
        return False
    return isinstance(error, InputError | CapacityError)


def _code(error: BaseException) -> str:
    return error.code if isinstance(error, QianyanError) else "internal_error"
