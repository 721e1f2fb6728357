"""Contents of files on disk, by ids that the server made: never by a name that came from outside.

A content is written beside its place, flushed to the disk and then renamed, so that whatever has
its id is whole; what a killed process left behind is swept away when it is old.
"""

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

from qianyan.server.database import NotFoundError, QuotaError, StorageError

CHUNK_BYTES = 1 << 20
ABANDONED_S = 24 * 3600  # older than any upload lasts
ID = re.compile(r"[a-z][a-z0-9_-]{8,79}")


@dataclass(frozen=True)
class Content:
    """What was written."""

    size_bytes: int
    sha256: str
    md5: str


class ContentStore:
    """Contents under one folder; may be used by several threads and processes at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        with _told():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._incoming.mkdir(mode=0o700, exist_ok=True)

    def write(self, content_id: str, chunks: Iterable[bytes], *, max_bytes: int) -> Content:
        """Write a content; QuotaError when it is longer than `max_bytes`, and nothing is kept.

        StorageError when the disk is full or fails.
        """
        incoming, place = self._incoming / self._name(content_id), self.path(content_id)
        sha256, size = hashlib.sha256(), 0
        md5 = hashlib.md5(usedforsecurity=False)  # which Bailian's clients compare
        try:
            with _told():
                file = incoming.open("xb", buffering=0)
            with file:
                for chunk in chunks:
                    size += len(chunk)
                    if size > max_bytes:
                        raise QuotaError(
                            f"The file is longer than {max_bytes} bytes; expected at most that. "
                            "Split it, or make it smaller.",
                            code="file_too_large",
                        )
                    sha256.update(chunk)
                    md5.update(chunk)
                    with _told():
                        _write_all(file, chunk)
                with _told():
                    os.fsync(file.fileno())
            with _told():
                incoming.replace(place)
        finally:
            incoming.unlink(missing_ok=True)
        return Content(size, sha256.hexdigest(), md5.hexdigest())

    def path(self, content_id: str) -> Path:
        """Name the file of a content, to read only; it need not exist."""
        return self._folder / self._name(content_id)

    def open(self, content_id: str) -> BinaryIO:
        """Open a content; NotFoundError when there is none."""
        with _told():
            try:
                return self.path(content_id).open("rb")
            except FileNotFoundError as error:
                raise NotFoundError("The content of this file is gone.") from error

    def link(self, content_id: str, new_id: str) -> None:
        """Give a content a second id that outlives the first, without copying where possible."""
        source, place = self.path(content_id), self.path(new_id)
        with _told():
            try:
                os.link(source, place)
            except FileNotFoundError as error:
                raise NotFoundError("The content of this file is gone.") from error
            except OSError:  # a file system without hard links
                shutil.copyfile(source, place)

    def delete(self, content_id: str) -> None:
        """Delete a content; one that is gone already is no error."""
        with _told():
            self.path(content_id).unlink(missing_ok=True)

    def sweep(self, known: Collection[str], *, older_than_s: float = ABANDONED_S) -> int:
        """Delete contents that no row knows and uploads that stopped; return how many."""
        oldest, swept = time.time() - older_than_s, 0
        with _told():
            for path in (*self._folder.iterdir(), *self._incoming.iterdir()):
                is_known = path.parent == self._folder and path.name in known
                if path.is_file() and not is_known and path.stat().st_mtime < oldest:
                    path.unlink(missing_ok=True)
                    swept += 1
        return swept

    @staticmethod
    def _name(content_id: str) -> str:
        if not ID.fullmatch(content_id):
            raise NotFoundError("There is no such file.")
        return content_id


def _write_all(file: RawIOBase, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:  # an unbuffered write may take only a part
        rest = rest[file.write(rest) :]


def read_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Read a file to its end, a chunk at a time."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "cannot be used"
        raise StorageError(
            f"The disk of the state folder {what}. Free space there or try again later."
        ) from error
