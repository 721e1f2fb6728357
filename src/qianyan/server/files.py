"""Uploaded files: rows in the database, contents in the store, each scoped to the key that sent it.

Names from outside are kept to be shown and never used as paths; ids cannot be guessed. Purposes are
OpenAI's and Bailian's (`file-extract`: a document to be read, `batch`: requests, a line each,
`vision`: a picture); `batch_output` is what a batch wrote, and `request` what a client sent up to
be named in requests of the next two days.
"""

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import chain
from typing import BinaryIO

from sqlalchemy import BigInteger, ColumnElement, Index, String, Text, delete, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from qianyan.errors import InputError, quote
from qianyan.inputs.signatures import is_picture
from qianyan.server.database import Database, QuotaError, UtcTime, utc_now
from qianyan.server.owned import (
    OwnedRow,
    Page,
    PageQuery,
    created_within,
    find_owned,
    list_owned,
)
from qianyan.server.store import Content, ContentStore

LONGEST_NAME = 255


class FilePurpose(StrEnum):
    """What a file is for."""

    FILE_EXTRACT = "file-extract"
    BATCH = "batch"
    VISION = "vision"
    BATCH_OUTPUT = "batch_output"
    REQUEST = "request"


UPLOADED = (FilePurpose.FILE_EXTRACT, FilePurpose.BATCH, FilePurpose.VISION)
ID_PREFIX = {
    FilePurpose.FILE_EXTRACT: "file-fe-",
    FilePurpose.BATCH: "file-batch-",
    FilePurpose.VISION: "file-vision-",
    FilePurpose.BATCH_OUTPUT: "file-batch_output-",
    FilePurpose.REQUEST: "file-request-",
}


@dataclass(frozen=True, kw_only=True)
class FileLimits:
    """What uploads may cost, for each key.

    Args:
        max_document_bytes: largest file of purpose file-extract.
        max_batch_bytes: largest file of purpose batch.
        max_picture_bytes: largest file of purpose vision, and largest picture of file-extract.
        max_files: files that a key may keep.
        max_total_bytes: bytes that a key's files may take together.
        max_request_bytes: largest file that is sent up to be named in a request.
        batch_keep_s: how long files of batches, in and out, are kept; others until deleted.
        request_keep_s: how long files are kept that were sent up to be named in a request.
        min_keep_s: shortest life that an upload may ask for.
        max_keep_s: longest life that an upload may ask for.
    """

    max_document_bytes: int = 150_000_000
    max_batch_bytes: int = 500_000_000
    max_picture_bytes: int = 20_000_000
    max_request_bytes: int = 100_000_000
    max_files: int = 10_000
    max_total_bytes: int = 100_000_000_000
    batch_keep_s: int = 30 * 86_400
    request_keep_s: int = 48 * 3_600
    min_keep_s: int = 3_600
    max_keep_s: int = 30 * 86_400

    def max_bytes(self, purpose: FilePurpose) -> int:
        """Largest content of a purpose."""
        return {
            FilePurpose.FILE_EXTRACT: self.max_document_bytes,
            FilePurpose.BATCH: self.max_batch_bytes,
            FilePurpose.VISION: self.max_picture_bytes,
            FilePurpose.BATCH_OUTPUT: self.max_total_bytes,
            FilePurpose.REQUEST: self.max_request_bytes,
        }[purpose]

    def keep_s(self, purpose: FilePurpose) -> int | None:
        """How long a file of a purpose is kept; None: until it is deleted."""
        if purpose == FilePurpose.REQUEST:
            return self.request_keep_s
        is_of_batch = purpose in (FilePurpose.BATCH, FilePurpose.BATCH_OUTPUT)
        return self.batch_keep_s if is_of_batch else None


