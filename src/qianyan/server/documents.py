"""The documents of requests: uploaded ones by their id, others by URL or sent along.

Before an answer takes its seat, the uploads that its messages name are waited for; when its prompt
is prepared, each document's part is given the way to read it.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI

from qianyan.inputs.document_parts import Document
from qianyan.inputs.fetch import fetch
from qianyan.inputs.media import MediaLimits
from qianyan.inputs.parts import DocumentReader, file_source
from qianyan.server.asking import asked_now
from qianyan.server.document_budget import DocumentBudget
from qianyan.server.document_reading import DocumentFile, read_for_model
from qianyan.server.document_shelf import DocumentKey, DocumentShelf, wait_for
from qianyan.server.files import Files
from qianyan.server.keeping import Keeping
from qianyan.server.ocr_offline import OfflineReader
from qianyan.server.serving import Serving


class Documents:
    """Reads the documents of requests; may be used by several threads at once."""

    def __init__(
        self, shelf: DocumentShelf, ocr: OfflineReader, limits: MediaLimits, *, sees: bool
    ) -> None:
        """Take the uploads, and the limits of documents that are none."""
        self.shelf = shelf
        self._ocr = ocr
        self._limits = limits
        self._sees = sees

    def attach(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Put into each document's part the way to read it, for whoever asks now."""
        budget = DocumentBudget(self.shelf.limits.max_characters, self._limits.max_images)
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
            reading = await asyncio.to_thread(self.shelf.begin_all, asked_now().owner_id, keys)
            await wait_for(reading, self.shelf.limits.max_reading_wait_s)

    def _named(self, message: Mapping[str, Any]) -> list[DocumentKey]:
        content = message.get("content")
        files = [
            part.get("file")
            for part in (content if isinstance(content, list) else ())
            if isinstance(part, Mapping) and part.get("type") == "file"
        ]
        return [
            DocumentKey.of(file, sees=self._sees)
            for file in files
            if isinstance(file, Mapping) and "file_id" in file
        ]

    def _part(self, part: Any, budget: DocumentBudget) -> Any:
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
            return self.shelf.take(owner_id, DocumentKey.of(file, sees=sees))

        return read

    def _sent_along(self, part: Mapping[str, Any], sees: bool, *, is_text: bool) -> Document:
        """Read a document that came with its request, or is fetched for it."""
        source, name, pages = file_source(part, "file")
        if callable(source):
            return source(sees)
        fetched = fetch(
            source, limits=self._limits.fetch_document, allow_files=False, noun="document"
        )
        file = DocumentFile(
            data=fetched.data,
            name=name or fetched.name,
            media_type=fetched.media_type,
            pages=pages,
        )
        return read_for_model(file, self._limits.document, self._ocr, sees=sees and not is_text)


def _without(file: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in file.items() if key != name}


@asynccontextmanager
async def keep_documents(app: FastAPI) -> AsyncIterator[None]:
    """Read the documents of an app's requests; entered before anything asks for them."""
    serving: Serving = app.state.serving

    def find_files() -> Files | None:
        keeping: Keeping | None = getattr(app.state, "keeping", None)
        return None if keeping is None else keeping.files

    processor, ocr = serving.worker.engine.processor, serving.worker.ocr.reader
    sees = processor.pictures is not None
    shelf = DocumentShelf(find_files, ocr, sees=sees)
    documents = Documents(shelf, ocr, processor.limits, sees=sees)
    app.state.shelf = shelf
    serving.worker.attach = documents.attach
    serving.worker.ready = documents.ready
    try:
        yield
    finally:
        shelf.close()
        serving.worker.ocr.close()
