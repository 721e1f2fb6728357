"""Tasks: work that is asked for now and fetched later, in a line that outlives the process.

A runner claims a task for the length of a lease and renews it while it works; when the process is
killed, the lease runs out and the next runner takes the task up again, `max_attempts` times at
most. Owners take turns, and tasks of a lower priority wait for all others. States are DashScope's.
"""

import json
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    Select,
    String,
    Text,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.orm import Mapped, Session, mapped_column

from qianyan.errors import quote
from qianyan.server.database import (
    ConflictError,
    Database,
    NotFoundError,
    QuotaError,
    Rows,
    UtcTime,
    utc_now,
)


class TaskState(StrEnum):
    """Where a task stands, in DashScope's words; UNKNOWN is one that nobody has."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    UNKNOWN = "UNKNOWN"


FIRST, LATER = 0, 1
"""Priorities: tasks that somebody waits for, and work in bulk."""


@dataclass(frozen=True, kw_only=True)
class TaskLimits:
    """What tasks may cost and how long they live.

    Args:
        max_request_bytes: largest request of a task, as JSON.
        max_waiting: tasks that an owner may have in line.
        max_waiting_bytes: bytes of requests that an owner may have in line.
        max_attempts: how often a task is begun before it has failed.
        retry_s: seconds until a task that failed by no fault of its request is begun again;
            doubled each time.
        lease_s: seconds until a task of a process that has died is taken up again.
        max_run_s: longest time that one attempt may take.
        keep_s: how long a finished task and its result are kept.
    """

    max_request_bytes: int = 32_000_000
    max_waiting: int = 1_000
    max_waiting_bytes: int = 1_000_000_000
    max_attempts: int = 3
    retry_s: float = 2
    lease_s: float = 30
    max_run_s: float = 10_800
    keep_s: float = 86_400


class TaskRow(Rows):
    """A task's row."""

    __tablename__ = "tasks"
    __table_args__ = (
        Index("tasks_in_line", "state", "priority", "owner_id", "due_at", "id"),
        Index("tasks_of_owner", "owner_id", "created_at", "id"),
        Index("tasks_by_lease", "state", "leased_until_at"),
        Index("tasks_by_end", "finished_at"),
        Index("tasks_of_batch", "batch_id", "line"),
    )

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    owner_id: Mapped[str] = mapped_column(String(80))
    kind: Mapped[str] = mapped_column(String(40))
    model: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(10))
    priority: Mapped[int] = mapped_column()
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    request_bytes: Mapped[int] = mapped_column(BigInteger)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error_code: Mapped[str | None] = mapped_column(String(80))
    error_message: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column()
    runner_id: Mapped[str | None] = mapped_column(String(80))
    leased_until_at: Mapped[datetime | None] = mapped_column(UtcTime)
    due_at: Mapped[datetime] = mapped_column(UtcTime)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcTime)
    batch_id: Mapped[str | None] = mapped_column(
        String(80), ForeignKey("batches.id", name="tasks_batch", ondelete="CASCADE")
    )
    line: Mapped[int | None] = mapped_column()


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task as it stands; `result` once it has succeeded, the error's words once it has failed."""

    id: str
    owner_id: str
    kind: str
    model: str
    state: TaskState
    request: dict[str, Any]
    attempts: int
    created_at: datetime
    result: dict[str, Any] | None = None
    error_code: str | None = None
    error_message: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class TaskQuery:
    """Which of an owner's tasks are listed, newest first; pages are counted from 1."""

    page: int = 1
    page_size: int = 10
    state: TaskState | None = None
    model: str | None = None
    created_from: datetime | None = None
    created_until: datetime | None = None


@dataclass(frozen=True)
class TaskPage:
    """Some of an owner's tasks; `total` counts all that the query chooses."""

    tasks: tuple[Task, ...]
    total: int