class FileRow(OwnedRow):
    """A file's row."""

    __tablename__ = "files"
    __table_args__ = (
        Index("files_of_owner", "owner_id", "created_at", "id"),
        Index("files_by_expiry", "expires_at"),
        Index("files_by_upload_key", "owner_id", "upload_key"),
    )

    purpose: Mapped[str] = mapped_column(String(20))
    filename: Mapped[str] = mapped_column(String(LONGEST_NAME))
    description: Mapped[str | None] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    md5: Mapped[str | None] = mapped_column(String(32))
    upload_key: Mapped[str | None] = mapped_column(Text)
    expires_at: Mapped[datetime | None] = mapped_column(UtcTime)


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file that is kept; `expires_at` None: until it is deleted.

    Older files have no `md5`.
    """

    id: str
    purpose: FilePurpose
    filename: str
    size_bytes: int
    sha256: str
    created_at: datetime
    expires_at: datetime | None
    description: str | None = None
    md5: str | None = None


@dataclass(frozen=True, kw_only=True)
class FileQuery:
    """Which of a key's files are listed; uploads for a request are none of them."""

    purpose: FilePurpose | None = None
    created_from: datetime | None = None
    created_until: datetime | None = None


class Files:
    """The files of all keys; every call may wait for the disk."""

    def __init__(
        self, database: Database, store: ContentStore, limits: FileLimits | None = None
    ) -> None:
        self.limits = limits or FileLimits()
        self._database = database
        self.store = store

    def upload(
        self,
        owner_id: str,
        filename: str,
        purpose: str,
        chunks: Iterable[bytes],
        *,
        keep_s: int | None = None,
    ) -> StoredFile:
        """Keep a file that a key sends.

        Args:
            filename: as the sender named it; only its last part is kept.
            chunks: the content, read once and never more than the purpose's limit.
            keep_s: how long to keep it; None as the limits say.

        Raises:
            InputError: the purpose or `keep_s` is none that is offered, or the file is empty.
            QuotaError: the file is too large, or the key has no room left.
            StorageError: the disk or the database fails.
        """
        kind = parse_purpose(purpose)
        if keep_s is not None and not self.limits.min_keep_s <= keep_s <= self.limits.max_keep_s:
            raise InputError(
                f"expires_after.seconds is {keep_s}; expected {self.limits.min_keep_s} "
                f"to {self.limits.max_keep_s}."
            )
        with self._database.reading() as session:
            self.check_room(session, owner_id, 1)
        return self.add(self.write(kind, chunks), owner_id, filename, keep_s=keep_s)

    def write(self, purpose: FilePurpose, chunks: Iterable[bytes]) -> "WrittenFile":
        """Write a content that no row knows yet: `add` gives it one."""
        file_id = ID_PREFIX[purpose] + secrets.token_hex(16)
        most, rest = self.limits.max_bytes(purpose), iter(chunks)
        first = next(rest, b"")
        if purpose == FilePurpose.FILE_EXTRACT and is_picture(first):
            most = min(most, self.limits.max_picture_bytes)
        content = self.store.write(file_id, chain([first], rest), max_bytes=most)
        return WrittenFile(file_id, purpose, content)

    def add(
        self,
        written: "WrittenFile",
        owner_id: str,
        filename: str,
        *,
        keep_s: int | None = None,
        description: str | None = None,
    ) -> StoredFile:
        """Give a written content its row; without room or for an empty one it is deleted."""
        is_kept = False
        try:
            if not written.content.size_bytes:
                raise InputError("The file is empty; expected at least one byte.")
            with self._database.writing() as session:
                self.check_room(session, owner_id, written.content.size_bytes)
                row = self.add_row(session, written, owner_id, filename, keep_s=keep_s)
                row.description = description
            is_kept = True
            return _value(row)
        finally:
            if not is_kept:
                self.store.delete(written.id)

    def add_row(
        self,
        session: Session,
        written: "WrittenFile",
        owner_id: str,
        filename: str,
        *,
        keep_s: int | None = None,
    ) -> FileRow:
        """Add a content's row to a transaction that another noun has begun, whatever the room."""
        now = utc_now()
        if keep_s is None:
            keep_s = self.limits.keep_s(written.purpose)
        row = FileRow(
            id=written.id,
            owner_id=owner_id,
            purpose=written.purpose.value,
            filename=shown_name(filename),
            size_bytes=written.content.size_bytes,
            sha256=written.content.sha256,
            md5=written.content.md5,
            created_at=now,
            expires_at=None if keep_s is None else now + timedelta(seconds=keep_s),
        )
        session.add(row)
        return row

    def find(self, owner_id: str, file_id: str) -> StoredFile:
        """Find a key's file; NotFoundError when it has none of this id, or it has expired."""
        with self._database.reading() as session:
            return _value(_find_row(session, owner_id, file_id))

    def open(self, owner_id: str, file_id: str) -> BinaryIO:
        """Open a key's file to read it; the caller closes it. NotFoundError as `find`."""
        return self.store.open(self.find(owner_id, file_id).id)

    def list_page(self, owner_id: str, query: FileQuery, page: PageQuery) -> Page[StoredFile]:
        """List a key's files; NotFoundError when the page's `after` is none of them."""
        chosen = [_is_alive(), FileRow.purpose != FilePurpose.REQUEST.value]
        if query.purpose:
            chosen.append(FileRow.purpose == query.purpose.value)
        chosen += created_within(FileRow, query.created_from, query.created_until)
        with self._database.reading() as session:
            return list_owned(session, FileRow, owner_id, chosen, page).map(_value)

    def delete(self, owner_id: str, file_id: str) -> None:
        """Delete a key's file; NotFoundError as `find`."""
        with self._database.writing() as session:
            session.delete(_find_row(session, owner_id, file_id))
        self.store.delete(file_id)

    def sweep(self) -> int:
        """Delete the files that have expired; return how many."""
        expired = FileRow.expires_at <= utc_now()
        with self._database.writing() as session:
            ids = session.scalars(delete(FileRow).where(expired).returning(FileRow.id)).all()
        for file_id in ids:
            self.store.delete(file_id)
        return len(ids)

    def ids(self) -> set[str]:
        """Every file's id, whoever has it: what the store must keep."""
        with self._database.reading() as session:
            return set(session.scalars(select(FileRow.id)))

    def room(self, owner_id: str) -> int:
        """Tell how many bytes an owner may still send; 0 where no file more may be kept."""
        with self._database.reading() as session:
            number, total = _kept(session, owner_id)
        is_full = number >= self.limits.max_files
        return 0 if is_full else max(0, self.limits.max_total_bytes - total)

    def check_room(self, session: Session, owner_id: str, size_bytes: int) -> None:
        """Raise QuotaError where an owner has no room for so many bytes more."""
        number, total = _kept(session, owner_id)
        if number >= self.limits.max_files:
            raise QuotaError(
                f"This key keeps {number} files; expected at most {self.limits.max_files}. "
                "Delete some first."
            )
        if total + size_bytes > self.limits.max_total_bytes:
            raise QuotaError(
                f"This key's files would take {total + size_bytes} bytes; expected at most "
                f"{self.limits.max_total_bytes}. Delete some first."
            )


