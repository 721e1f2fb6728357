"""What a task is: its row in the database, its states in DashScope's words, and what others see."""

import uuid
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, Text, case, literal
from sqlalchemy.orm import Mapped, defer, mapped_column

from qianyan.server.database import UtcTime, utc_now
from qianyan.server.owned import OwnedRow


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


class TaskRow(OwnedRow):
    """A task's row."""

    __tablename__ = "tasks"
    __table_args__ = (
        Index("tasks_in_line", "state", "priority", "owner_id", "due_at", "id"),
        Index("tasks_of_owner", "owner_id", "created_at", "id"),
        Index("tasks_by_lease", "state", "leased_until_at"),
        Index("tasks_by_end", "finished_at"),
        Index("tasks_of_batch", "batch_id", "line"),
    )

    kind: Mapped[str] = mapped_column(String(40))
    model: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(10))
    priority: Mapped[int] = mapped_column()
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    request_bytes: Mapped[int] = mapped_column(BigInteger)
    request_id: Mapped[str | None] = mapped_column(String(64))
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error_code: Mapped[str | None] = mapped_column(String(80))
    error_message: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column()
    runner_id: Mapped[str | None] = mapped_column(String(80))
    leased_until_at: Mapped[datetime | None] = mapped_column(UtcTime)
    due_at: Mapped[datetime] = mapped_column(UtcTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcTime)
    batch_id: Mapped[str | None] = mapped_column(
        String(80), ForeignKey("batches.id", name="tasks_batch", ondelete="CASCADE")
    )
    line: Mapped[int | None] = mapped_column()


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task as it stands; `result` once it has succeeded, the error's words once it has failed.

    Requests and results may be large: of a task that is claimed the request is read, of one that
    is found the result, of those that are listed neither.
    """

    id: str
    owner_id: str
    kind: str
    model: str
    state: TaskState
    attempts: int
    created_at: datetime
    request: dict[str, Any] = field(default_factory=dict)
    request_id: str | None = None
    result: dict[str, Any] | None = None
    error_code: str | None = None
    error_message: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


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


def end_values() -> dict[str, Any]:
    """Give what ends a task: nobody reads its request again, which may hold faces, but a batch."""
    alone = TaskRow.batch_id.is_(None)
    request = case((alone, literal({}, JSON)), else_=TaskRow.request)
    return {"finished_at": utc_now(), "request": request}


WITHOUT_BODIES = (defer(TaskRow.request), defer(TaskRow.result))


def to_task(
    row: TaskRow,
    *,
    request: dict[str, Any] | None = None,
    result: dict[str, Any] | None = None,
) -> Task:
    """Give what others see of a row; large parts are given by whoever has read them."""
    return Task(
        id=row.id,
        owner_id=row.owner_id,
        kind=row.kind,
        model=row.model,
        state=TaskState(row.state),
        attempts=row.attempts,
        created_at=row.created_at,
        request=request or {},
        request_id=row.request_id,
        result=result,
        error_code=row.error_code,
        error_message=row.error_message,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
