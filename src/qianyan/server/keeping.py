"""What a server keeps: database, files, tasks and batches of one state folder, and their upkeep.

`keep` opens them when the server starts and runs what goes on by itself: the runner of tasks, and a
round that takes batches on and deletes what has expired.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from filelock import FileLock, Timeout

from qianyan.errors import ConfigError, quote
from qianyan.server.batches import Batches
from qianyan.server.database import RETRY_AFTER_S, Database, make_state_folder, open_database
from qianyan.server.errors import RefusedError
from qianyan.server.files import Files
from qianyan.server.openai_responses_store import Responses
from qianyan.server.settings import KeepingLimits
from qianyan.server.store import ContentStore
from qianyan.server.task_runner import TaskRunner, Work
from qianyan.server.tasks import Tasks
from qianyan.server.uploads import Uploads

logger = logging.getLogger(__name__)
ROUND_S = 0.5
SWEEP_S = 600
TASKS_AT_A_TIME = 4


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What is kept under one state folder; `wake` tells the runner of a new task."""

    database: Database
    files: Files
    uploads: Uploads
    tasks: Tasks
    batches: Batches
    responses: Responses
    wake: Callable[[], None] = lambda: None

    def sweep(self) -> None:
        """Delete what has expired, and what killed processes left."""
        self.files.sweep()
        self.tasks.sweep()
        self.responses.sweep()
        self.files.store.sweep(self.files.ids() | self.batches.ids())


def open_keeping(
    state_folder: Path, limits: KeepingLimits | None = None, database_url: str | None = None
) -> Keeping:
    """Open what is kept; ConfigError when the folder or its database cannot be used."""
    limits = limits or KeepingLimits()
    folder = make_state_folder(state_folder)
    database = open_database(folder, database_url)
    files = Files(database, ContentStore(folder / "files"), limits.files)
    return Keeping(
        database=database,
        files=files,
        uploads=Uploads(database, files, limits.uploads),
        tasks=Tasks(database, limits.tasks),
        batches=Batches(database, files, limits.batches),
        responses=Responses(database),
    )


@contextmanager
def claim(state_folder: Path) -> Iterator[Path]:
    """Hold a state folder and give its path.

    A second server would take lines for models that it does not have. Raises ConfigError when
    another server holds it.
    """
    folder = make_state_folder(state_folder)
    lock = FileLock(folder / "server.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"Another qianyan serve works in the state folder {quote(state_folder)}. "
            "Name another one with --state-dir."
        ) from error
    try:
        yield folder
    finally:
        lock.release()


MakeWorks = Callable[[Keeping], Mapping[str, Work]]
"""Gives the work of each kind of task."""


@asynccontextmanager
async def keep(
    state_folder: Path,
    make_works: MakeWorks,
    limits: KeepingLimits | None = None,
    database_url: str | None = None,
) -> AsyncIterator[Keeping]:
    """Open what is kept and have its work done until the context is left.

    A state folder and its database have one server (`claim`), so what runs when this one begins
    was a dead one's.
    """
    keeping = await asyncio.to_thread(open_keeping, state_folder, limits, database_url)
    await asyncio.to_thread(keeping.tasks.end_leases)
    runner = TaskRunner(keeping.tasks, make_works(keeping), concurrency=TASKS_AT_A_TIME)
    keeping = replace(keeping, wake=runner.wake)
    running = [
        asyncio.create_task(_go_on(runner.run)),
        asyncio.create_task(_go_on(partial(_go_round, keeping, runner))),
    ]
    try:
        yield keeping
    finally:
        for one in running:
            one.cancel()
        await asyncio.wait(running)
        keeping.database.close()


async def _go_on(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do endless work; where it ends by an error it begins anew after a while, and the log says."""
    while True:
        working = asyncio.create_task(work())
        try:
            await asyncio.wait({working})
        finally:
            working.cancel()
            await asyncio.wait({working})
        logger.error("work of the server broke off and begins anew", exc_info=working.exception())
        await asyncio.sleep(RETRY_AFTER_S)


async def _go_round(keeping: Keeping, runner: TaskRunner) -> None:
    """Take batches on, and sweep first: a full disk must not keep what has expired on it."""
    swept_at = -math.inf
    while True:
        if time.monotonic() - swept_at > SWEEP_S:
            await asyncio.to_thread(keeping.sweep)
            swept_at = time.monotonic()
        if await asyncio.to_thread(keeping.batches.advance):
            runner.wake()
        await asyncio.sleep(ROUND_S)


def find_keeping(request: Request) -> Keeping:
    """Find what is kept by the app of a request; for FastAPI's Depends."""
    keeping: Keeping | None = getattr(request.app.state, "keeping", None)
    if keeping is None:
        raise RefusedError(
            "This server keeps nothing: it was started without a state folder.",
            status=501,
            code="nothing_kept",
        )
    return keeping


Kept = Annotated[Keeping, Depends(find_keeping)]
"""A parameter of this type gets the Keeping of the app."""