@dataclass(frozen=True)
class WrittenFile:
    """A content on disk that has no row yet."""

    id: str
    purpose: FilePurpose
    content: Content


def parse_purpose(purpose: str) -> FilePurpose:
    """Read the purpose of an upload; InputError when it is none that is taken."""
    try:
        kind = FilePurpose(purpose)
    except ValueError:
        kind = None
    if kind not in UPLOADED:
        raise InputError(f"purpose is {quote(purpose)}; expected one of {', '.join(UPLOADED)}.")
    return kind


def shown_name(filename: str) -> str:
    """Make a name that may be shown: the last part of a path, without control characters."""
    last = re.split(r"[/\\]", filename)[-1]
    shown = "".join(char for char in last if char.isprintable()).strip()
    return shown[-LONGEST_NAME:] or "file"


def _kept(session: Session, owner_id: str) -> tuple[int, int]:
    """Count an owner's files and their bytes."""
    kept = select(func.count(), func.coalesce(func.sum(FileRow.size_bytes), 0))
    number, total = session.execute(kept.where(FileRow.owner_id == owner_id)).one()
    return number, int(total)


def _is_alive() -> ColumnElement[bool]:
    return FileRow.expires_at.is_(None) | (FileRow.expires_at > utc_now())


def _find_row(session: Session, owner_id: str, file_id: str) -> FileRow:
    return find_owned(session, FileRow, owner_id, file_id, _is_alive(), noun="file")


def _value(row: FileRow) -> StoredFile:
    return StoredFile(
        id=row.id,
        purpose=FilePurpose(row.purpose),
        filename=row.filename,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        created_at=row.created_at,
        expires_at=row.expires_at,
        description=row.description,
        md5=row.md5,
    )
