"""Whatever bytes come as a document: a Document or one of our errors, never anything else."""

import zipfile
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

import docx
import openpyxl
import pptx
import pypdfium2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qianyan.errors import QianyanError
from qianyan.inputs.documents import Document, DocumentLimits, read_document

LIMITS = DocumentLimits(
    picture_pixels=10_000, max_unpacked_bytes=20_000_000, max_markup_bytes=2_000_000, timeout_s=20
)


def saved(thing: Any) -> bytes:
    out = BytesIO()
    thing.save(out)
    return out.getvalue()


def picture() -> bytes:
    out = BytesIO()
    Image.new("RGB", (40, 30), "red").save(out, "PNG")
    return out.getvalue()


@cache
def word() -> bytes:
    document = docx.Document()
    document.add_heading("Report")
    document.add_paragraph("one", style="List Number")
    table = document.add_table(2, 2)
    table.cell(0, 0).merge(table.cell(0, 1)).text = "wide"
    document.add_picture(BytesIO(picture()))
    document.sections[0].header.paragraphs[0].text = "header"
    return saved(document)


@cache
def workbook() -> bytes:
    book = openpyxl.Workbook()
    book.active["B2"] = 1.5
    book.active["C2"] = "=B2*2"
    book.active["B3"].number_format = "yyyy-mm-dd"
    book.active["B3"] = 45000
    book.create_sheet("second")["A1"] = "x"
    return saved(book)


@cache
def slides() -> bytes:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = "Title"
    slide.shapes.add_table(2, 2, 0, 0, 999_999, 999_999).table.cell(0, 0).text = "cell"
    slide.shapes.add_picture(BytesIO(picture()), 0, 0)
    slide.notes_slide.notes_text_frame.text = "notes"
    return saved(deck)


@cache
def pdf() -> bytes:
    document = pypdfium2.PdfDocument.new()
    document.new_page(300, 200)
    document.new_page(100, 400)
    data = saved(document)
    document.close()
    content = b"BT /F1 24 Tf 10 70 Td (Hello) Tj ET 0 0 50 50 re f"
    return data.replace(
        b"endobj", b"endobj\n9 0 obj\n<< >>\nstream\n%s\nendstream\nendobj" % content, 1
    )


@cache
def page() -> bytes:
    return (
        "<!DOCTYPE html><meta charset=utf-8><h1>A</h1><ul><li>b<li>c</ul><table><tr><td rowspan=2>d"
        "<td>e<tr><td>f</table><p hidden>g</p><a href=/x>h</a><pre>i</pre><img src='data:image/png;"
        "base64,AAAA'>安全"
    ).encode()


SEEDS: dict[str, Callable[[], bytes]] = {
    "docx": word,
    "xlsx": workbook,
    "pptx": slides,
    "pdf": pdf,
    "html": page,
    "csv": '编号,状态;x\n1,"a\nb"\n2,\t3\n'.encode,
    "png": picture,
}
OLD = [
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    b"{\\rtf1",
    b"PK\3\4",
    b"PK\5\6",
    b"%PDF-1.4",
    b"\xff\xfe",
    b"",
]


def read(data: bytes, name: str, *, sees: bool, pages: str | None = None) -> None:
    """Read, and check what comes of it."""
    try:
        document = read_document(
            data, name=name, media_type=None, limits=LIMITS, wants_pictures=sees, pages=pages
        )
    except QianyanError as error:
        sentence = str(error)
        assert sentence.endswith(".")
        assert "Traceback" not in sentence
        return
    assert isinstance(document, Document)
    assert document.parts
    for part in document.parts:
        assert isinstance(part, str) or part.mode == "RGB"
        if isinstance(part, str):
            part.encode()


