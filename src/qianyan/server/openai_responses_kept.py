"""What is kept of a response: its row, how long it lives, and the turn that it stands for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from qianyan.server.database import Rows, UtcTime

RESPONSE_KIND = "response"
RESPONSE_ID = re.compile(r"resp_[0-9a-f]{32}")
ITEM_ID = re.compile(r"[a-z]{2,3}_([0-9a-f]{32})[io]\d{1,6}")
"""An item's id says in which response it stands, first as input or output."""


class ResponseStatus(StrEnum):
    """Where a response stands."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"


UNFINISHED = (ResponseStatus.QUEUED.value, ResponseStatus.IN_PROGRESS.value)
ANSWERED = (ResponseStatus.COMPLETED.value, ResponseStatus.INCOMPLETE.value)


@dataclass(frozen=True, kw_only=True)
class ResponseLimits:
    """What responses that are kept may cost and how long they live.

    Args:
        keep_s: how long a response is kept after it was made or last gone on from.
        max_chain: responses that may follow each other with `previous_response_id`.
        max_chain_bytes: bytes of input and output in such a chain.
        max_kept: responses kept of one owner; the oldest go first.
        max_kept_bytes: bytes kept of one owner; the oldest go first.
        max_background: responses that an owner may have in line in the background.
    """

    keep_s: int = 30 * 86_400
    max_chain: int = 256
    max_chain_bytes: int = 64_000_000
    max_kept: int = 10_000
    max_kept_bytes: int = 1_000_000_000
    max_background: int = 100


class ResponseRow(Rows):
    """A response's row."""

    __tablename__ = "responses"
    __table_args__ = (
        Index("responses_of_owner", "owner_id", "expires_at", "id"),
        Index("responses_by_expiry", "expires_at"),
    )

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    owner_id: Mapped[str] = mapped_column(String(80))
    previous_id: Mapped[str | None] = mapped_column(String(80))
    task_id: Mapped[str | None] = mapped_column(String(80))
    status: Mapped[str] = mapped_column(String(20))
    depth: Mapped[int] = mapped_column()
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    chain_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime] = mapped_column(UtcTime)
    input_items: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    response: Mapped[dict[str, Any]] = mapped_column(JSON)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The turns before a response: their ids and all their items, oldest first."""

    response_ids: tuple[str, ...] = ()
    items: tuple[dict[str, Any], ...] = ()
    size_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A response as it is kept: what was sent, what was answered and what went before."""

    response: dict[str, Any]
    input_items: Sequence[dict[str, Any]]
    chain: Chain = field(default_factory=Chain)


@dataclass(frozen=True, kw_only=True)
class ItemPage:
    """Some items, in order."""

    items: list[dict[str, Any]]
    has_more: bool
