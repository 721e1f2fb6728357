"""What belongs to a key: rows that have an owner, found by their id and listed page by page.

Another key's row is not told apart from one that is not there. Lists go by time; ids part rows of
one time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from sqlalchemy import ColumnElement, String, and_, func, or_, select
from sqlalchemy.orm import Mapped, Session, mapped_column
from sqlalchemy.sql.base import ExecutableOption

from qianyan.errors import quote
from qianyan.server.database import NotFoundError, Rows, UtcTime


class OwnedRow(Rows):
    """A row that belongs to a key."""

    __abstract__ = True

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    owner_id: Mapped[str] = mapped_column(String(80))
    created_at: Mapped[datetime] = mapped_column(UtcTime)


Row = TypeVar("Row", bound=OwnedRow)
Item = TypeVar("Item")
Shown = TypeVar("Shown")


@dataclass(frozen=True, kw_only=True)
class PageQuery:
    """Which part of a list: at most `limit`, after the row `after` or on page `number`, from 1."""

    limit: int = 100
    after: str | None = None
    number: int = 1
    is_oldest_first: bool = False


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Part of a list; `total` counts all that was chosen."""

    items: tuple[Item, ...]
    has_more: bool
    total: int

    def map(self, show: Callable[[Item], Shown]) -> "Page[Shown]":
        """Show each item in another way."""
        return Page(tuple(map(show, self.items)), self.has_more, self.total)


def find_owned(
    session: Session,
    kind: type[Row],
    owner_id: str,
    row_id: str,
    *conditions: ColumnElement[bool],
    noun: str,
    options: Sequence[ExecutableOption] = (),
) -> Row:
    """Find an owner's row; NotFoundError when there is none of this id that fits."""
    chosen = (kind.id == row_id, kind.owner_id == owner_id, *conditions)
    # PostgreSQL takes no NUL; ids that were made here hold nothing of the kind.
    is_id = row_id.isprintable()
    row = session.scalar(select(kind).where(*chosen).options(*options)) if is_id else None
    if row is None:
        raise NotFoundError(f"There is no {noun} {quote(row_id)}; expected the id of one.")
    return row


def list_owned(
    session: Session,
    kind: type[Row],
    owner_id: str,
    conditions: Sequence[ColumnElement[bool]],
    page: PageQuery,
    *options: ExecutableOption,
) -> Page[Row]:
    """List an owner's rows that fit; NotFoundError when `after` is none of the owner's."""
    chosen = (kind.owner_id == owner_id, *conditions)
    found = select(kind).where(*chosen)
    total = session.scalar(select(func.count()).select_from(kind).where(*chosen)) or 0
    if page.after:
        last = session.execute(
            select(kind.created_at, kind.id).where(kind.id == page.after, chosen[0])
        ).one_or_none()
        if last is None:
            raise NotFoundError(f"after is {quote(page.after)}; expected an id of this list.")
        found = found.where(_beyond(kind, *last, is_later=page.is_oldest_first))
    order = (kind.created_at, kind.id)
    found = found.order_by(*(order if page.is_oldest_first else (one.desc() for one in order)))
    skipped = (page.number - 1) * page.limit
    rows = session.scalars(found.offset(skipped).limit(page.limit + 1).options(*options)).all()
    return Page(tuple(rows[: page.limit]), len(rows) > page.limit, total)


def created_within(
    kind: type[OwnedRow], since: datetime | None, until: datetime | None
) -> list[ColumnElement[bool]]:
    """Choose rows by when they were made; None sets no limit."""
    chosen = []
    if since is not None:
        chosen.append(kind.created_at >= since)
    if until is not None:
        chosen.append(kind.created_at <= until)
    return chosen


def _beyond(
    kind: type[OwnedRow], created_at: datetime, row_id: str, *, is_later: bool
) -> ColumnElement[bool]:
    time = kind.created_at
    beside = kind.id > row_id if is_later else kind.id < row_id
    beyond = time > created_at if is_later else time < created_at
    return or_(beyond, and_(time == created_at, beside))
