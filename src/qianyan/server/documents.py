"""The documents of requests: uploaded ones by their id, others by URL or sent along.

An uploaded document is read when it comes, on threads of its own, and what was read is kept in
memory as long as there is room; a request waits for a reading under way, but not for ever. Its
owner is looked up each time, so a file that was deleted or has expired is gone at once.
"""

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Self

from fastapi import FastAPI

from qianyan.errors import CapacityError, InputError, MediaError, QianyanError, quote
from qianyan.inputs.document_parts import Document, DocumentLimits
from qianyan.inputs.fetch import fetch
from qianyan.inputs.media import MediaLimits
from qianyan.inputs.parts import DocumentReader, file_source
from qianyan.inputs.shortening import LEAST_CHARS_PER_PICTURE
from qianyan.server.asking import asked_now
from qianyan.server.database import NotFoundError
from qianyan.server.document_reading import DocumentFile, read_for_model
from qianyan.server.errors import RefusedError
from qianyan.server.files import FilePurpose, Files, StoredFile
from qianyan.server.keeping import Keeping
from qianyan.server.ocr_offline import OfflineReader
from qianyan.server.serving import Serving

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


class Documents:
    """Reads the documents of requests; may be used by several threads at once."""

    def __init__(
        self,
        find_files: Callable[[], Files | None],
        *,
        sees: bool,
        inline: MediaLimits | None = None,
        limits: UploadedDocumentLimits | None = None,
        ocr: OfflineReader | None = None,
    ) -> None:
        """Take what others made.

        Args:
            find_files: gives the files of all keys, None where none are kept.
            sees: whether the model sees pictures.
            inline: limits of documents that are no uploads.
            limits: of uploads.
            ocr: reads pictures for a model that does not see.
        """
        self.limits = limits or UploadedDocumentLimits()
        self._ocr = ocr or OfflineReader()
        self._find_files = find_files
        self._sees = sees
        self._inline = inline or MediaLimits()
        self._threads = ThreadPoolExecutor(self.limits.max_reading, thread_name_prefix="documents")
        self._lock = threading.Lock()
        self._reading: dict[_Key, Future[Document]] = {}
        self._kept: OrderedDict[_Key, tuple[Document, int]] = OrderedDict()
        self._outcomes: OrderedDict[_Key, QianyanError | None] = OrderedDict()

    def attach(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Put into each document's part the way to read it, for whoever asks now."""
        budget = _Budget(self.limits.max_characters, self._inline.max_images)
        return [
            {**message, "content": [self._part(part, budget) for part in message["content"]]}
            if isinstance(message.get("content"), list)
            else dict(message)
            for message in messages
        ]

    async def ready(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Wait for the uploads that messages name, so that nobody waits for them on a thread."""
        keys = [key for message in messages for key in self._named(message)]
        if keys:
            reading = await asyncio.to_thread(self._begin_all, asked_now().owner_id, keys)
            await wait_for(reading, self.limits.max_reading_wait_s)

    def _named(self, message: Mapping[str, Any]) -> list["_Key"]:
        content = message.get("content")
        files = [
            part.get("file")
            for part in (content if isinstance(content, list) else ())
            if isinstance(part, Mapping) and part.get("type") == "file"
        ]
        return [
            _Key.of(file, sees=self._sees)
            for file in files
            if isinstance(file, Mapping) and "file_id" in file
        ]

    def _begin_all(self, owner_id: str, keys: Sequence["_Key"]) -> list["Future[Document]"]:
        """Begin to read what has not been read; what cannot be found is told by who needs it."""
        reading = []
        for key in keys:
            with suppress(RefusedError):
                file = self._find(owner_id, key)
                if not self._is_known(key):
                    reading.append(self._begin(key, file))
        return reading

    def _is_known(self, key: "_Key") -> bool:
        with self._lock:
            return key in self._kept or self._outcomes.get(key) is not None

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

    def _usual(self, file: StoredFile) -> "_Key":
        return _Key(file.id, is_text=not self._sees)

    def _part(self, part: Any, budget: "_Budget") -> Any:
        file = part.get("file") if isinstance(part, Mapping) else None
        if file is None or part.get("type") != "file":
            return part
        reader: DocumentReader
        if isinstance(file, Mapping) and "file_id" in file:
            reader = self._reader_of(asked_now().owner_id, file)
        else:
            is_text = isinstance(file, Mapping) and bool(file.get("is_text"))
            plain = _without(file, "is_text") if isinstance(file, Mapping) else file
            reader = partial(self._sent_along, {**part, "file": plain}, is_text=is_text)
        return {"type": "file", "file": {"file_data": budget.counting(reader)}}

    def _reader_of(self, owner_id: str, file: Mapping[str, Any]) -> DocumentReader:
        def read(sees: bool) -> Document:
            return self._uploaded(owner_id, _Key.of(file, sees=sees))

        return read

    def _uploaded(self, owner_id: str, key: "_Key") -> Document:
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

    def _find(self, owner_id: str, key: "_Key") -> StoredFile:
        files = self._find_files()
        if files is None:
            raise _invalid(key.file_id, "this server keeps no files; send the document itself")
        try:
            file = files.find(owner_id, key.file_id)
        except NotFoundError as error:
            self._forget(key.file_id)
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

    def _begin(self, key: "_Key", file: StoredFile) -> "Future[Document]":
        with self._lock:
            reading = self._reading.get(key)
            if reading is not None:
                return reading
            reading = self._threads.submit(self._read, key, file)
            self._reading[key] = reading
        # Without the lock: what has been read meanwhile is settled by this thread, which takes it.
        reading.add_done_callback(partial(self._settle, key))
        return reading

    def _read(self, key: "_Key", file: StoredFile) -> Document:
        files = self._find_files()
        if files is None:
            raise _invalid(key.file_id, "this server keeps no files")
        with files.store.open(file.id) as opened:
            data = opened.read()
        found = DocumentFile(data=data, name=file.filename, pages=key.pages)
        return read_for_model(found, self.limits.document, self._ocr, sees=not key.is_text)

    def _settle(self, key: "_Key", done: "Future[Document]") -> None:
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

    def _keep(self, key: "_Key", document: Document) -> None:
        size = _memory_of(document)
        if size > self.limits.max_kept_bytes:
            return
        self._kept[key] = (document, size)
        while sum(one for _, one in self._kept.values()) > self.limits.max_kept_bytes:
            self._kept.popitem(last=False)

    def _forget(self, file_id: str) -> None:
        with self._lock:
            for held in (self._kept, self._outcomes):
                for key in [key for key in held if key.file_id == file_id]:
                    del held[key]

    def _sent_along(self, part: Mapping[str, Any], sees: bool, *, is_text: bool) -> Document:
        """Read a document that came with its request, or is fetched for it."""
        source, name, pages = file_source(part, "file")
        if callable(source):
            return source(sees)
        fetched = fetch(
            source, limits=self._inline.fetch_document, allow_files=False, noun="document"
        )
        file = DocumentFile(
            data=fetched.data,
            name=name or fetched.name,
            media_type=fetched.media_type,
            pages=pages,
        )
        return read_for_model(file, self._inline.document, self._ocr, sees=sees and not is_text)


@dataclass(frozen=True)
class _Key:
    """An uploaded document, and how it is read."""

    file_id: str
    pages: str | None = None
    is_text: bool = False

    @classmethod
    def of(cls, file: Mapping[str, Any], *, sees: bool) -> Self:
        """Read what a part says of an upload."""
        is_text = not sees or bool(file.get("is_text"))
        return cls(file["file_id"], file.get("pages"), is_text=is_text)


class _Budget:
    """Counts the text of one request's documents, and their pictures."""

    def __init__(self, most: int, most_pictures: int) -> None:
        self._most = most
        self._most_pictures = most_pictures
        self._num_characters = 0
        self._num_pictures = 0

    def counting(self, reader: DocumentReader) -> DocumentReader:
        """Let what a reader reads count."""

        def read(sees: bool) -> Document:
            document = reader(sees)
            num_pictures = sum(not isinstance(part, str) for part in document.parts)
            if num_pictures and self._num_pictures + num_pictures > self._most_pictures:
                document = self._text_of(document, num_pictures)
            else:
                self._num_pictures += num_pictures
            self._num_characters += sum(
                len(part) for part in document.parts if isinstance(part, str)
            )
            if self._num_characters > self._most:
                raise CapacityError(
                    f"The documents of this request hold more than {self._most} characters of "
                    "text; expected at most that. Ask about fewer at once."
                )
            return document

        return read

    def _text_of(self, document: Document, num_pictures: int) -> Document:
        """Leave out the pictures of a document that has text; a scan stays as it is."""
        texts = [part for part in document.parts if isinstance(part, str)]
        if sum(map(len, texts)) <= LEAST_CHARS_PER_PICTURE * num_pictures:
            return document
        note = (
            f"{num_pictures} pictures not shown, as the documents of the request have more than "
            f"{self._most_pictures}"
        )
        return replace(document, parts=("\n\n".join(texts),), notes=(*document.notes, note))


async def wait_for(reading: Sequence["Future[Document]"], seconds: float) -> None:
    """Wait until all has been read or the time is over; what came of it is the futures' to say."""
    waiting = [asyncio.wrap_future(one) for one in reading]
    for one in waiting:
        one.add_done_callback(lambda done: done.cancelled() or done.exception())
    if waiting:
        await asyncio.wait(waiting, timeout=seconds)


def _without(file: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in file.items() if key != name}


def _invalid(file_id: str, why: str) -> RefusedError:
    return RefusedError(
        f"Invalid file [id:{file_id}]: {why}.", status=400, code="invalid_file", param="messages"
    )


def _memory_of(document: Document) -> int:
    return sum(
        4 * len(part) if isinstance(part, str) else 3 * part.width * part.height
        for part in document.parts
    )


@asynccontextmanager
async def keep_documents(app: FastAPI) -> AsyncIterator[None]:
    """Read the documents of an app's requests; entered before anything asks for them."""
    serving: Serving = app.state.serving

    def find_files() -> Files | None:
        keeping: Keeping | None = getattr(app.state, "keeping", None)
        return None if keeping is None else keeping.files

    processor = serving.worker.engine.processor
    documents = Documents(
        find_files,
        sees=processor.pictures is not None,
        inline=processor.limits,
        ocr=serving.worker.ocr.reader,
    )
    app.state.documents = documents
    serving.worker.attach = documents.attach
    serving.worker.ready = documents.ready
    try:
        yield
    finally:
        documents.close()
        serving.worker.ocr.close()
