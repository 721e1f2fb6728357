"""Tasks: work that is asked for now and fetched later, in a line that outlives the process.

A runner claims a task for the length of a lease and renews it while it works; when the process is
killed, the lease runs out and the next runner takes the task up again, `max_attempts` times at
most. Owners take turns, and tasks of a lower priority wait for all others. States are DashScope's.
"""

import json
import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, select, update
from sqlalchemy.orm import Session

from qianyan.server.database import ConflictError, Database, QuotaError, utc_now
from qianyan.server.errors import RefusedError
from qianyan.server.owned import Page, PageQuery, created_within, find_owned, list_owned
from qianyan.server.task_rows import (
    FIRST,
    WITHOUT_BODIES,
    Task,
    TaskRow,
    TaskState,
    end_values,
    new_row,
    to_task,
)

NOT_PENDING = "Failed to cancel the task, please confirm if the task is in PENDING status."
"""Bailian's sentence, for which clients look."""
TOO_LONG = "task_timed_out"
"""The code of a task that took or waited longer than one may."""


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
        max_wait_s: longest time in line, lines of batches apart, which have a window of their own.
        keep_s: how long a finished task and its result are kept.
    """

    max_request_bytes: int = 32_000_000
    max_waiting: int = 1_000
    max_waiting_bytes: int = 1_000_000_000
    max_attempts: int = 3
    retry_s: float = 2
    lease_s: float = 30
    max_run_s: float = 10_800
    max_wait_s: float = 86_400
    keep_s: float = 86_400


@dataclass(frozen=True, kw_only=True)
class TaskQuery:
    """Which of an owner's tasks are listed."""

    state: TaskState | None = None
    model: str | None = None
    created_from: datetime | None = None
    created_until: datetime | None = None


class Tasks:
    """The line of tasks; every call may wait for the disk."""

    def __init__(self, database: Database, limits: TaskLimits | None = None) -> None:
        self.limits = limits or TaskLimits()
        self._database = database
        self._turns: dict[str, int] = {}  # by owner, when its last turn was
        self._turn = 0

    def submit(
        self,
        owner_id: str,
        kind: str,
        model: str,
        request: dict[str, Any],
        *,
        request_id: str | None = None,
    ) -> Task:
        """Put a task in line; `kind` names the work that runners do for it.

        Raises:
            QuotaError: the request is too large.
            RefusedError: 429, the owner has too much in line.
        """
        size_bytes = len(json.dumps(request))
        if size_bytes > self.limits.max_request_bytes:
            raise QuotaError(
                f"The request has {size_bytes} bytes; expected at most "
                f"{self.limits.max_request_bytes} for a task.",
                code="request_too_large",
            )
        row = new_row(owner_id, kind, model, request, size_bytes=size_bytes)
        row.request_id = request_id
        with self._database.writing() as session:
            self._check_room(session, owner_id, size_bytes)
            session.add(row)
        return to_task(row)

    def find(self, owner_id: str, task_id: str, *, kind: str) -> Task:
        """Find an owner's task of a kind; NotFoundError when there is none, or none any more."""
        with self._database.reading() as session:
            row = self._find(session, owner_id, task_id, kind)
            return to_task(row, result=row.result)

    def list_page(
        self, owner_id: str, query: TaskQuery, page: PageQuery, *, kind: str
    ) -> Page[Task]:
        """List an owner's tasks of a kind."""
        chosen = [TaskRow.kind == kind, self._is_kept()]
        if query.state:
            chosen.append(TaskRow.state == query.state.value)
        if query.model:
            chosen.append(TaskRow.model == query.model)
        chosen += created_within(TaskRow, query.created_from, query.created_until)
        with self._database.reading() as session:
            return list_owned(session, TaskRow, owner_id, chosen, page, *WITHOUT_BODIES).map(
                to_task
            )

    def cancel(self, owner_id: str, task_id: str, *, kind: str) -> Task:
        """Take an owner's task out of the line.

        Raises:
            NotFoundError: the owner has no such task.
            ConflictError: the task has begun or is over.
        """
        with self._database.writing() as session:
            row = self._find(session, owner_id, task_id, kind)
            if row.state != TaskState.PENDING:
                raise ConflictError(NOT_PENDING)
            row.state = TaskState.CANCELED.value
            row.request, row.finished_at = {}, utc_now()
        return to_task(row)

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
        return to_task(row, request=row.request)

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
            leased_until_at=None,
            **end_values(),
        )

    def fail(self, task: Task, runner_id: str, *, code: str, message: str) -> bool:
        """Keep a task's error; False when the task is no longer this runner's."""
        return self._settle(
            task,
            runner_id,
            state=TaskState.FAILED.value,
            error_code=code,
            error_message=message,
            leased_until_at=None,
            **end_values(),
        )

    def put_back(
        self, task: Task, runner_id: str, *, is_failed: bool, wait_s: float | None = None
    ) -> bool:
        """Put a task in line again; the attempt counts only when it failed.

        `wait_s` None: at once, or after a failure later and later.
        """
        if wait_s is None:
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
        """Delete tasks whose time is over, those of batches apart; return how many.

        What has waited in line too long has failed, and is kept as long as other results.
        """
        now = utc_now()
        alone = TaskRow.batch_id.is_(None)
        with self._database.writing() as session:
            old = delete(TaskRow).where(alone, ~self._is_kept())
            gone = session.scalars(old.returning(TaskRow.id)).all()
            session.execute(
                update(TaskRow)
                .where(
                    alone,
                    TaskRow.state == TaskState.PENDING.value,
                    TaskRow.created_at <= now - timedelta(seconds=self.limits.max_wait_s),
                )
                .values(
                    state=TaskState.FAILED.value,
                    error_code=TOO_LONG,
                    error_message="The task waited in line longer than one may.",
                    **end_values(),
                )
            )
        return len(gone)

    def _is_kept(self) -> ColumnElement[bool]:
        """Choose tasks that are not over, and those that were over a short time ago only."""
        oldest = utc_now() - timedelta(seconds=self.limits.keep_s)
        return TaskRow.finished_at.is_(None) | (TaskRow.finished_at > oldest)

    def _find(self, session: Session, owner_id: str, task_id: str, kind: str) -> TaskRow:
        chosen = (TaskRow.kind == kind, self._is_kept())
        return find_owned(
            session, TaskRow, owner_id, task_id, *chosen, noun="task", options=WITHOUT_BODIES
        )

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

    def end_leases(self) -> None:
        """Let all tasks that run be taken up at once: whoever ran them is known to be dead."""
        running = TaskRow.state == TaskState.RUNNING.value
        with self._database.writing() as session:
            session.execute(update(TaskRow).where(running).values(leased_until_at=utc_now()))

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
                **end_values(),
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
            raise RefusedError(
                f"This key has {number} tasks in line; expected at most "
                f"{self.limits.max_waiting} with {self.limits.max_waiting_bytes} bytes together. "
                "Wait for some to finish or cancel them.",
                status=429,
                code="limit_tasks",
                retry_after_s=math.ceil(self.limits.retry_s),
            )
