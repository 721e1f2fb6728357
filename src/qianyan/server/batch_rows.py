"""The rows of batches, the states in which they stand, and what lists of them choose by."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from qianyan.server.database import UtcTime
from qianyan.server.owned import OwnedRow

NAME = "ds_name"
CALLBACK = "ds_batch_finish_callback"
"""Entries of metadata: what Bailian's lists choose by, and where the end is told."""


class BatchState(StrEnum):
    """Where a batch stands."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


UNFINISHED = (
    BatchState.VALIDATING,
    BatchState.IN_PROGRESS,
    BatchState.FINALIZING,
    BatchState.CANCELLING,
)
OVER = frozenset(BatchState) - frozenset(UNFINISHED)


class BatchRow(OwnedRow):
    """A batch's row."""

    __tablename__ = "batches"
    __table_args__ = (
        Index("batches_of_owner", "owner_id", "created_at", "id"),
        Index("batches_by_state", "state"),
    )

    endpoint: Mapped[str] = mapped_column(String(80))
    input_file_id: Mapped[str] = mapped_column(String(80))
    completion_window: Mapped[str] = mapped_column(String(10))
    note: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    model: Mapped[str | None] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(20))
    total: Mapped[int] = mapped_column()
    completed: Mapped[int] = mapped_column()
    failed: Mapped[int] = mapped_column()
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    output_file_id: Mapped[str | None] = mapped_column(String(80))
    error_file_id: Mapped[str | None] = mapped_column(String(80))
    expires_at: Mapped[datetime] = mapped_column(UtcTime)
    in_progress_at: Mapped[datetime | None] = mapped_column(UtcTime)
    finalizing_at: Mapped[datetime | None] = mapped_column(UtcTime)
    completed_at: Mapped[datetime | None] = mapped_column(UtcTime)
    failed_at: Mapped[datetime | None] = mapped_column(UtcTime)
    expired_at: Mapped[datetime | None] = mapped_column(UtcTime)
    cancelling_at: Mapped[datetime | None] = mapped_column(UtcTime)
    cancelled_at: Mapped[datetime | None] = mapped_column(UtcTime)


@dataclass(frozen=True, kw_only=True)
class BatchQuery:
    """Which of an owner's batches are listed; an empty tuple chooses all."""

    states: tuple[BatchState, ...] = ()
    input_file_ids: tuple[str, ...] = ()
    name: str | None = None
    created_from: datetime | None = None
    created_until: datetime | None = None
