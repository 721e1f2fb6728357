"""Documents become message parts: text, and pictures for models that see, in reading order.

What a file is is judged by its content; its name and declared type only tell kinds of text apart.
Everything from outside is read within `DocumentLimits`: nothing is fetched, no macro or script
runs, and every refusal is one sentence of our own. The same bytes give the same parts.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath

from qianyan.errors import InputError, MediaError, quote
from qianyan.inputs.archive import password_needed, read_package
from qianyan.inputs.book import read_book
from qianyan.inputs.document_parts import Document, DocumentLimits, Pieces, one_line
from qianyan.inputs.images import read_image
from qianyan.inputs.markup import read_markup
from qianyan.inputs.pdf import read_pdf
from qianyan.inputs.plain_text import decode, read_plain, read_table, unescape_json
from qianyan.inputs.slides import read_slides
from qianyan.inputs.word import read_word
from qianyan.inputs.workbook import read_workbook

__all__ = ["Document", "DocumentLimits", "read_document"]

KINDS = "PDF, .docx, .xlsx, .pptx, .epub, HTML, Markdown, CSV, JSON, text or a picture"
_LONGEST_NAME = 80
_HEAD = 1024
_NAMES_ITS_PAGES = frozenset({"pdf", "pptx", "epub", "image"})
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_TEXT_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_MARKUP = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]{1,40})", re.IGNORECASE)
_TEXT_KINDS = {
    **dict.fromkeys(
        (".html", ".htm", ".xhtml", ".xht", "text/html", "application/xhtml+xml"), "html"
    ),
    **dict.fromkeys((".md", ".markdown", ".mdown", "text/markdown", "text/x-markdown"), "markdown"),
    **dict.fromkeys((".csv", ".tsv", ".tab", "text/csv", "text/tab-separated-values"), "csv"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson", "application/json"), "json"),
    **dict.fromkeys((".txt", ".text", ".log", ".xml", ".yaml", ".yml"), "text"),
}
# Office files before 2007 by the name of the stream that holds the text, in UTF-16.
_OLD_OFFICE = (
    ("WordDocument", "an old Word document (.doc)", ".docx"),
    ("Workbook", "an old Excel workbook (.xls)", ".xlsx"),
    ("Book", "an old Excel workbook (.xls)", ".xlsx"),
    ("PowerPoint Document", "an old presentation (.ppt)", ".pptx"),
)


def read_document(
    data: bytes,
    *,
    name: str,
    media_type: str | None,
    limits: DocumentLimits,
    wants_pictures: bool,
    pages: str | None = None,
) -> Document:
    """Read a document into text and pictures.

    Args:
        data: the file's bytes.
        name: what the file is called, for headings and error sentences; a path is cut off.
        media_type: what was declared, such as "text/csv; charset=gbk"; it decides little.
        limits: what the document may cost.
        wants_pictures: whether the model sees; pages and embedded pictures are then included.
        pages: "1-5,8" chooses pages of a PDF, slides of a presentation, sheets of a workbook,
            chapters of a book.

    Raises:
        MediaError: code empty_file, unsupported_format, not_text, truncated, password, too_large,
            unsafe_archive, no_text, no_content, missing_extra or timeout; and for a picture those
            of `read_image`.
        CapacityError: more pages, text, pictures or table cells than the limits allow.
        InputError: `pages` is not understood, or the document has none.
    """
    pieces = Pieces(_shown_name(name), limits, wants_pictures=wants_pictures)
    document = _read(data, pieces, pages, media_type)
    if document.kind in _NAMES_ITS_PAGES:
        return document
    heading, (first, *others) = f"[{pieces.name}]", document.parts
    parts = (f"{heading}\n\n{first}",) if isinstance(first, str) else (heading, first)
    return replace(document, parts=(*parts, *others))


def _read(data: bytes, pieces: Pieces, pages: str | None, media_type: str | None) -> Document:
    """Judge what a file is, and have it read."""
    if not data:
        raise MediaError(
            f"{quote(pieces.name)} is empty (0 bytes); expected {KINDS}.", code="empty_file"
        )
    if _is_pdf(data):
        return read_pdf(data, pieces, pages)
    if data.startswith(_ARCHIVES):
        return _read_office(data, pieces, pages)
    _refuse_old_formats(data, pieces)
    if pages is not None:
        raise InputError(
            f"pages is {quote(pages)}, but {quote(pieces.name)} has no pages to choose from; that "
            "is for PDF, .pptx, .xlsx and .epub. Send it without pages."
        )
    kind = _find_text_kind(data, pieces.name, media_type)
    if kind is None:
        return _read_picture(data, pieces)
    return _read_text(data, kind, pieces, media_type)


def _shown_name(name: str) -> str:
    """Make a name that fits into a heading: no folders, no brackets, one line."""
    file = PurePosixPath(one_line(name.replace("\\", "/"))).name
    file = file.replace("[", "(").replace("]", ")")
    return file[-_LONGEST_NAME:] or "document"


def _is_pdf(data: bytes) -> bool:
    """Whether the header stands where PDF readers look for it: in the first kilobyte."""
    head = data[:_HEAD]
    start = head.find(b"%PDF-")
    if start <= 0:
        return start == 0
    # A text about PDF has the word too, but not what every PDF has at its end.
    return not data.startswith(_ARCHIVES) and (b"startxref" in data[-2048:] or b" obj" in head)


def _read_office(data: bytes, pieces: Pieces, pages: str | None) -> Document:
    package = read_package(data, pieces)
    if package.kind == "docx":
        if pages is not None:
            raise InputError(
                f"pages is {quote(pages)}, but {quote(pieces.name)} is a Word document, whose "
                "pages only Word knows. Send it whole, or as PDF."
            )
        return read_word(package, pieces)
    readers: dict[str, Callable[..., Document]] = {
        "xlsx": read_workbook,
        "pptx": read_slides,
        "epub": read_book,
    }
    return readers[package.kind](package, pieces, pages)


def _refuse_old_formats(data: bytes, pieces: Pieces) -> None:
    """Refuse office files from before 2007, encrypted office files and RTF."""
    if data.startswith(b"{\\rtf"):
        raise _old_format("an RTF document", ".docx", pieces)
    if not data.startswith(_OLE):
        return
    if "EncryptedPackage".encode("utf-16-le") in data:
        raise password_needed(pieces.name)
    for stream, what, instead in _OLD_OFFICE:
        if stream.encode("utf-16-le") in data:
            raise _old_format(what, instead, pieces)
    raise _old_format("an old office document", ".docx, .xlsx or .pptx", pieces)


def _old_format(what: str, instead: str, pieces: Pieces) -> MediaError:
    return MediaError(
        f"{quote(pieces.name)} is {what}, which is not read here. Save it as {instead} or PDF.",
        code="unsupported_format",
    )


def _find_text_kind(data: bytes, name: str, media_type: str | None) -> str | None:
    """Find the kind of a text; None for bytes that are no text."""
    suffix = PurePosixPath(name.lower()).suffix
    declared = (media_type or "").partition(";")[0].strip().lower()
    named = _TEXT_KINDS.get(suffix) or _TEXT_KINDS.get(declared)
    head = data[:_HEAD]
    controls = 0 if data.startswith(_TEXT_MARKS) else len(_CONTROL.findall(head))
    if controls:
        # A text with a few stray bytes still is one when everything else says so.
        is_named = bool(named) or declared.startswith("text/")
        if not is_named or controls * 10 > len(head) or head.startswith(_PICTURES):
            return None
    if _MARKUP.match(head):
        return "html"
    return named or "text"


def _read_text(data: bytes, kind: str, pieces: Pieces, media_type: str | None) -> Document:
    found = _CHARSET.search(media_type or "")
    declared = found[1] if found else None
    if kind == "html":
        return read_markup(data, pieces, declared)
    text = decode(data, pieces, declared)
    if kind == "csv":
        return read_table(text, pieces)
    return read_plain(unescape_json(text) if kind == "json" else text, pieces, kind)


def _read_picture(data: bytes, pieces: Pieces) -> Document:
    """Read a file that is one picture, or say what it is instead."""
    try:
        photo = read_image(data)
    except MediaError as error:
        if error.code != "not_a_picture":
            raise
        raise MediaError(
            f"{quote(pieces.name)} is data of an unknown kind; expected {KINDS}.",
            code="unsupported_format",
        ) from error
    if not pieces.wants_pictures:
        raise MediaError(
            f"{quote(pieces.name)} is a picture, and this model reads text only.", code="no_text"
        )
    for note in photo.notes:
        pieces.say(note)
    pieces.show(photo.rgb)
    return pieces.document("image")
