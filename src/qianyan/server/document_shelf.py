"""Uploaded documents: read once, on threads of their own, and kept in memory while there is room.

A document's owner is looked up each time it is asked for, so a file that was deleted or has expired
is gone at once. What is wrong with a document itself is remembered: it is not read again.
"""

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

from qianyan.errors import CapacityError, InputError, MediaError, QianyanError, quote
from qianyan.inputs.document_parts import Document, DocumentLimits
from qianyan.server.database import NotFoundError
from qianyan.server.document_reading import DocumentFile, read_for_model
from qianyan.server.errors import RefusedError
from qianyan.server.files import FilePurpose, Files, StoredFile
from qianyan.server.ocr_offline import OfflineReader

logger = logging.getLogger(__name__)

State = Literal["uploaded", "processed", "error"]
"""As OpenAI's files have it: not read yet, read, or not readable."""
_MOST_REMEMBERED = 10_000
_LASTING = (InputError, CapacityError)
"""Errors that are the document's own: it is not tried again."""


@dataclass(frozen=True, kw_only=True)
class UploadedDocumentLimits:
    """What the documents of a request may cost.

    Args:
        max_characters: text of all documents of one request.
        max_kept_bytes: memory for documents that were read and may be asked about again.
        max_reading: uploaded documents that are read at the same time.
        max_reading_wait_s: seconds that a request waits for a document to be read; then it is
            refused with 409.
        document: what one uploaded document may cost.
    """

    max_characters: int = 10_000_000
    max_kept_bytes: int = 256_000_000
    max_reading: int = 2
    max_reading_wait_s: float = 60.0
    document: DocumentLimits = field(
        default_factory=lambda: DocumentLimits(
            max_pages=15_000, max_characters=10_000_000, max_rows=200_000, timeout_s=300.0
        )
    )


@dataclass(frozen=True)
class DocumentKey:
    """An uploaded document, and how it is read."""

    file_id: str
    pages: str | None = None
    is_text: bool = False

    @classmethod
    def of(cls, file: Mapping[str, Any], *, sees: bool) -> Self:
        """Read what a part says of an upload."""
        is_text = not sees or bool(file.get("is_text"))
        return cls(file["file_id"], file.get("pages"), is_text=is_text)


