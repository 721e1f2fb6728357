"""The line of tasks: states, leases, turns, room, and what each owner sees."""

import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from sqlalchemy import select

from qianyan.server.batch_rows import BatchRow
from qianyan.server.database import (
    ConflictError,
    NotFoundError,
    QuotaError,
    open_database,
)
from qianyan.server.errors import RefusedError
from qianyan.server.owned import PageQuery
from qianyan.server.task_rows import Task, TaskRow, TaskState
from qianyan.server.tasks import TaskLimits, TaskQuery, Tasks

ALICE, BOB = "owner-alice", "owner-bob"
ASK = {"prompt": "你好"}


def open_tasks(folder: Path, **limits: float) -> Tasks:
    return Tasks(open_database(folder), TaskLimits(**limits))  # type: ignore[arg-type]


@pytest.fixture
def tasks(tmp_path: Path) -> Tasks:
    return open_tasks(tmp_path)


def begin(tasks: Tasks, runner: str = "r1") -> Task:
    task = tasks.claim(runner)
    assert task is not None
    return task


def test_a_task_goes_through_its_states(tasks: Tasks) -> None:
    sent = tasks.submit(ALICE, "chat", "m", ASK)
    assert (sent.state, sent.attempts, sent.started_at) == (TaskState.PENDING, 0, None)
    assert tasks.find(ALICE, sent.id, kind="chat") == sent
    begun = begin(tasks)
    assert (begun.id, begun.state, begun.attempts) == (sent.id, TaskState.RUNNING, 1)
    assert begun.request == ASK
    assert tasks.claim("r2") is None
    assert tasks.succeed(begun, "r1", {"text": "好"})
    done = tasks.find(ALICE, sent.id, kind="chat")
    assert (done.state, done.result) == (TaskState.SUCCEEDED, {"text": "好"})
    assert done.created_at <= (done.started_at or done.created_at) <= done.finished_at  # type: ignore[operator]


def test_tasks_and_results_outlive_the_process(tmp_path: Path) -> None:
    first = open_tasks(tmp_path)
    waiting, done = (first.submit(ALICE, "chat", "m", ASK) for _ in range(2))
    begun = begin(first)
    first.fail(begun, "r1", code="bad_input", message="No.")
    again = open_tasks(tmp_path)
    failed = again.find(ALICE, begun.id, kind="chat")
    assert (failed.state, failed.error_code, failed.error_message) == (
        TaskState.FAILED,
        "bad_input",
        "No.",
    )
    assert begin(again).id == ({waiting.id, done.id} - {begun.id}).pop()


def test_another_owner_neither_sees_nor_cancels_a_task(tasks: Tasks) -> None:
    sent = tasks.submit(ALICE, "chat", "m", ASK)
    for call in (tasks.find, tasks.cancel):
        with pytest.raises(NotFoundError):
            call(BOB, sent.id, kind="chat")
    assert tasks.list_page(BOB, TaskQuery(), PageQuery(), kind="chat").total == 0


def test_only_a_task_in_line_is_cancelled(tasks: Tasks) -> None:
    gone, begun = (tasks.submit(ALICE, "chat", "m", ASK) for _ in range(2))
    assert tasks.cancel(ALICE, gone.id, kind="chat").state == TaskState.CANCELED
    running = begin(tasks)
    assert running.id == begun.id
    for task_id in (gone.id, begun.id):
        with pytest.raises(ConflictError, match="please confirm if the task is in PENDING status"):
            tasks.cancel(ALICE, task_id, kind="chat")
    assert tasks.claim("r1") is None


def test_a_task_of_a_dead_runner_is_taken_up_when_its_lease_is_over(tmp_path: Path) -> None:
    tasks = open_tasks(tmp_path, lease_s=0.2)
    tasks.submit(ALICE, "chat", "m", ASK)
    lost = begin(tasks, "dead")
    assert tasks.claim("r2") is None
    time.sleep(0.15)
    assert tasks.renew(lost, "dead")
    time.sleep(0.1)
    assert tasks.claim("r2") is None
    time.sleep(0.15)
    taken = begin(tasks, "r2")
    assert (taken.id, taken.attempts) == (lost.id, 2)
    for late in (tasks.renew(lost, "dead"), tasks.succeed(lost, "dead", {"text": "late"})):
        assert not late
    assert tasks.succeed(taken, "r2", {"text": "good"})
    assert tasks.find(ALICE, lost.id, kind="chat").result == {"text": "good"}


def test_a_task_of_a_runner_known_to_be_dead_is_taken_up_at_once(tasks: Tasks) -> None:
    tasks.submit(ALICE, "chat", "m", ASK)
    lost = begin(tasks, "dead")
    tasks.end_leases()
    assert (begin(tasks, "r2").id, tasks.renew(lost, "dead")) == (lost.id, False)


