"""Read PDF documents: the text layer of each page, and the page as a picture.

PDFium (through pypdfium2) parses and draws. It is not thread-safe: every call holds one lock, taken
page by page so that two documents are read side by side. Forms are drawn as they were saved;
scripts never run, attachments stay closed.
"""

import re
import zlib
from dataclasses import dataclass
from math import sqrt
from threading import Lock
from typing import Any

from PIL import Image

from qianyan.errors import MediaError, quote
from qianyan.inputs.archive import password_needed
from qianyan.inputs.document_parts import (
    DAMAGE,
    Document,
    Pieces,
    clean,
    damaged,
    one_line,
)
from qianyan.inputs.images import MAX_RATIO, MIN_SIDE
from qianyan.inputs.page_ranges import check_num_pages, choose_pages

_LOCK = Lock()
_PASSWORD_ERRORS = frozenset({4, 5})  # FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY
_MAX_SCALE = 300 / 72  # pixels for each point; finer than print shows nothing new
_STREAM = re.compile(rb">>\s{0,9}stream\r?\n")
_LOOK_BACK = 1024
_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Page:
    text: str
    image: Image.Image | None


def read_pdf(data: bytes, pieces: Pieces, pages: str | None) -> Document:
    """Put the chosen pages of a PDF into `pieces`, each under a heading of its own.

    Raises:
        MediaError: code password, truncated, too_large, no_text, missing_extra or timeout.
        CapacityError: more pages, text or pictures than the limits allow.
        InputError: `pages` is not understood.
    """
    _check_streams(data, pieces)
    pdf = _open(data, pieces)
    try:
        with _LOCK:
            num_pages = len(pdf)
            _note_what_stays_closed(pdf, pieces)
        chosen = choose_pages(pages, num_pages, pieces)
        limits = pieces.limits
        if pieces.wants_pictures and limits.max_pictures < limits.max_pages:
            check_num_pages(chosen, limits.max_pictures, "pages, each shown as a picture", pieces)
        check_num_pages(chosen, limits.max_pages, "pages", pieces)
        found = [_add_page(pdf, index, num_pages, pieces) for index in chosen]
    finally:
        with _LOCK:
            pdf.close()
    if not any(found):
        raise _nothing_found(pieces)
    return pieces.document("pdf", num_pages)


def _open(data: bytes, pieces: Pieces) -> Any:
    try:
        import pypdfium2  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415  (extra: documents)
    except ImportError as error:
        raise MediaError(
            f"{quote(pieces.name)} is a PDF, which needs the extra: "
            "pip install 'qianyan[documents]'.",
            code="missing_extra",
        ) from error
    try:
        with _LOCK:
            pdf = pypdfium2.PdfDocument(data)
            if pdf.get_formtype() == pypdfium2.raw.FORMTYPE_ACRO_FORM:
                pdf.init_forms()  # has to come before any page; runs no scripts by itself
            return pdf
    except pypdfium2.PdfiumError as error:
        if error.err_code in _PASSWORD_ERRORS:
            raise password_needed(pieces.name) from error
        raise damaged(pieces.name) from error


def _add_page(pdf: Any, index: int, num_pages: int, pieces: Pieces) -> bool:
    """Add one page's heading, text and picture; tells whether there was any of the two."""
    pieces.check_time()
    heading = f"{pieces.name}, page {index + 1} of {num_pages}"
    try:
        with _LOCK:
            page = _read_page(pdf, index, pieces)
    except DAMAGE:
        pieces.count("pages that are damaged and cannot be read")
        pieces.add_text(f"[{heading}: damaged]")
        return False
    if page.text:
        pieces.add_text(f"[{heading}]\n{page.text}")
    elif page.image:
        pieces.add_text(f"[{heading}]")
    else:
        pieces.count("pages without a text layer")
        pieces.add_text(f"[{heading}: no text layer]")
    if page.image:
        pieces.show(page.image)
    return bool(page.text or page.image)


def _read_page(pdf: Any, index: int, pieces: Pieces) -> _Page:
    page = pdf[index]
    try:
        layer = page.get_textpage()
        try:
            text = layer.get_text_bounded()
        finally:
            layer.close()
        text = "\n".join([clean(text).strip(), *_field_lines(pdf, page)]).strip()
        image = _draw(page, pieces) if pieces.wants_pictures else None
        return _Page(text, image)
    finally:
        page.close()


def _field_lines(pdf: Any, page: Any) -> list[str]:
    """List what is typed into a page's form fields, which the text layer leaves out."""
    from pypdfium2 import raw  # noqa: PLC0415  (extra: documents)

    if not pdf.formenv:
        return []
    lines = []
    for index in range(raw.FPDFPage_GetAnnotCount(page)):
        annotation = raw.FPDFPage_GetAnnot(page, index)
        if not annotation:
            continue
        try:
            if raw.FPDFAnnot_GetSubtype(annotation) == raw.FPDF_ANNOT_WIDGET:
                name = _wide(raw.FPDFAnnot_GetFormFieldName, pdf.formenv, annotation)
                value = _wide(raw.FPDFAnnot_GetFormFieldValue, pdf.formenv, annotation)
                if value and value != "Off":
                    lines.append(f"[field {name}: {value}]")
        finally:
            raw.FPDFPage_CloseAnnot(annotation)
    return lines