class DocumentShelf:
    """Uploaded documents of all keys; may be used by several threads at once."""

    def __init__(
        self,
        find_files: Callable[[], Files | None],
        ocr: OfflineReader,
        limits: UploadedDocumentLimits | None = None,
        *,
        sees: bool,
    ) -> None:
        """Begin with none.

        Args:
            find_files: gives the files of all keys, None where none are kept.
            ocr: reads pictures for a model that does not see.
            limits: what a document may cost.
            sees: whether the model sees pictures, and so how a document is usually read.
        """
        self.limits = limits or UploadedDocumentLimits()
        self._find_files = find_files
        self._ocr = ocr
        self._sees = sees
        self._threads = ThreadPoolExecutor(self.limits.max_reading, thread_name_prefix="documents")
        self._lock = threading.Lock()
        self._reading: dict[DocumentKey, Future[Document]] = {}
        self._kept: OrderedDict[DocumentKey, tuple[Document, int]] = OrderedDict()
        self._outcomes: OrderedDict[DocumentKey, QianyanError | None] = OrderedDict()

    def take(self, owner_id: str, key: DocumentKey) -> Document:
        """Give an owner's document; wait for it, but not for ever.

        Raises RefusedError where it is not there or not ready, and what `read_for_model` does.
        """
        file = self._find(owner_id, key)
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return kept[0]
            known = self._outcomes.get(key)
        if known is not None:
            raise known.with_traceback(None)
        try:
            return self._begin(key, file).result(self.limits.max_reading_wait_s)
        except TimeoutError as error:
            raise RefusedError(
                f"File parsing in progress, please try again later: {quote(file.filename)} is "
                "still being read.",
                status=409,
                code="file_not_ready",
                param="messages",
                retry_after_s=5,
            ) from error

    def begin_all(self, owner_id: str, keys: Sequence[DocumentKey]) -> list["Future[Document]"]:
        """Begin to read what has not been read; what cannot be found is told by who needs it."""
        reading = []
        for key in keys:
            with suppress(RefusedError):
                file = self._find(owner_id, key)
                if not self._is_known(key):
                    reading.append(self._begin(key, file))
        return reading

    def begin(self, file: StoredFile) -> "Future[Document]":
        """Begin to read an uploaded document, or join those who wait for it."""
        return self._begin(self._usual(file), file)

    def state(self, file: StoredFile) -> tuple[State, str | None]:
        """Tell how far a file is, and why it cannot be read; only documents are read."""
        if file.purpose is not FilePurpose.FILE_EXTRACT:
            return "processed", None
        key = self._usual(file)
        with self._lock:
            if key not in self._outcomes:
                return "uploaded", None
            error = self._outcomes[key]
        return ("processed", None) if error is None else ("error", str(error))

    def close(self) -> None:
        """Begin no more reading; what runs ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _usual(self, file: StoredFile) -> DocumentKey:
        return DocumentKey(file.id, is_text=not self._sees)

    def _is_known(self, key: DocumentKey) -> bool:
        with self._lock:
            return key in self._kept or self._outcomes.get(key) is not None

    def _find(self, owner_id: str, key: DocumentKey) -> StoredFile:
        files = self._find_files()
        if files is None:
            raise _invalid(key.file_id, "this server keeps no files; send the document itself")
        try:
            file = files.find(owner_id, key.file_id)
        except NotFoundError as error:
            self.forget(key.file_id)
            raise RefusedError(
                f"File [id:{key.file_id}] cannot be found; expected the id of a file that was "
                "uploaded with this key and has been neither deleted nor expired.",
                status=400,
                code="file_not_found",
                param="messages",
            ) from error
        if file.purpose is not FilePurpose.FILE_EXTRACT:
            raise _invalid(
                key.file_id,
                f"it was uploaded for {file.purpose.value}; expected the purpose file-extract",
            )
        return file

    def _begin(self, key: DocumentKey, file: StoredFile) -> "Future[Document]":
        with self._lock:
            reading = self._reading.get(key)
            if reading is not None:
                return reading
            reading = self._threads.submit(self._read, key, file)
            self._reading[key] = reading
        # Without the lock: what has been read meanwhile is settled by this thread, which takes it.
        reading.add_done_callback(partial(self._settle, key))
        return reading

    def _read(self, key: DocumentKey, file: StoredFile) -> Document:
        files = self._find_files()
        if files is None:
            raise _invalid(key.file_id, "this server keeps no files")
        with files.store.open(file.id) as opened:
            data = opened.read()
        found = DocumentFile(data=data, name=file.filename, pages=key.pages)
        return read_for_model(found, self.limits.document, self._ocr, sees=not key.is_text)

    def _settle(self, key: DocumentKey, done: "Future[Document]") -> None:
        """Keep what was read, or why it could not be."""
        with self._lock:
            self._reading.pop(key, None)
            if done.cancelled():
                return
            error = done.exception()
            if error is None:
                self._keep(key, done.result())
            elif not isinstance(error, QianyanError):
                logger.error("a document cannot be read file_id=%s", key.file_id, exc_info=error)
                error = MediaError(
                    "The server failed at this document; its log says why.", code="unreadable"
                )
            if error is None or isinstance(error, _LASTING):
                self._outcomes[key] = error
                self._outcomes.move_to_end(key)
                if len(self._outcomes) > _MOST_REMEMBERED:
                    self._outcomes.popitem(last=False)

    def _keep(self, key: DocumentKey, document: Document) -> None:
        size = _memory_of(document)
        if size > self.limits.max_kept_bytes:
            return
        self._kept[key] = (document, size)
        while sum(one for _, one in self._kept.values()) > self.limits.max_kept_bytes:
            self._kept.popitem(last=False)

    def forget(self, file_id: str) -> None:
        """Let go of what was read of a file."""
        with self._lock:
            for held in (self._kept, self._outcomes):
                for key in [key for key in held if key.file_id == file_id]:
                    del held[key]


async def wait_for(reading: Sequence["Future[Document]"], seconds: float) -> None:
    """Wait until all has been read or the time is over; what came of it is the futures' to say."""
    waiting = [asyncio.wrap_future(one) for one in reading]
    for one in waiting:
        one.add_done_callback(lambda done: done.cancelled() or done.exception())
    if waiting:
        await asyncio.wait(waiting, timeout=seconds)


def _invalid(file_id: str, why: str) -> RefusedError:
    return RefusedError(
        f"Invalid file [id:{file_id}]: {why}.", status=400, code="invalid_file", param="messages"
    )


def _memory_of(document: Document) -> int:
    return sum(
        4 * len(part) if isinstance(part, str) else 3 * part.width * part.height
        for part in document.parts
    )
