"""Batches: every line checked, answered once, written out, whatever happens in between."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from qianyan.errors import InputError
from qianyan.server.batch_lines import BatchLimits, read_body, read_lines
from qianyan.server.batch_rows import BatchQuery, BatchRow, BatchState
from qianyan.server.batches import LINE_KIND, Batches
from qianyan.server.database import ConflictError, NotFoundError, QuotaError, open_database
from qianyan.server.files import Files
from qianyan.server.owned import PageQuery
from qianyan.server.store import ContentStore
from qianyan.server.tasks import TaskLimits, Tasks

ALICE, BOB = "owner-alice", "owner-bob"
CHAT = "/v1/chat/completions"


class Kept:
    """What a server keeps, without its routes."""

    def __init__(self, folder: Path, **limits: int) -> None:
        database = open_database(folder)
        self.files = Files(database, ContentStore(folder / "files"))
        self.tasks = Tasks(database, TaskLimits(retry_s=0, max_attempts=2))
        self.batches = Batches(database, self.files, BatchLimits(**limits))

    def create(self, lines: list[Any], **words: Any) -> BatchRow:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        file = self.files.upload(ALICE, "in.jsonl", "batch", [text.encode()])
        return self.batches.create(ALICE, file.id, CHAT, **words)

    def answer(self, number: int = 10**6) -> list[str]:
        """Answer at most so many lines, one after the other; say which."""
        work, asked = self.batches.work(answer), []
        while number and (task := self.tasks.claim("r")) is not None:
            asked.append(task.request["custom_id"])
            try:
                self.tasks.succeed(task, "r", asyncio.run(work(task)))  # type: ignore[arg-type]
            except InputError as error:
                self.tasks.fail(task, "r", code=error.code, message=str(error))
            number -= 1
        return asked

    def read(self, file_id: str | None) -> list[Any]:
        assert file_id is not None
        with self.files.open(ALICE, file_id) as file:
            return [json.loads(line) for line in file]

    def find(self, batch: BatchRow) -> BatchRow:
        return self.batches.find(ALICE, batch.id)


async def answer(_owner_id: str, body: dict[str, Any]) -> dict[str, Any]:
    if body.get("temperature") == 9:
        raise InputError("temperature is 9; expected at most 2.")
    return {"echo": body["messages"][0]["content"]}


def request(custom_id: str, text: str = "你好", **body: Any) -> dict[str, Any]:
    whole = {"model": "m", "messages": [{"role": "user", "content": text}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": whole}


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_answers_and_errors_come_in_two_files(kept: Kept) -> None:
    batch = kept.create([request("a"), request("b", temperature=9), "", request("c", "火")])
    assert batch.state == "validating"
    assert kept.batches.advance()
    begun = kept.find(batch)
    assert (begun.state, begun.total, begun.completed, begun.model) == ("in_progress", 3, 0, "m")
    assert kept.answer(1) == ["a"]
    kept.batches.advance()
    assert (kept.find(batch).state, kept.find(batch).completed) == ("in_progress", 1)
    assert kept.answer() == ["b", "c"]
    kept.batches.advance()
    done = kept.find(batch)
    assert (done.state, done.total, done.completed, done.failed) == ("completed", 3, 2, 1)
    assert None not in (done.in_progress_at, done.finalizing_at, done.completed_at)
    good, bad = kept.read(done.output_file_id), kept.read(done.error_file_id)
    assert [(line["custom_id"], line["response"]["body"]) for line in good] == [
        ("a", {"echo": "你好"}),
        ("c", {"echo": "火"}),
    ]
    assert {line["response"]["status_code"] for line in good} == {200}
    (error,) = bad
    assert (error["custom_id"], error["response"]) == ("b", None)
    assert error["error"] == {
        "code": "bad_input",
        "message": "temperature is 9; expected at most 2.",
    }


def test_a_batch_without_errors_has_no_error_file(kept: Kept) -> None:
    batch = kept.create([request("a")])
    kept.batches.advance()
    kept.answer()
    kept.batches.advance()
    assert kept.find(batch).error_file_id is None
    assert kept.batches.ids() == set()
    with pytest.raises(NotFoundError):
        kept.files.store.open(batch.id)


@pytest.mark.parametrize(
    ("lines", "code", "line"),
    [
        ([request("a"), "{"], "invalid_json_line", 2),
        (['{"custom_id": NaN}'], "invalid_json_line", 1),
        (["[" * 100_000], "invalid_json_line", 1),
        (["7"], "invalid_json_line", 1),
        ([request("a"), "", request("a")], "duplicate_custom_id", 3),
        ([request("a"), request("b", model="n")], "mismatched_model", 2),
        ([{**request("a"), "url": "/v1/embeddings"}], "url_not_found", 1),
        ([{**request("a"), "method": "GET"}], "invalid_method", 1),
        ([request("")], "invalid_custom_id", 1),
        ([request("\ud800")], "invalid_custom_id", 1),
        ([{**request("a"), "custom_id": 7}], "invalid_custom_id", 1),
        ([{**request("a"), "body": []}], "invalid_request", 1),
        ([request("a", model="")], "invalid_request", 1),
        ([request("a", stream=True)], "invalid_request", 1),
        ([request("a", "x" * 2000)], "line_too_large", 1),
        ([request(f"{number}") for number in range(6)], "too_many_lines", 6),
        (["\n\n "], "empty_file", None),
    ],
)
def test_an_input_with_a_bad_line_fails_and_says_which(
    tmp_path: Path, lines: list[Any], code: str, line: int | None
) -> None:
    kept = Kept(tmp_path, max_lines=5, max_line_bytes=1000)
    if lines == ["[" * 100_000]:
        kept = Kept(tmp_path, max_line_bytes=200_000)
    batch = kept.create(lines)
    assert not kept.batches.advance()
    failed = kept.find(batch)
    assert (failed.state, failed.total) == ("failed", 0)
    assert failed.failed_at is not None
    (error,) = failed.errors or ()
    assert (error["code"], error["line"]) == (code, line)
    assert kept.tasks.claim("r") is None
    with pytest.raises(NotFoundError):
        kept.files.store.open(batch.id)


def test_at_most_so_many_errors_are_told(tmp_path: Path) -> None:
    kept = Kept(tmp_path, max_errors=3)
    batch = kept.create(["{"] * 10)
    kept.batches.advance()
    assert [error["line"] for error in kept.find(batch).errors or ()] == [1, 2, 3]


def test_lines_are_read_again_from_where_they_lie() -> None:
    asked = [request("a", "一"), request("b", "x" * 50), request("c", "三")]
    text = "\r\n\n".join(json.dumps(one, ensure_ascii=False) for one in asked).encode()
    lines, errors = read_lines(BytesIO(text), CHAT, BatchLimits())
    assert errors == []
    bodies = [read_body(BytesIO(text), line.offset_bytes, line.size_bytes) for line in lines]
    assert bodies == [one["body"] for one in asked]


def test_a_line_too_long_does_not_shift_those_after_it() -> None:
    text = f"{json.dumps(request('a', 'x' * 5000))}\n{json.dumps(request('b'))}".encode()
    lines, errors = read_lines(BytesIO(text), CHAT, BatchLimits(max_line_bytes=300))
    assert [(error.code, error.line) for error in errors] == [("line_too_large", 1)]
    (line,) = lines
    assert read_body(BytesIO(text), line.offset_bytes, line.size_bytes) == request("b")["body"]


def test_cancelling_keeps_what_is_done_and_lets_end_what_has_begun(kept: Kept) -> None:
    batch = kept.create([request("a"), request("b"), request("c")])
    kept.batches.advance()
    kept.answer(1)
    running = kept.tasks.claim("r")
    assert running is not None
    assert kept.batches.cancel(ALICE, batch.id).state == "cancelling"
    kept.batches.advance()
    assert kept.find(batch).state == "cancelling"
    kept.tasks.succeed(running, "r", {"echo": "late"})
    kept.batches.advance()
    done = kept.find(batch)
    assert (done.state, done.total, done.completed, done.failed) == ("cancelled", 3, 2, 0)
    assert [line["custom_id"] for line in kept.read(done.output_file_id)] == ["a", "b"]
    (left,) = kept.read(done.error_file_id)
    assert (left["custom_id"], left["error"]["code"]) == ("c", "batch_cancelled")
    with pytest.raises(ConflictError, match="is cancelled"):
        kept.batches.cancel(ALICE, batch.id)


def test_a_batch_cancelled_before_it_is_checked_asks_nothing(kept: Kept) -> None:
    batch = kept.create([request("a")])
    kept.batches.cancel(ALICE, batch.id)
    kept.batches.advance()
    done = kept.find(batch)
    assert (done.state, done.output_file_id, done.error_file_id) == ("cancelled", None, None)
    assert kept.tasks.claim("r") is None


def test_a_batch_whose_window_is_over_keeps_what_is_done(tmp_path: Path) -> None:
    kept = Kept(tmp_path, min_window_s=0)
    batch = kept.create([request("a"), request("b")], completion_window="0h")
    kept.batches.advance()
    kept.answer(1)
    kept.batches.advance()
    done = kept.find(batch)
    assert (done.state, done.completed) == ("expired", 1)
    assert done.expired_at is not None
    assert [line["custom_id"] for line in kept.read(done.output_file_id)] == ["a"]
    (left,) = kept.read(done.error_file_id)
    assert (left["custom_id"], left["error"]["code"]) == ("b", "batch_expired")


def test_the_input_may_be_deleted_while_its_batch_runs(kept: Kept) -> None:
    batch = kept.create([request("a")])
    kept.files.delete(ALICE, batch.input_file_id)
    kept.batches.advance()
    kept.answer()
    kept.batches.advance()
    assert kept.find(batch).completed == 1


@pytest.mark.parametrize("window", ["", "1h", "24", "15d", "24s", "99999d", "-24h"])
def test_a_window_that_is_not_offered_is_refused(kept: Kept, window: str) -> None:
    with pytest.raises(InputError, match="expected 24h to 336h"):
        kept.create([request("a")], completion_window=window)


def test_what_a_batch_is_made_of_is_checked(tmp_path: Path) -> None:
    kept = Kept(tmp_path, max_unfinished=1)
    picture = kept.files.upload(ALICE, "a.png", "vision", [b"x"])
    with pytest.raises(InputError, match="expected batch"):
        kept.batches.create(ALICE, picture.id, CHAT)
    with pytest.raises(InputError, match="expected one of /v1/chat/completions"):
        kept.batches.create(ALICE, picture.id, "/v1/embeddings")
    with pytest.raises(InputError, match="metadata is too large"):
        kept.create([request("a")], metadata={"k": "v" * 513})
    batch = kept.create([request("a")], metadata={"site": "北"})
    assert kept.find(batch).note == {"site": "北"}
    with pytest.raises(QuotaError, match="1 batches that are not over"):
        kept.create([request("a")])


def test_another_owner_neither_sees_nor_uses_nor_cancels(kept: Kept) -> None:
    batch = kept.create([request("a")])
    for call in (kept.batches.find, kept.batches.cancel):
        with pytest.raises(NotFoundError):
            call(BOB, batch.id)
    with pytest.raises(NotFoundError):
        kept.batches.create(BOB, batch.input_file_id, CHAT)
    assert kept.batches.list_page(BOB, BatchQuery(), PageQuery()).items == ()


def test_listing_goes_through_all_batches_newest_first(kept: Kept) -> None:
    made = [kept.create([request("a")]).id for _ in range(3)]
    first = kept.batches.list_page(ALICE, BatchQuery(), PageQuery(limit=2))
    assert ([one.id for one in first.items], first.has_more) == ([made[2], made[1]], True)
    rest = kept.batches.list_page(ALICE, BatchQuery(), PageQuery(after=made[1], limit=2))
    assert ([one.id for one in rest.items], rest.has_more) == ([made[0]], False)


def test_a_list_chooses_by_name_state_file_and_time(kept: Kept) -> None:
    one, other = (
        kept.create([request(name)], metadata={"ds_name": name}) for name in ("night", "day")
    )
    kept.batches.cancel(ALICE, other.id)
    plain = kept.create([request("a")])
    cases = [
        (BatchQuery(), [plain, other, one]),
        (BatchQuery(name="night"), [one]),
        (BatchQuery(states=(BatchState.CANCELLING, BatchState.FAILED)), [other]),
        (BatchQuery(input_file_ids=(one.input_file_id, plain.input_file_id)), [plain, one]),
        (BatchQuery(created_from=other.created_at), [plain, other]),
        (BatchQuery(created_until=one.created_at), [one]),
    ]
    for query, batches in cases:
        page = kept.batches.list_page(ALICE, query, PageQuery())
        assert [row.id for row in page.items] == [row.id for row in batches], query
        assert page.total == len(batches)


def test_tasks_that_somebody_waits_for_go_before_lines(kept: Kept) -> None:
    kept.create([request("a")])
    kept.batches.advance()
    waited_for = kept.tasks.submit(BOB, "chat", "m", {})
    first = kept.tasks.claim("r")
    assert first is not None
    assert first.id == waited_for.id


SERVER = """
import asyncio, sys, time
from pathlib import Path
from qianyan.server.database import open_database
from qianyan.server.files import Files
from qianyan.server.store import ContentStore
from qianyan.server.tasks import TaskLimits, Tasks
from qianyan.server.task_runner import TaskRunner
from qianyan.server.batches import LINE_KIND, Batches