@st.composite
def damage(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes changed, cut, doubled or put in, in a few places."""
    made = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(made)))
        match draw(st.sampled_from(["change", "cut", "put in", "repeat", "end"])):
            case "change":
                made[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del made[at : at + draw(st.integers(1, 200))]
            case "put in":
                made[at:at] = draw(st.binary(max_size=20) | st.sampled_from(OLD))
            case "repeat":
                made[at:at] = made[at : at + draw(st.integers(1, 300))]
            case "end":
                del made[max(at, 40) :]
    return bytes(made)


@pytest.mark.parametrize("kind", SEEDS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), sees=st.booleans())
def test_damaged_documents_are_read_or_refused(kind: str, data: st.DataObject, sees: bool) -> None:
    damaged = data.draw(damage(SEEDS[kind]()))
    read(damaged, f"x.{data.draw(st.sampled_from([*SEEDS, 'txt']))}", sees=sees)


@pytest.mark.parametrize("kind", ["docx", "xlsx", "pptx"])
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), sees=st.booleans())
def test_office_documents_with_damage_inside_are_read_or_refused(
    kind: str, data: st.DataObject, sees: bool
) -> None:
    """Damage to a member, packed anew, gets past the archive's checksums to the readers."""
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(SEEDS[kind]())) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        hit = data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=2))
        for name in names:
            blob = old.read(name)
            new.writestr(name, data.draw(damage(blob)) if name in hit else blob)
    read(out.getvalue(), f"x.{kind}", sees=sees)


WORDS = st.sampled_from(
    [
        *("w:p", "w:tbl", "w:tr", "w:tc", "w:r", "w:t", "a:blip", "a:t", "p:sp", "p:pic", "c", "v"),
        *("r", "s", "n", "str", "row", "f", "1", "0", "-1", "99999999999", "x", "rId1", "rId9"),
        *("A1", "ZZZ9", "true", "Normal", "Heading1"),
    ]
)


@pytest.mark.parametrize("kind", ["docx", "xlsx", "pptx"])
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_office_documents_with_swapped_words_are_read_or_refused(
    kind: str, data: st.DataObject
) -> None:
    """Well-formed XML that means nonsense: attribute values and names exchanged."""
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(SEEDS[kind]())) as old, zipfile.ZipFile(out, "w") as new:
        names = [name for name in old.namelist() if name.endswith((".xml", ".rels"))]
        hit = data.draw(st.sampled_from(names))
        for name in old.namelist():
            blob = old.read(name)
            if name == hit:
                pieces = blob.split(b'"')
                for _ in range(data.draw(st.integers(1, 4))):
                    at = data.draw(st.integers(0, len(pieces) - 1)) | 1
                    if at < len(pieces):
                        pieces[at] = data.draw(WORDS).encode()
                blob = b'"'.join(pieces)
            new.writestr(name, blob)
    read(out.getvalue(), f"x.{kind}", sees=True)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from(OLD),
    st.sampled_from(["", "a.csv", "a.html", "a.md", "a.pdf", "../\0.docx"]),
    st.none() | st.text(max_size=8),
)
def test_any_bytes_are_read_or_refused(
    data: bytes, start: bytes, name: str, pages: str | None
) -> None:
    read(start + data, name, sees=True, pages=pages)


TAGS = st.sampled_from(
    [
        *("p", "b", "a", "ul", "ol", "li", "table", "tr", "td", "th", "caption", "pre", "h1"),
        *("div", "blockquote", "dialog", "svg", "title"),
    ]
)
TOKENS = st.one_of(
    TAGS.map(lambda tag: f"<{tag}>"),
    TAGS.map(lambda tag: f"</{tag}>"),
    TAGS.map(lambda tag: f"<{tag} hidden href=/x rowspan=3 colspan=2 start=4>"),
    st.sampled_from(["<!--", "-->", "<br>", "<script>", "</script>", "<![x[", "<", "&#0;", "&amp"]),
    st.text(max_size=5),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(TOKENS, max_size=40))
def test_any_soup_of_tags_is_read_or_refused(tokens: list[str]) -> None:
    read(f"<html>{''.join(tokens)}".encode(errors="replace"), "a.html", sees=True)