def _wide(ask: Any, *about: Any) -> str:
    """Ask PDFium for a text: first for its size in bytes, then for its UTF-16."""
    from pypdfium2 import raw  # noqa: PLC0415  (extra: documents)

    size = ask(*about, None, 0)
    buffer = (raw.FPDF_WCHAR * (size // 2 + 1))()
    ask(*about, buffer, size)
    return one_line(bytes(buffer)[: max(0, size - 2)].decode("utf-16-le", "ignore"))


def _draw(page: Any, pieces: Pieces) -> Image.Image | None:
    """Draw a page within the limits; None for strips and specks, which no model sees."""
    width, height = page.get_size()
    if max(width, height) > MAX_RATIO * min(width, height):
        pieces.count("pages that are strips and not shown")
        return None
    scale = min(sqrt(pieces.limits.picture_pixels / (width * height)), _MAX_SCALE)
    size = (int(width * scale), int(height * scale))
    if min(size) < MIN_SIDE:
        pieces.count("pages too small to be shown")
        return None
    return _render(page, size, pieces)


def _render(page: Any, size: tuple[int, int], pieces: Pieces) -> Image.Image:
    """Draw step by step, so that a page which takes too long is given up."""
    from pypdfium2 import PdfBitmap, raw  # noqa: PLC0415  (extra: documents)

    bitmap = PdfBitmap.new_native(*size, format=raw.FPDFBitmap_BGR, rev_byteorder=True)
    try:
        bitmap.fill_rect((255, 255, 255, 255), 0, 0, *size)
        pause = raw.IFSDK_PAUSE(version=1)
        pause.NeedToPauseNow = type(pause.NeedToPauseNow)(lambda _: pieces.is_late())
        flags = raw.FPDF_ANNOT | raw.FPDF_REVERSE_BYTE_ORDER
        status = raw.FPDF_RenderPageBitmap_Start(bitmap, page, 0, 0, *size, 0, flags, pause)
        raw.FPDF_RenderPage_Close(page)
        pieces.check_time()
        if page.formenv:
            raw.FPDF_FFLDraw(page.formenv, bitmap, page, 0, 0, *size, 0, flags)
        if status != raw.FPDF_RENDER_DONE:
            raise RuntimeError(status)
        image: Image.Image = bitmap.to_pil().copy()  # the bitmap's memory ends with it
        return image
    finally:
        bitmap.close()


def _check_streams(data: bytes, pieces: Pieces) -> None:
    """Refuse page contents that unpack to more than the limit: PDFium has no such limit.

    Pictures are let through: they are large by nature, and PDFium draws them row by row.
    """
    for found in _STREAM.finditer(data):
        dictionary = data[max(0, found.start() - _LOOK_BACK) : found.start()]
        dictionary = dictionary[dictionary.rfind(b" obj") + 1 :]
        if b"/Image" in dictionary or b"/Fl" not in dictionary:
            continue
        pieces.check_time()
        if _unpacks_beyond(pieces.limits.max_markup_bytes, data, found.end()):
            raise MediaError(
                f"{quote(pieces.name)} has a page whose content unpacks to more than "
                f"{pieces.limits.max_markup_bytes / 1e6:g} MB, the most that is read.",
                code="too_large",
            )


def _unpacks_beyond(most: int, data: bytes, start: int) -> bool:
    stream = zlib.decompressobj()
    size = 0
    at = start
    packed = b""
    while not stream.eof and (packed or at < len(data)):
        if not packed:
            packed, at = data[at : at + _CHUNK], at + _CHUNK
        try:
            size += len(stream.decompress(packed, _CHUNK))
        except zlib.error:  # encrypted, damaged or not Flate: not for us to judge
            return False
        if size > most:
            return True
        packed = stream.unconsumed_tail
    return False


def _note_what_stays_closed(pdf: Any, pieces: Pieces) -> None:
    from pypdfium2 import raw  # noqa: PLC0415  (extra: documents)

    if attached := raw.FPDFDoc_GetAttachmentCount(pdf):
        pieces.count("attached files that are not opened", attached)
    if raw.FPDFDoc_GetJavaScriptActionCount(pdf) > 0:
        pieces.say("scripts are never run")
    if raw.FPDF_GetFormType(pdf) in {raw.FORMTYPE_XFA_FULL, raw.FORMTYPE_XFA_FOREGROUND}:
        pieces.say("an XFA form: only what it shows without a form program is read")


def _nothing_found(pieces: Pieces) -> MediaError:
    if pieces.wants_pictures:
        return MediaError(
            f"{quote(pieces.name)} has no text, and none of its pages can be drawn: they are "
            "damaged, strips or specks.",
            code="no_content",
        )
    return MediaError(
        f"{quote(pieces.name)} has no text layer (its pages are pictures), and this model reads "
        "text only. Use a model that sees, or a PDF made with text recognition (OCR).",
        code="no_text",
    )
