"""The runner: what becomes of tasks whose work ends well, badly, late, or with its process."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qianyan.errors import EndpointError, InputError
from qianyan.server.database import open_database
from qianyan.server.errors import RefusedError
from qianyan.server.task_rows import Task, TaskState
from qianyan.server.task_runner import TaskRunner
from qianyan.server.tasks import TaskLimits, Tasks

OWNER = "owner"
Work = Callable[[Task], Awaitable[dict[str, Any]]]


def open_tasks(folder: Path, **limits: float) -> Tasks:
    return Tasks(open_database(folder), TaskLimits(**limits))  # type: ignore[arg-type]


@asynccontextmanager
async def running(tasks: Tasks, work: Work, concurrency: int = 2) -> AsyncIterator[TaskRunner]:
    runner = TaskRunner(tasks, {"chat": work}, concurrency=concurrency)
    run = asyncio.create_task(runner.run())
    yield runner
    assert not run.done(), run.exception()
    run.cancel()
    await asyncio.wait({run})


async def finished(tasks: Tasks, task: Task) -> Task:
    async with asyncio.timeout(100):
        while True:
            now = await asyncio.to_thread(tasks.find, OWNER, task.id, kind="chat")
            if now.finished_at is not None:
                return now
            await asyncio.sleep(0.01)


async def double(task: Task) -> dict[str, Any]:
    return {"number": 2 * task.request["number"]}


def submit(tasks: Tasks, number: int = 1) -> Task:
    return tasks.submit(OWNER, "chat", "m", {"number": number})


def test_tasks_are_done_several_at_a_time(tmp_path: Path) -> None:
    tasks, most, now = open_tasks(tmp_path), 0, 0
    begun = asyncio.Event()

    async def work(task: Task) -> dict[str, Any]:
        nonlocal most, now
        now += 1
        most = max(most, now)
        if now == 3:
            begun.set()
        async with asyncio.timeout(30):  # until others have begun, however slow the disk is
            await begun.wait()
        now -= 1
        return await double(task)

    async def scenario() -> list[Task]:
        sent = [submit(tasks, number) for number in range(9)]
        async with running(tasks, work, concurrency=3):
            return [await finished(tasks, one) for one in sent]

    done = asyncio.run(scenario())
    assert [task.result for task in done] == [{"number": 2 * number} for number in range(9)]
    assert most == 3


def test_a_woken_runner_begins_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qianyan.server.task_runner.POLL_S", 30)
    tasks = open_tasks(tmp_path)

    async def scenario() -> Task:
        async with running(tasks, double) as runner:
            await asyncio.sleep(0.2)
            task = await asyncio.to_thread(submit, tasks)
            runner.wake()
            return await finished(tasks, task)

    assert asyncio.run(scenario()).state == TaskState.SUCCEEDED


@pytest.mark.parametrize(
    ("error", "begun", "code", "message"),
    [
        (InputError("No such picture."), 1, "bad_input", "No such picture."),
        (EndpointError("It is away."), 3, "endpoint_failed", "It is away."),
        (ZeroDivisionError("secret"), 3, "internal_error", "The server failed at this task"),
    ],
)
def test_what_the_work_raises_decides_whether_it_is_tried_again(
    tmp_path: Path, error: Exception, begun: int, code: str, message: str
) -> None:
    tasks, calls = open_tasks(tmp_path, retry_s=0.01), 0

    async def work(task: Task) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        raise error

    async def scenario() -> Task:
        task = submit(tasks)
        async with running(tasks, work):
            return await finished(tasks, task)

    failed = asyncio.run(scenario())
    assert (failed.state, failed.error_code, calls) == (TaskState.FAILED, code, begun)
    assert message in (failed.error_message or "")
    assert "secret" not in (failed.error_message or "")


def test_work_that_succeeds_the_second_time_has_succeeded(tmp_path: Path) -> None:
    tasks = open_tasks(tmp_path, retry_s=0.01)

    async def work(task: Task) -> dict[str, Any]:
        if task.attempts == 1:
            raise EndpointError("Not yet.")
        return {"attempt": task.attempts}

    async def scenario() -> Task:
        task = submit(tasks)
        async with running(tasks, work):
            return await finished(tasks, task)

    assert asyncio.run(scenario()).result == {"attempt": 2}


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_without_room_uses_up_no_attempt(tmp_path: Path, status: int) -> None:
    tasks, calls = open_tasks(tmp_path, max_attempts=2, retry_s=0.02), 0

    async def work(task: Task) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls < 6:
            raise RefusedError("No room.", status=status, code="limit_requests")
        return {"attempt": task.attempts}

    async def scenario() -> Task:
        task = submit(tasks)
        async with running(tasks, work):
            return await finished(tasks, task)

    assert (asyncio.run(scenario()).result, calls) == ({"attempt": 1}, 6)


def test_work_longer_than_the_limit_is_stopped(tmp_path: Path) -> None:
    tasks, stopped = open_tasks(tmp_path, max_run_s=0.1), asyncio.Event()

    async def work(task: Task) -> dict[str, Any]:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()
        return {}

    async def scenario() -> Task:
        task = submit(tasks)
        async with running(tasks, work):
            return await finished(tasks, task)

    failed = asyncio.run(scenario())
    assert (failed.state, failed.error_code) == (TaskState.FAILED, "task_timed_out")
    assert stopped.is_set()


def test_work_longer_than_its_lease_is_done_once(tmp_path: Path) -> None:
    tasks, calls = open_tasks(tmp_path, lease_s=2.0), 0

    async def work(task: Task) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        await asyncio.sleep(4.5)
        return {}

    async def scenario() -> Task:
        task = submit(tasks)
        async with running(tasks, work), running(tasks, work):
            return await finished(tasks, task)

    assert (asyncio.run(scenario()).attempts, calls) == (1, 1)


def test_a_runner_that_is_stopped_puts_its_tasks_back(tmp_path: Path) -> None:
    tasks, started = open_tasks(tmp_path), asyncio.Event()

    async def endless(task: Task) -> dict[str, Any]:
        started.set()
        await asyncio.sleep(60)
        return {}

    async def scenario() -> tuple[Task, Task]:
        task = submit(tasks)
        async with running(tasks, endless):
            await started.wait()
        stopped = tasks.find(OWNER, task.id, kind="chat")
        async with running(tasks, double):
            return stopped, await finished(tasks, task)

    stopped, done = asyncio.run(scenario())
    assert (stopped.state, stopped.attempts) == (TaskState.PENDING, 0)
    assert (done.state, done.attempts) == (TaskState.SUCCEEDED, 1)


SERVER = """
import asyncio, sys
from pathlib import Path
from qianyan.server import batches  # tasks refer to their table
from qianyan.server.database import open_database
from qianyan.server.task_runner import TaskRunner
from qianyan.server.tasks import TaskLimits, Tasks

