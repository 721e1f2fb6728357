"""Read a document by whichever way there is: pictures for a model that sees, OCR for one that not.

A document with more pictures than are shown at once is read as text alone where it has text; one
of pictures alone, for a model that reads text only, is read by the offline reader. Either is said
in the document's notes.
"""

import re
import time
from dataclasses import dataclass, replace

from PIL import Image

from qianyan.errors import CapacityError, MediaError, quote
from qianyan.inputs.document_parts import Document, DocumentLimits
from qianyan.inputs.documents import read_document
from qianyan.server.ocr_offline import OfflineReader

NOTHING_TO_READ = "[a picture in which no text was found]"


@dataclass(frozen=True, kw_only=True)
class DocumentFile:
    """The bytes of a document, and what is known of them beside."""

    data: bytes
    name: str
    media_type: str | None = None
    pages: str | None = None

    def read(self, limits: DocumentLimits, *, wants_pictures: bool) -> Document:
        """Read it as it is; raises what `read_document` does."""
        return read_document(
            self.data,
            name=self.name,
            media_type=self.media_type,
            limits=limits,
            wants_pictures=wants_pictures,
            pages=self.pages,
        )


def read_for_model(
    file: DocumentFile, limits: DocumentLimits, ocr: OfflineReader, *, sees: bool
) -> Document:
    """Read a document for a model that sees pictures, or for one that reads text only.

    Raises what `read_document` does; MediaError missing_extra for pictures without the extra.
    """
    if sees:
        try:
            return file.read(limits, wants_pictures=True)
        except CapacityError as error:
            return _as_text(file, limits, error)
    try:
        return _with_scans(file.read(limits, wants_pictures=False), file, limits, ocr)
    except MediaError as error:
        if error.code != "no_text":
            raise
    return _written_out(file.read(limits, wants_pictures=True), limits, ocr)


def _as_text(file: DocumentFile, limits: DocumentLimits, too_much: CapacityError) -> Document:
    """Read the text of a document whose pictures are too many; raises `too_much` without text."""
    try:
        document = file.read(limits, wants_pictures=False)
    except MediaError as error:
        raise too_much from error
    notes = [note for note in document.notes if "reads text only" not in note]
    notes.append(f"its pictures are not shown, as they are more than {limits.max_pictures}")
    return replace(document, notes=tuple(notes))


def _with_scans(
    document: Document, file: DocumentFile, limits: DocumentLimits, ocr: OfflineReader
) -> Document:
    """Read the pages of a PDF that are pictures among others; without the extra they stay out."""
    text = "\n\n".join(part for part in document.parts if isinstance(part, str))
    head = re.escape(f"[{document.name}, page ")
    unread = re.compile(head + r"(\d{1,6}) of \d{1,6}: no text layer\]")
    pages = unread.findall(text)
    if document.kind != "pdf" or not 0 < len(pages) <= limits.max_pictures:
        return document
    scans = replace(file, pages=",".join(pages)).read(limits, wants_pictures=True)
    try:
        scans = _written_out(scans, limits, ocr)
    except MediaError as error:
        if error.code in ("missing_extra", "no_content"):
            return document
        raise
    texts = re.split(head + r"\d{1,6} of \d{1,6}\]\n", str(scans.parts[0]))
    found = iter(texts[1:])
    text = unread.sub(lambda at: at[0].partition(":")[0] + "]\n" + next(found, "").strip(), text)
    notes = [note for note in document.notes if not note.startswith("pages without a text layer")]
    return replace(document, parts=(text,), notes=(*notes, *scans.notes))


def _written_out(document: Document, limits: DocumentLimits, ocr: OfflineReader) -> Document:
    """Put the text of a document's pictures in their places."""
    deadline = time.monotonic() + limits.timeout_s
    parts: list[str | Image.Image] = []
    num_read = 0
    for part in document.parts:
        if isinstance(part, str):
            parts.append(part)
            continue
        if time.monotonic() > deadline:
            raise MediaError(
                f"{quote(document.name)} consists of pictures whose text takes longer than "
                f"{limits.timeout_s:g} seconds to read. Send some of its pages.",
                code="timeout",
            )
        lines = ocr.read(part)
        num_read += bool(lines)
        parts.append("\n".join(line.text for line in lines) or NOTHING_TO_READ)
    if not num_read:
        raise MediaError(
            f"{quote(document.name)} consists of pictures in which no text was found, and this "
            "model reads text only. Use a model that sees.",
            code="no_content",
        )
    note = f"pictures read by text recognition, which may err: {num_read}"
    return replace(document, parts=("\n".join(map(str, parts)),), notes=(*document.notes, note))
