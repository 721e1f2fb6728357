"""Office archives: bombs, traps and lies are one sentence each, before any library reads them."""

import re
import struct
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import docx
import openpyxl
import pptx
import pytest

from qianyan.errors import CapacityError, QianyanError
from qianyan.inputs.documents import Document, DocumentLimits, read_document

MAIN = "word/document.xml"


def word(text: str = "Hello") -> bytes:
    out = BytesIO()
    document = docx.Document()
    document.add_paragraph(text)
    document.save(out)
    return out.getvalue()


def workbook() -> bytes:
    out = BytesIO()
    book = openpyxl.Workbook()
    book.active["A1"] = "Hello"
    book.save(out)
    return out.getvalue()


def slides() -> bytes:
    out = BytesIO()
    deck = pptx.Presentation()
    deck.slides.add_slide(deck.slide_layouts[5]).shapes.title.text = "Hello"
    deck.save(out)
    return out.getvalue()


def changed(
    data: bytes,
    change: Callable[[str, bytes], bytes | None] = lambda _, blob: blob,
    added: dict[str, bytes] | None = None,
) -> bytes:
    """The archive with members changed (None: dropped) and others added."""
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(out, "w", 8) as new:
        for name in old.namelist():
            blob = change(name, old.read(name))
            if blob is not None:
                new.writestr(name, blob)
        for name, blob in (added or {}).items():
            new.writestr(name, blob)
    return out.getvalue()


def with_main(data: bytes, old: bytes, new: bytes) -> bytes:
    return changed(data, lambda name, blob: blob.replace(old, new, 1) if name == MAIN else blob)


def read(data: bytes, limits: DocumentLimits | None = None) -> Document:
    return read_document(
        data,
        name="/srv/up/site.docx",
        media_type=None,
        limits=limits or DocumentLimits(),
        wants_pictures=True,
    )


