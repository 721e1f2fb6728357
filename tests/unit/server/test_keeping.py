"""What is kept: opened with the limits that were set, by one server, whose work goes on."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from qianyan.errors import ConfigError
from qianyan.server import keeping as module
from qianyan.server.batch_lines import BatchLimits
from qianyan.server.database import DATABASE_FILE
from qianyan.server.files import FileLimits
from qianyan.server.keeping import claim, keep, open_keeping
from qianyan.server.settings import KeepingLimits
from qianyan.server.task_rows import Task, TaskState
from qianyan.server.tasks import TaskLimits
from qianyan.server.uploads import UploadLimits


def test_everything_that_is_kept_has_the_limits_that_were_set(tmp_path: Path) -> None:
    limits = KeepingLimits(
        files=FileLimits(max_files=1),
        uploads=UploadLimits(policy_s=2),
        tasks=TaskLimits(max_waiting=3),
        batches=BatchLimits(max_lines=4),
    )
    kept = open_keeping(tmp_path, limits)
    assert (kept.files.limits, kept.uploads.limits) == (limits.files, limits.uploads)
    assert (kept.tasks.limits, kept.batches.limits) == (limits.tasks, limits.batches)
    kept.database.close()


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    with claim(tmp_path), pytest.raises(ConfigError, match="--state-dir"), claim(tmp_path):
        pass
    with claim(tmp_path):
        pass


def test_tasks_and_upkeep_go_on_after_an_error_that_nobody_foresaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_AFTER_S", 0.01)

    async def work(task: Task) -> dict[str, int]:
        return {"seven": 7}

    def write(request: str) -> None:
        with sqlite3.connect(tmp_path / DATABASE_FILE, timeout=30) as other:
            other.execute("UPDATE tasks SET request = ?", [request])
        other.close()

    before = open_keeping(tmp_path)
    task_id = before.tasks.submit("owner", "k", "m", {}).id
    before.database.close()
    write("{")  # what no code of ours writes: reading it raises what nobody catches

    async def run() -> Task:
        async with keep(tmp_path, lambda _: {"k": work}) as kept, asyncio.timeout(30):
            while "begins anew" not in caplog.text:  # noqa: ASYNC110  (a log has no event)
                await asyncio.sleep(0.01)
            write("{}")
            while True:
                task = await asyncio.to_thread(kept.tasks.find, "owner", task_id, kind="k")
                if task.state is TaskState.SUCCEEDED:
                    return task
                await asyncio.sleep(0.01)

    assert asyncio.run(run()).result == {"seven": 7}
