"""The end of a batch, told to a real HTTP server: once, again after failures, never to anybody."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qianyan.engine.engine import Engine
from qianyan.errors import InputError
from qianyan.inputs.fetch import FetchLimits
from qianyan.server.batch_callbacks import tell_end
from qianyan.server.batch_rows import BatchRow
from qianyan.server.batches import CALLBACK_KIND, Batches
from qianyan.server.database import open_database
from qianyan.server.files import Files
from qianyan.server.owned import PageQuery
from qianyan.server.store import ContentStore
from qianyan.server.task_rows import Task, TaskState
from qianyan.server.task_runner import TaskRunner
from qianyan.server.tasks import TaskLimits, TaskQuery, Tasks

OWNER = "owner"
CHAT = "/v1/chat/completions"


class Kept:
    """What a server keeps, with a batch whose end is to be told."""

    def __init__(self, folder: Path) -> None:
        database = open_database(folder)
        self.files = Files(database, ContentStore(folder / "files"))
        self.tasks = Tasks(database, TaskLimits(retry_s=0.01, max_attempts=3))
        self.batches = Batches(database, self.files)

    def create(self, url: str, text: str = "no JSON") -> BatchRow:
        file = self.files.upload(OWNER, "in.jsonl", "batch", [text.encode()])
        metadata = {"ds_batch_finish_callback": url}
        return self.batches.create(OWNER, file.id, CHAT, metadata=metadata)

    def tell(self, limits: FetchLimits) -> Task:
        """Do the one task in line, to its end."""
        work = tell_end(self.batches, lambda row: {"id": row.id, "status": row.state}, limits)

        def last() -> Task:
            page = self.tasks.list_page(OWNER, TaskQuery(), PageQuery(), kind=CALLBACK_KIND)
            (task,) = page.items
            return task

        async def run() -> Task:
            runner = TaskRunner(self.tasks, {CALLBACK_KIND: work}, concurrency=1)
            running = asyncio.create_task(runner.run())
            async with asyncio.timeout(60):
                while True:
                    task = await asyncio.to_thread(last)
                    if task.finished_at is not None:
                        break
                    await asyncio.sleep(0.01)
            running.cancel()
            await asyncio.wait({running})
            return task

        return asyncio.run(run())


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


@contextmanager
def listening(statuses: list[int]) -> Iterator[tuple[str, list[Any]]]:
    """A server that answers with one status after the other, and what it was told."""
    told: list[Any] = []
    left = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            told.append((self.path, self.headers["content-type"], json.loads(body)))
            self.send_response(left.pop(0) if left else 200)
            self.send_header("location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def allow(host: str) -> FetchLimits:
    return FetchLimits(allow_private=frozenset({host}))


@pytest.mark.parametrize(
    ("statuses", "times", "state"),
    [
        ([200], 1, TaskState.SUCCEEDED),
        ([204], 1, TaskState.SUCCEEDED),
        ([500, 503], 3, TaskState.SUCCEEDED),
        ([302], 2, TaskState.SUCCEEDED),
        ([500] * 9, 3, TaskState.FAILED),
    ],
)
def test_the_end_is_told_until_it_is_heard(
    kept: Kept, statuses: list[int], times: int, state: TaskState
) -> None:
    with listening(statuses) as (host, told):
        batch = kept.create(f"http://{host}/hook?x=1")
        assert not kept.batches.advance()
        assert kept.tell(allow(host)).state == state
    expected = ("/hook?x=1", "application/json", {"id": batch.id, "status": "failed"})
    assert told == [expected] * times


def test_a_cancelled_batch_is_told_when_it_is_over_and_once(kept: Kept) -> None:
    with listening([]) as (host, told):
        line = {"custom_id": "1", "method": "POST", "url": CHAT, "body": {"model": "m"}}
        batch = kept.create(f"http://{host}/", json.dumps(line))
        kept.batches.cancel(OWNER, batch.id)
        for _ in range(3):
            kept.batches.advance()
        kept.tell(allow(host))
    assert [one[2] for one in told] == [{"id": batch.id, "status": "cancelled"}]


def test_no_address_of_the_own_network_is_told(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    with listening([]) as (host, told):
        kept.create(f"http://{host}/?token=secret")
        kept.batches.advance()
        failed = kept.tell(FetchLimits(ports=frozenset({int(host.split(":")[1])})))
    assert (failed.state, failed.error_code, failed.attempts) == (
        TaskState.FAILED,
        "private_address",
        1,
    )
    assert told == []
    logged = [record.getMessage() for record in caplog.records if "told" in record.getMessage()]
    assert len(logged) == 1
    assert "private_address" in logged[0]
    assert "secret" not in logged[0]


def test_nobody_there_is_tried_again_and_given_up(kept: Kept) -> None:
    kept.create("http://127.0.0.1:1/")
    kept.batches.advance()
    failed = kept.tell(allow("127.0.0.1:1"))
    assert (failed.state, failed.error_code, failed.attempts) == (
        TaskState.FAILED,
        "endpoint_failed",
        3,
    )


@pytest.mark.parametrize("url", ["ftp://example.com/", "file:///etc/passwd", "", "example.com"])
def test_a_callback_that_is_no_url_is_refused_with_the_batch(kept: Kept, url: str) -> None:
    with pytest.raises(InputError, match="ds_batch_finish_callback"):
        kept.create(url)


def test_a_server_tells_the_whole_batch_and_counts_it_among_no_tasks(
    serve: Callable[..., Any], engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening([]) as (host, told):
        limits = replace(engine.processor.limits, fetch=allow(host))
        monkeypatch.setattr(engine.processor, "limits", limits)
        with serve(state_folder=tmp_path) as client:
            sent = client.post(
                "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", b"no JSON")}
            ).json()
            metadata = {"ds_batch_finish_callback": f"http://{host}/", "ds_name": "night"}
            asked = {"input_file_id": sent["id"], "endpoint": CHAT, "metadata": metadata}
            batch = client.post("/v1/batches", json=asked).json()
            end = time.monotonic() + 60
            while not told:
                assert time.monotonic() < end
                time.sleep(0.05)
            assert client.get("/api/v1/tasks").json()["total"] == 0
            over = client.get(f"/v1/batches/{batch['id']}").json()
    assert [one[2] for one in told] == [over]
    assert (over["status"], over["metadata"]) == ("failed", metadata)