class Tasks:
    """The line of tasks; every call may wait for the disk."""

    def __init__(self, database: Database, limits: TaskLimits | None = None) -> None:
        self.limits = limits or TaskLimits()
        self._database = database
        self._turns: dict[str, int] = {}  # by owner, when its last turn was
        self._turn = 0

    def submit(self, owner_id: str, kind: str, model: str, request: dict[str, Any]) -> Task:
        """Put a task in line; `kind` names the work that runners do for it.

        Raises:
            QuotaError: the request is too large, or the owner has too much in line.
        """
        size_bytes = len(json.dumps(request))
        if size_bytes > self.limits.max_request_bytes:
            raise QuotaError(
                f"The request has {size_bytes} bytes; expected at most "
                f"{self.limits.max_request_bytes} for a task.",
                code="request_too_large",
            )
        row = new_row(owner_id, kind, model, request, size_bytes=size_bytes)
        with self._database.writing() as session:
            self._check_room(session, owner_id, size_bytes)
            session.add(row)
        return _value(row)

    def find(self, owner_id: str, task_id: str) -> Task:
        """Find an owner's task; NotFoundError when it has none of this id, or none any more."""
        with self._database.reading() as session:
            return _value(_find_row(session, owner_id, task_id))

    def list_page(self, owner_id: str, query: TaskQuery, *, kind: str) -> TaskPage:
        """List an owner's tasks of a kind."""
        chosen = select(TaskRow).where(TaskRow.owner_id == owner_id, TaskRow.kind == kind)
        if query.state:
            chosen = chosen.where(TaskRow.state == query.state.value)
        if query.model:
            chosen = chosen.where(TaskRow.model == query.model)
        if query.created_from:
            chosen = chosen.where(TaskRow.created_at >= query.created_from)
        if query.created_until:
            chosen = chosen.where(TaskRow.created_at <= query.created_until)
        ordered = chosen.order_by(TaskRow.created_at.desc(), TaskRow.id.desc())
        skipped = (query.page - 1) * query.page_size
        with self._database.reading() as session:
            total = session.scalar(select(func.count()).select_from(chosen.subquery())) or 0
            rows = session.scalars(ordered.offset(skipped).limit(query.page_size)).all()
        return TaskPage(tuple(map(_value, rows)), total)

    def cancel(self, owner_id: str, task_id: str) -> Task:
        """Take an owner's task out of the line.

        Raises:
            NotFoundError: the owner has no such task.
            ConflictError: the task has begun or is over.
        """
        with self._database.writing() as session:
            row = _find_row(session, owner_id, task_id)
            if row.state != TaskState.PENDING:
                raise ConflictError(
                    "Failed to cancel the task, please confirm if the task is in PENDING status."
                )
            row.state, row.finished_at = TaskState.CANCELED.value, utc_now()
        return _value(row)

    def claim(self, runner_id: str) -> Task | None:
        """Begin the next task in line under a lease, or find none that is due."""
        with self._database.writing() as session:
            now = utc_now()
            self._take_up(session, now)
            chosen = self._next(session, now)
            row = None if chosen is None else session.scalar(chosen)
            if row is None:
                return None
            self._turn += 1
            self._turns[row.owner_id] = self._turn
            row.state, row.runner_id = TaskState.RUNNING.value, runner_id
            row.attempts += 1
            row.started_at = row.started_at or now
            row.leased_until_at = now + timedelta(seconds=self.limits.lease_s)
        return _value(row)

    def renew(self, task: Task, runner_id: str) -> bool:
        """Hold a task for another lease; False when it is no longer this runner's."""
        until = utc_now() + timedelta(seconds=self.limits.lease_s)
        return self._settle(task, runner_id, leased_until_at=until)

    def succeed(self, task: Task, runner_id: str, result: dict[str, Any]) -> bool:
        """Keep a task's result; False when the task is no longer this runner's."""
        return self._settle(
            task,
            runner_id,
            state=TaskState.SUCCEEDED.value,
            result=result,
            finished_at=utc_now(),
            leased_until_at=None,
        )

    def fail(self, task: Task, runner_id: str, *, code: str, message: str) -> bool:
        """Keep a task's error; False when the task is no longer this runner's."""
        return self._settle(
            task,
            runner_id,
            state=TaskState.FAILED.value,
            error_code=code,
            error_message=message,
            finished_at=utc_now(),
            leased_until_at=None,
        )

    def put_back(self, task: Task, runner_id: str, *, is_failed: bool) -> bool:
        """Put a task in line again: later when it failed; without counting when it was stopped."""
        wait_s = self.limits.retry_s * 2 ** (task.attempts - 1) if is_failed else 0
        return self._settle(
            task,
            runner_id,
            state=TaskState.PENDING.value,
            attempts=task.attempts if is_failed else task.attempts - 1,
            due_at=utc_now() + timedelta(seconds=wait_s),
            leased_until_at=None,
        )

    def sweep(self) -> int:
        """Delete the tasks that finished `keep_s` ago, those of batches apart; return how many."""
        oldest = utc_now() - timedelta(seconds=self.limits.keep_s)
        with self._database.writing() as session:
            old = delete(TaskRow).where(TaskRow.finished_at <= oldest, TaskRow.batch_id.is_(None))
            return len(session.scalars(old.returning(TaskRow.id)).all())

    def _settle(self, task: Task, runner_id: str, **values: Any) -> bool:
        mine = (
            TaskRow.id == task.id,
            TaskRow.state == TaskState.RUNNING.value,
            TaskRow.runner_id == runner_id,
            TaskRow.attempts == task.attempts,
        )
        with self._database.writing() as session:
            changed = session.scalars(
                update(TaskRow).where(*mine).values(**values).returning(TaskRow.id)
            )
            return len(changed.all()) == 1

    def _take_up(self, session: Session, now: datetime) -> None:
        """Put tasks of dead runners in line again, or give up those that were begun too often."""
        lost = (TaskRow.state == TaskState.RUNNING.value, TaskRow.leased_until_at < now)
        session.execute(
            update(TaskRow)
            .where(*lost, TaskRow.attempts >= self.limits.max_attempts)
            .values(
                state=TaskState.FAILED.value,
                error_code="interrupted",
                error_message="The server stopped each time while it worked on this task.",
                finished_at=now,
            )
        )
        session.execute(update(TaskRow).where(*lost).values(state=TaskState.PENDING.value))

    def _next(self, session: Session, now: datetime) -> Select[TaskRow] | None:
        """Choose the next task: by priority, then the owner with least running, then by age."""
        line, running = TaskState.PENDING.value, TaskState.RUNNING.value
        heads = session.execute(
            select(TaskRow.priority, TaskRow.owner_id, func.min(TaskRow.due_at))
            .where(TaskRow.state == line)
            .group_by(TaskRow.priority, TaskRow.owner_id)
        ).all()
        counted = session.execute(
            select(TaskRow.owner_id, func.count().label("running"))
            .where(TaskRow.state == running)
            .group_by(TaskRow.owner_id)
        )
        busy = {row.owner_id: row.running for row in counted}
        due = [(priority, owner) for priority, owner, due_at in heads if due_at <= now]
        if not due:
            return None
        priority, owner = min(
            due, key=lambda head: (head[0], busy.get(head[1], 0), self._turns.get(head[1], 0))
        )
        return (
            select(TaskRow)
            .where(
                TaskRow.state == line,
                TaskRow.priority == priority,
                TaskRow.owner_id == owner,
                TaskRow.due_at <= now,
            )
            .order_by(TaskRow.due_at, TaskRow.id)
            .limit(1)
            .with_for_update(skip_locked=True)  # where a database locks rows, runners do not meet
        )

    def _check_room(self, session: Session, owner_id: str, size_bytes: int) -> None:
        line = select(func.count(), func.coalesce(func.sum(TaskRow.request_bytes), 0)).where(
            TaskRow.owner_id == owner_id,
            TaskRow.state == TaskState.PENDING.value,
            TaskRow.priority == FIRST,
        )
        number, total = session.execute(line).one()
        if number >= self.limits.max_waiting or total + size_bytes > self.limits.max_waiting_bytes:
            raise QuotaError(
                f"This key has {number} tasks in line; expected at most "
                f"{self.limits.max_waiting} with {self.limits.max_waiting_bytes} bytes together. "
                "Wait for some to finish or cancel them."
            )


def new_row(
    owner_id: str, kind: str, model: str, request: dict[str, Any], *, size_bytes: int
) -> TaskRow:
    """Make the row of a task that begins in line."""
    now = utc_now()
    return TaskRow(
        id=str(uuid.uuid4()),
        owner_id=owner_id,
        kind=kind,
        model=model,
        state=TaskState.PENDING.value,
        priority=FIRST,
        request=request,
        request_bytes=size_bytes,
        attempts=0,
        due_at=now,
        created_at=now,
    )


def _find_row(session: Session, owner_id: str, task_id: str) -> TaskRow:
    chosen = select(TaskRow).where(TaskRow.id == task_id, TaskRow.owner_id == owner_id)
    row = session.scalar(chosen)
    if row is None:
        raise NotFoundError(f"There is no task {quote(task_id)}; results are kept for a time only.")
    return row


def _value(row: TaskRow) -> Task:
    return Task(
        id=row.id,
        owner_id=row.owner_id,
        kind=row.kind,
        model=row.model,
        state=TaskState(row.state),
        request=row.request,
        attempts=row.attempts,
        created_at=row.created_at,
        result=row.result,
        error_code=row.error_code,
        error_message=row.error_message,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