folder = Path(sys.argv[1])
database = open_database(folder)
tasks = Tasks(database, TaskLimits(lease_s=1, max_attempts=9))
batches = Batches(database, Files(database, ContentStore(folder / "files")))

async def answer(owner_id, body):
    print(body["messages"][0]["content"], flush=True)
    await asyncio.sleep(0.05)
    return {"echo": body["messages"][0]["content"]}

async def main():
    runner = TaskRunner(tasks, {LINE_KIND: batches.work(answer)}, concurrency=2)
    run = asyncio.create_task(runner.run())
    while not run.done():
        await asyncio.to_thread(batches.advance)
        await asyncio.sleep(0.05)

asyncio.run(main())
"""


def serve_until(folder: Path, is_over: Callable[[int], bool]) -> list[str]:
    """Run the server and kill it -9 when enough lines were asked; give those that were."""
    with subprocess.Popen(
        [sys.executable, folder / "server.py", folder], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        asked: list[str] = []
        try:
            while not is_over(len(asked)):
                asked.append(process.stdout.readline())
        finally:
            os.kill(process.pid, signal.SIGKILL)
        return [line.strip() for line in asked + process.stdout.read().splitlines()]


def test_no_line_is_lost_or_asked_again_whose_answer_is_kept(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    batch = kept.create([request(f"id-{number}", f"{number}") for number in range(20)])
    (tmp_path / "server.py").write_text(SERVER)
    asked, kept_before = Counter[str](), set[str]()
    for _ in range(3):
        asked.update(serve_until(tmp_path, lambda number: number >= 5))
        now = {line["custom_id"] for line in answered(kept, batch)}
        assert kept_before <= now
        kept_before = now
    again = Counter[str]()
    end = time.monotonic() + 200

    def is_over(number: int) -> bool:
        while number + len(kept_before) >= 20 and kept.find(batch).state != "completed":
            assert time.monotonic() < end, kept.find(batch).state
            time.sleep(0.05)
        return kept.find(batch).state == "completed"

    again.update(serve_until(tmp_path, is_over))
    assert not {f"id-{text}" for text in again} & kept_before
    done = kept.find(batch)
    lines = kept.read(done.output_file_id)
    assert [line["custom_id"] for line in lines] == [f"id-{number}" for number in range(20)]
    assert [line["response"]["body"]["echo"] for line in lines] == [f"{n}" for n in range(20)]
    assert sum((asked + again).values()) <= 20 + 3 * 2  # two were being asked at each death


def answered(kept: Kept, batch: BatchRow) -> list[Any]:
    records = kept.batches._records(batch.id, batch.state, is_good=True)  # type: ignore[arg-type]
    return [json.loads(record) for record in records]


def test_lines_have_a_kind_of_their_own(kept: Kept) -> None:
    kept.create([request("a")])
    kept.batches.advance()
    task = kept.tasks.claim("r")
    assert task is not None
    assert task.kind == LINE_KIND


def test_a_batch_that_is_refused_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    kept = Kept(tmp_path, max_unfinished=1)
    kept.create([request("a")])
    before = sorted(one.name for one in (tmp_path / "files").iterdir())
    file = kept.files.upload(ALICE, "in.jsonl", "batch", [json.dumps(request("b")).encode()])
    with pytest.raises(QuotaError, match="batches that are not over"):
        kept.batches.create(ALICE, file.id, CHAT)
    after = sorted(one.name for one in (tmp_path / "files").iterdir())
    assert after == sorted([*before, file.id])


def test_a_batch_whose_input_was_lost_fails_alone(kept: Kept) -> None:
    lost, good = kept.create([request("a")]), kept.create([request("b")])
    kept.files.store.delete(lost.id)
    kept.batches.advance()
    assert kept.answer() == ["b"]
    kept.batches.advance()
    assert kept.find(good).state == BatchState.COMPLETED
    found = kept.find(lost)
    assert (found.state, found.errors and found.errors[0]["code"]) == ("failed", "input_file_gone")