async def work(task):
    print(task.request["number"], flush=True)
    await asyncio.sleep(0.05)
    return {"number": 2 * task.request["number"]}

tasks = Tasks(open_database(Path(sys.argv[1])), TaskLimits(lease_s=1, max_attempts=9))
asyncio.run(TaskRunner(tasks, {"chat": work}, concurrency=3).run())
"""


def serve_until_killed(folder: Path, is_over: Callable[[list[str]], bool]) -> list[str]:
    """Run the server, kill it -9 when what it has printed is enough; give all that it printed."""
    with subprocess.Popen(
        [sys.executable, folder / "server.py", folder], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        try:
            while not is_over(lines):
                lines.append(process.stdout.readline())
        finally:
            os.kill(process.pid, signal.SIGKILL)
        return lines + process.stdout.read().splitlines()


def test_every_task_is_done_although_the_process_is_killed_again_and_again(tmp_path: Path) -> None:
    tasks = open_tasks(tmp_path)
    sent = [submit(tasks, number) for number in range(20)]
    (tmp_path / "server.py").write_text(SERVER)
    begun: list[str] = []
    for enough in (4, 5, 6):
        begun += serve_until_killed(tmp_path, lambda lines, enough=enough: len(lines) >= enough)  # type: ignore[misc]
    end = time.monotonic() + 200

    def all_done(lines: list[str]) -> bool:
        while len({int(line) for line in begun + lines}) == 20:
            if all(
                tasks.find(OWNER, task.id, kind="chat").finished_at is not None for task in sent
            ):
                return True
            assert time.monotonic() < end, Counter(tasks.find(OWNER, t.id).state for t in sent)
            time.sleep(0.05)
        return False

    begun += serve_until_killed(tmp_path, all_done)
    for number, task in enumerate(sent):
        done = tasks.find(OWNER, task.id, kind="chat")
        assert (done.state, done.result) == (TaskState.SUCCEEDED, {"number": 2 * number})
    times = Counter(int(line) for line in begun)
    # Only what ran when the process was killed is begun again: three at each of three deaths.
    assert 20 < sum(times.values()) <= 20 + 3 * 3, json.dumps(times)