def refusal(data: bytes, limits: DocumentLimits | None = None) -> QianyanError:
    with pytest.raises(QianyanError) as caught:
        read(data, limits)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert not re.search(r"0x|lxml|zipfile|xml\.|Errno|Traceback|/srv|/tmp", sentence)
    return caught.value


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine that writes down what is asked of it."""
    asked: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("made", "kind"), [(word(), "docx"), (workbook(), "xlsx"), (slides(), "pptx")]
)
def test_the_kind_is_judged_by_the_content_types(made: bytes, kind: str) -> None:
    document = read(made)
    assert document.kind == kind
    assert "Hello" in str(document.parts[0])


@pytest.mark.parametrize(
    ("made", "old", "new"),
    [
        (
            word(),
            b"vnd.openxmlformats-officedocument.wordprocessingml.document.main",
            b"vnd.ms-word.document.macroEnabled.main",
        ),
        (
            word(),
            b"wordprocessingml.document.main",
            b"wordprocessingml.template.main",
        ),
        (
            workbook(),
            b"vnd.openxmlformats-officedocument.spreadsheetml.sheet.main",
            b"vnd.ms-excel.sheet.macroEnabled.main",
        ),
        (
            slides(),
            b"vnd.openxmlformats-officedocument.presentationml.presentation.main",
            b"vnd.ms-powerpoint.presentation.macroEnabled.main",
        ),
        (slides(), b"presentationml.presentation.main", b"presentationml.slideshow.main"),
    ],
)
def test_templates_shows_and_macro_files_are_read_and_macros_noted(
    made: bytes, old: bytes, new: bytes
) -> None:
    data = changed(
        made,
        lambda name, blob: blob.replace(old, new) if name == "[Content_Types].xml" else blob,
        {"word/vbaProject.bin": b"\xd0\xcf\x11\xe0 Sub AutoOpen()"},
    )
    document = read(data)
    assert "Hello" in str(document.parts[0])
    assert "macros are not read and never run" in document.notes


def test_a_bomb_of_one_member_is_refused_before_it_is_unpacked() -> None:
    data = changed(word(), added={"word/media/image1.png": bytes(300_000_000)})
    assert len(data) < 1_000_000
    tracemalloc.start()
    error = refusal(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.code == "too_large"
    assert peak < 150_000_000


def test_a_bomb_of_xml_is_refused_by_its_own_limit() -> None:
    filler = b"".join(b"<w:p><w:r><w:t>%d</w:t></w:r></w:p>" % (n * 7919) for n in range(100_000))
    data = with_main(word(), b"<w:body>", b"<w:body>" + filler)
    assert refusal(data, DocumentLimits(max_markup_bytes=1_000_000)).code == "too_large"


def test_sizes_that_lie_are_found_out() -> None:
    """Both headers say ten bytes; the member unpacks to eight megabytes."""
    data = changed(word(), added={"word/x.xml": b"<a>" + b" " * 8_000_000 + b"</a>"})
    real = struct.pack("<I", 8_000_007)
    assert data.count(real) >= 1
    assert refusal(data.replace(real, struct.pack("<I", 10))).code == "truncated"


def test_archives_inside_stay_closed() -> None:
    inner = changed(word(), added={"word/media/a.png": bytes(100_000_000)})
    data = changed(word(), added={"word/embeddings/inner.docx": inner, "word/media/clip.mp4": b"x"})
    document = read(data)
    assert "Hello" in str(document.parts[0])
    assert document.notes == ("embedded files and media that are not opened: 2",)


def test_too_many_members_are_refused() -> None:
    data = changed(word(), added={f"word/media/{n}.png": b"" for n in range(6_000)})
    assert isinstance(refusal(data), CapacityError)


BILLION_LAUGHS = (
    b'<!DOCTYPE x [<!ENTITY a "ha">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9))
    + b"]>"
)
OUTSIDE = b'<!DOCTYPE x [<!ENTITY a SYSTEM "%s">]>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32-le"])
@pytest.mark.parametrize(
    "doctype", [BILLION_LAUGHS, OUTSIDE % b"file:///etc/passwd"], ids=["laughs", "file"]
)
def test_entities_are_refused_in_every_encoding(doctype: bytes, encoding: str) -> None:
    def trapped(name: str, blob: bytes) -> bytes:
        if name != MAIN:
            return blob
        text = (doctype + blob.partition(b"?>")[2]).decode().replace("Hello", "&j;")
        return f'<?xml version="1.0" encoding="{encoding[:6]}"?>{text}'.encode(encoding)

    assert refusal(changed(word(), trapped)).code in {"unsafe_archive", "truncated"}


def test_entities_are_refused_in_any_member() -> None:
    for name in ("word/styles.xml", "_rels/.rels", "[Content_Types].xml", "word/fontTable.xml"):
        data = changed(
            word(),
            lambda at, blob, name=name: (  # type: ignore[misc]
                blob.replace(b"?>", b"?>" + BILLION_LAUGHS, 1) if at == name else blob
            ),
        )
        assert refusal(data).code == "unsafe_archive", name


@pytest.mark.parametrize("encoding", ["utf-7", "cp037", "IBM037", "iso-2022-jp"])
def test_encodings_that_could_hide_entities_are_refused(encoding: str) -> None:
    data = changed(
        word(),
        lambda name, blob: (
            f'<?xml version="1.0" encoding="{encoding}"?><a/>'.encode(
                "cp037" if "0" in encoding[:4] else "ascii"
            )
            if name == MAIN
            else blob
        ),
    )
    assert refusal(data).code == "truncated"


@pytest.mark.parametrize("padding", [199, 300, 600, 100_000])
@pytest.mark.parametrize("make", [word, workbook, slides])
def test_a_padded_declaration_hides_no_encoding(make: Callable[[], bytes], padding: int) -> None:
    """UTF-7 spells a document type without the bytes that are searched for."""

    def hidden(name: str, blob: bytes) -> bytes:
        if name not in {MAIN, "xl/styles.xml", "ppt/slides/slide1.xml"}:
            return blob
        root = blob.rpartition(b"?>")[2]  # openpyxl writes no declaration
        body = (BILLION_LAUGHS + root).decode()
        words = "".join({"<": "+ADw-", "!": "+ACE-", "&": "+ACY-"}.get(c, c) for c in body)
        return f'<?xml version="1.0"{" " * padding}encoding="UTF-7"?>{words}'.encode()

    assert refusal(changed(make(), hidden)).code == "truncated"


@pytest.mark.parametrize(
    ("make", "rels_name"),
    [
        (workbook, "xl/_rels/workbook.xml.rels"),
        (slides, "ppt/slides/_rels/slide1.xml.rels"),
    ],
)
def test_workbooks_and_slides_fetch_nothing_from_outside(
    make: Callable[[], bytes], rels_name: str
) -> None:
    with listening() as (address, asked):
        outside = (
            f'<Relationship Id="rIdX" TargetMode="External" Target="{address}/x" Type="http://'
            'schemas.openxmlformats.org/officeDocument/2006/relationships/externalLink"/>'
            "</Relationships>"
        ).encode()
        document = read(
            changed(
                make(),
                lambda name, blob: (
                    blob.replace(b"</Relationships>", outside) if name == rels_name else blob
                ),
            )
        )
        assert asked == []
    assert "Hello" in str(document.parts[0])
    assert document.notes == ("files outside the document that are not fetched: 1",)


def test_outside_files_are_never_fetched_and_counted() -> None:
    with listening() as (address, asked):
        outside = (
            '<Relationship Id="rIdX" TargetMode="External" Target="{}/{}" Type="http://schemas.'
            'openxmlformats.org/officeDocument/2006/relationships/{}"/>'
        )
        rels = "".join(
            outside.format(address, name, kind).replace("rIdX", f"rIdX{name}")
            for name, kind in (("a", "image"), ("b", "attachedTemplate"), ("c", "oleObject"))
        )
        link = outside.format(address, "link", "hyperlink")
        picture = (
            b'<w:p><w:r><w:drawing><a:blip xmlns:a="http://schemas.openxmlformats.org/drawingml/'
            b'2006/main" r:link="rIdXa"/></w:drawing></w:r></w:p>'
        )

        def linked(name: str, blob: bytes) -> bytes:
            if name == "word/_rels/document.xml.rels":
                return blob.replace(b"</Relationships>", f"{rels}{link}</Relationships>".encode())
            return blob.replace(b"<w:body>", b"<w:body>" + picture, 1) if name == MAIN else blob

        document = read(changed(word(), linked))
        assert asked == []
    assert document.notes == ("files outside the document that are not fetched: 3",)
    assert "[picture outside the document]" in str(document.parts[0])


@pytest.mark.parametrize(
    "name", ["../../etc/cron.d/x.xml", "/etc/passwd.xml", "word\\..\\..\\x.xml", "C:/x.xml"]
)
def test_member_names_that_lead_outside_are_refused(name: str, tmp_path: Path) -> None:
    assert refusal(changed(word(), added={name: b"<a/>"})).code == "unsafe_archive"


def test_backslashes_in_member_names_are_read_as_slashes() -> None:
    data = word()
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name.replace("/", "\\"), old.read(name))
    assert "Hello" in str(read(out.getvalue()).parts[0])


def test_relations_to_members_that_are_missing_do_no_harm() -> None:
    lost = (
        b'<Relationship Id="rId99" Target="NULL" Type="http://schemas.openxmlformats.org/'
        b'officeDocument/2006/relationships/image"/></Relationships>'
    )
    data = changed(
        word(),
        lambda name, blob: (
            blob.replace(b"</Relationships>", lost) if name.endswith("document.xml.rels") else blob
        ),
    )
    assert "Hello" in str(read(data).parts[0])


def test_encrypted_members_are_named_as_such() -> None:
    data = bytearray(word())
    local = data.find(b"PK\x03\x04")
    central = data.find(b"PK\x01\x02")
    data[local + 6] |= 1
    data[central + 8] |= 1
    assert refusal(bytes(data)).code == "password"


@pytest.mark.parametrize("kept", [0.01, 0.3, 0.7, 0.99])
def test_truncated_archives_are_refused(kept: float) -> None:
    data = word()
    assert refusal(data[: int(len(data) * kept)]).code == "truncated"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packing_methods_without_a_bound_are_refused(method: int) -> None:
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(word())) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert refusal(out.getvalue()).code == "truncated"


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"a.txt": b"hi"}, "a ZIP archive"),
        ({}, "a ZIP archive"),
        ({"mimetype": b"application/epub+zip", "x.xml": b"<a/>"}, "an EPUB book"),
        ({"mimetype": b"application/vnd.oasis.opendocument.text"}, "an OpenDocument file"),
        ({"[Content_Types].xml": b"<Types/>"}, "a ZIP archive"),
    ],
)
def test_other_archives_are_named(members: dict[str, bytes], what: str) -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, blob in members.items():
            archive.writestr(name, blob)
    error = refusal(out.getvalue())
    assert error.code == "unsupported_format"
    assert what in str(error)


def test_binary_workbooks_and_strict_documents_are_named() -> None:
    binary = changed(
        workbook(),
        lambda name, blob: (
            blob.replace(
                b"vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml",
                b"vnd.ms-excel.sheet.binary.macroEnabled.main",
            )
            if name == "[Content_Types].xml"
            else blob
        ),
    )
    assert ".xlsb" in str(refusal(binary))
    strict = changed(
        word(),
        lambda name, blob: blob.replace(
            b"http://schemas.openxmlformats.org/officeDocument/2006/",
            b"http://purl.oclc.org/ooxml/officeDocument/",
        ),
    )
    assert "Strict" in str(refusal(strict))


BROKEN = [b"", b"<", b"<a/>", b"\xff" * 99, b"<a>" * 5_000]


@pytest.mark.parametrize("name", [MAIN, "[Content_Types].xml", "_rels/.rels"])
@pytest.mark.parametrize("blob", BROKEN, ids=range(len(BROKEN)))
def test_members_that_are_not_what_they_should_be_are_one_sentence(name: str, blob: bytes) -> None:
    error = refusal(changed(word(), lambda at, old: blob if at == name else old))
    assert error.code in {"truncated", "unsupported_format", "no_content"}


@pytest.mark.parametrize("blob", BROKEN, ids=range(len(BROKEN)))
def test_broken_styles_are_done_without_or_refused(blob: bytes) -> None:
    with suppress(QianyanError):
        read(changed(word(), lambda at, old: blob if at == "word/styles.xml" else old))