def test_a_task_whose_process_dies_each_time_has_failed_in_the_end(tmp_path: Path) -> None:
    tasks = open_tasks(tmp_path, lease_s=-1, max_attempts=2)
    sent = tasks.submit(ALICE, "chat", "m", ASK)
    assert [begin(tasks).attempts, begin(tasks).attempts] == [1, 2]
    assert tasks.claim("r1") is None
    failed = tasks.find(ALICE, sent.id, kind="chat")
    assert (failed.state, failed.error_code) == (TaskState.FAILED, "interrupted")


def test_a_task_put_back_waits_when_it_failed_and_counts_only_then(tmp_path: Path) -> None:
    tasks = open_tasks(tmp_path, retry_s=0.2)
    tasks.submit(ALICE, "chat", "m", ASK)
    assert tasks.put_back(begin(tasks), "r1", is_failed=False)
    again = begin(tasks)
    assert again.attempts == 1
    assert tasks.put_back(again, "r1", is_failed=True)
    assert tasks.claim("r1") is None
    time.sleep(0.25)
    assert begin(tasks).attempts == 2


def test_owners_take_turns(tasks: Tasks) -> None:
    for owner in [ALICE] * 4 + [BOB] * 2:
        tasks.submit(owner, "chat", "m", ASK)
    claimed = []
    while (task := tasks.claim("r1")) is not None:  # one at a time: nothing else runs
        claimed.append(task.owner_id)
        tasks.succeed(task, "r1", {})
    assert claimed == [ALICE, BOB, ALICE, BOB, ALICE, ALICE]


def test_the_owner_with_least_running_is_next(tasks: Tasks) -> None:
    for owner in [ALICE] * 4:
        tasks.submit(owner, "chat", "m", ASK)
    begin(tasks), begin(tasks)
    tasks.submit(BOB, "chat", "m", ASK)
    tasks.submit(BOB, "chat", "m", ASK)
    assert [begin(tasks).owner_id for _ in range(4)] == [BOB, BOB, ALICE, ALICE]


def test_an_owner_has_room_for_so_many_tasks(tmp_path: Path) -> None:
    tasks = open_tasks(tmp_path, max_waiting=2, max_request_bytes=40, max_waiting_bytes=60)
    tasks.submit(ALICE, "chat", "m", {"a": "x" * 20})
    with pytest.raises(QuotaError, match="expected at most 40"):
        tasks.submit(ALICE, "chat", "m", {"a": "x" * 40})
    with pytest.raises(RefusedError, match="60 bytes together") as caught:
        tasks.submit(ALICE, "chat", "m", {"a": "x" * 30})
    assert (caught.value.status, caught.value.retry_after_s) == (429, 2)
    tasks.submit(ALICE, "chat", "m", {})
    with pytest.raises(RefusedError, match="has 2 tasks in line"):
        tasks.submit(ALICE, "chat", "m", {})
    tasks.submit(BOB, "chat", "m", {})
    begin(tasks)
    tasks.submit(ALICE, "chat", "m", {})


def test_listing_counts_all_and_shows_a_page(tasks: Tasks) -> None:
    sent = [tasks.submit(ALICE, "chat", f"m{number % 2}", ASK) for number in range(5)]
    tasks.submit(ALICE, "other", "m0", ASK)
    tasks.submit(BOB, "chat", "m0", ASK)
    pages = [
        tasks.list_page(ALICE, TaskQuery(), PageQuery(number=number, limit=2), kind="chat")
        for number in (1, 2, 3)
    ]
    assert [page.total for page in pages] == [5, 5, 5]
    seen = [task.id for page in pages for task in page.items]
    assert seen == [task.id for task in reversed(sent)]
    tasks.cancel(ALICE, sent[1].id, kind="chat")
    chosen = [
        TaskQuery(state=TaskState.CANCELED),
        TaskQuery(model="m1"),
        TaskQuery(created_from=sent[3].created_at),
        TaskQuery(created_until=sent[0].created_at),
    ]
    listed = [tasks.list_page(ALICE, one, PageQuery(), kind="chat").items for one in chosen]
    found = [[task.id for task in items] for items in listed]
    assert found == [[sent[1].id], [sent[3].id, sent[1].id], [sent[4].id, sent[3].id], [sent[0].id]]


@pytest.mark.parametrize("end", ["succeed", "fail", "cancel", "interrupted", "late"])
def test_what_was_asked_is_forgotten_when_a_task_is_over(tmp_path: Path, end: str) -> None:
    tasks = open_tasks(tmp_path, lease_s=-1, max_attempts=1, max_wait_s=0)
    sent = tasks.submit(ALICE, "chat", "m", {"picture": "a face"})
    if end == "succeed":
        tasks.succeed(begin(tasks), "r1", {"text": "好"})
    elif end == "fail":
        tasks.fail(begin(tasks), "r1", code="bad_input", message="No.")
    elif end == "cancel":
        tasks.cancel(ALICE, sent.id, kind="chat")
    elif end == "interrupted":
        begin(tasks)
        assert tasks.claim("r2") is None
    else:
        tasks.sweep()
    assert tasks.find(ALICE, sent.id, kind="chat").finished_at is not None
    with open_database(tmp_path).reading() as session:
        assert session.scalars(select(TaskRow.request)).all() == [{}]


def test_a_task_is_found_by_its_kind_only(tasks: Tasks) -> None:
    line = tasks.submit(ALICE, "batch_line", "m", ASK)
    for call in (tasks.find, tasks.cancel):
        with pytest.raises(NotFoundError):
            call(ALICE, line.id, kind="chat")


def test_results_are_gone_when_their_time_is_over_swept_or_not(tmp_path: Path) -> None:
    tasks = open_tasks(tmp_path, keep_s=0.1)
    sent = tasks.submit(ALICE, "chat", "m", ASK)
    tasks.succeed(begin(tasks), "r1", {"text": "好"})
    assert tasks.find(ALICE, sent.id, kind="chat").result
    time.sleep(0.15)
    with pytest.raises(NotFoundError):
        tasks.find(ALICE, sent.id, kind="chat")
    assert tasks.list_page(ALICE, TaskQuery(), PageQuery(), kind="chat").total == 0


def test_a_task_that_waits_too_long_has_failed(tmp_path: Path) -> None:
    tasks = open_tasks(tmp_path, max_wait_s=0.1)
    sent = tasks.submit(ALICE, "chat", "m", ASK)
    tasks.sweep()
    assert tasks.find(ALICE, sent.id, kind="chat").state == TaskState.PENDING
    time.sleep(0.15)
    tasks.sweep()
    failed = tasks.find(ALICE, sent.id, kind="chat")
    assert (failed.state, failed.error_code) == (TaskState.FAILED, "task_timed_out")
    assert tasks.claim("r1") is None


def test_finished_tasks_are_swept_when_their_time_is_over(tmp_path: Path) -> None:
    tasks = open_tasks(tmp_path, keep_s=0.1)
    done, waiting = (tasks.submit(ALICE, "chat", "m", ASK) for _ in range(2))
    tasks.cancel(ALICE, done.id, kind="chat")
    assert tasks.sweep() == 0
    time.sleep(0.15)
    assert tasks.sweep() == 1
    assert tasks.find(ALICE, waiting.id, kind="chat").state == TaskState.PENDING
    with pytest.raises(NotFoundError):
        tasks.find(ALICE, done.id, kind="chat")


class Line(RuleBasedStateMachine):
    """Whatever runners do, and however often they die, no task is lost or done twice."""

    begun = Bundle("begun")

    def __init__(self) -> None:
        super().__init__()
        from sqlalchemy import create_engine
        from sqlalchemy.pool import StaticPool

        from qianyan.server.database import Database, Rows

        engine = create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
        Rows.metadata.create_all(engine)
        assert BatchRow.__tablename__ in Rows.metadata.tables  # tasks refer to it
        self.tasks = Tasks(Database(engine), TaskLimits(lease_s=-1, max_attempts=3, retry_s=0))
        self.owner: dict[str, str] = {}
        self.runs: dict[str, int] = {}
        self.results: dict[str, int] = {}

    @rule(owner=st.sampled_from([ALICE, BOB]))
    def submit(self, owner: str) -> None:
        self.owner[self.tasks.submit(owner, "chat", "m", {}).id] = owner

    @rule(target=begun, runner=st.sampled_from(["r1", "r2"]))
    def claim(self, runner: str) -> object:
        # A lease that is over at once: every claim may take up what another one has begun.
        task = self.tasks.claim(runner)
        if task is None:
            return multiple()
        self.runs[task.id] = self.runs.get(task.id, 0) + 1
        assert task.attempts == self.runs[task.id] <= 3
        assert task.id not in self.results
        return (task, runner)

    @rule(one=consumes(begun), is_good=st.booleans())
    def finish(self, one: tuple[Task, str], is_good: bool) -> None:
        task, runner = one
        is_kept = (
            self.tasks.succeed(task, runner, {"attempt": task.attempts})
            if is_good
            else self.tasks.fail(task, runner, code="c", message="m")
        )
        if is_kept:
            assert task.id not in self.results
            assert task.attempts == self.runs[task.id]
            self.results[task.id] = task.attempts

    @invariant()
    def every_task_is_there(self) -> None:
        total = sum(
            self.tasks.list_page(owner, TaskQuery(), PageQuery(), kind="chat").total
            for owner in (ALICE, BOB)
        )
        assert total == len(self.owner)
        for task_id in self.results:
            assert (
                self.tasks.find(self.owner[task_id], task_id, kind="chat").finished_at is not None
            )


Line.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestLine = Line.TestCase
