"""Documents: what a file is is judged by its content, and every refusal is one sentence."""

import re
import sys
from io import BytesIO
from typing import Any

import docx
import openpyxl
import pptx
import pypdfium2
import pytest
from PIL import Image

from qianyan.errors import InputError, MediaError, QianyanError
from qianyan.inputs.documents import Document, DocumentLimits, read_document


def saved(thing: Any) -> bytes:
    out = BytesIO()
    thing.save(out)
    return out.getvalue()


def picture(form: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    out = BytesIO()
    Image.new("RGB", size, "red").save(out, form)
    return out.getvalue()


def word() -> bytes:
    document = docx.Document()
    document.add_paragraph("Hello")
    return saved(document)


def workbook() -> bytes:
    book = openpyxl.Workbook()
    book.active["A1"] = "Hello"
    return saved(book)


def slides() -> bytes:
    deck = pptx.Presentation()
    deck.slides.add_slide(deck.slide_layouts[5]).shapes.title.text = "Hello"
    return saved(deck)


def pdf() -> bytes:
    document = pypdfium2.PdfDocument.new()
    document.new_page(300, 200)
    data = saved(document)
    document.close()
    return data


def read(data: bytes, name: str = "file", **options: Any) -> Document:
    settings = {"limits": DocumentLimits(), "wants_pictures": True, "media_type": None} | options
    return read_document(data, name=name, **settings)


def refusal(data: bytes, name: str = "file", **options: Any) -> QianyanError:
    with pytest.raises(QianyanError) as caught:
        read(data, name, **options)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert not re.search(r"0x|lxml|openpyxl|PIL|pdfium|Errno|Traceback", sentence)
    return caught.value


KINDS = [
    (pdf(), "pdf"),
    (word(), "docx"),
    (workbook(), "xlsx"),
    (slides(), "pptx"),
    (b"<!DOCTYPE html><p>Hello", "html"),
    (b"Hello", "text"),
    (picture(), "image"),
    (picture("JPEG"), "image"),
    (picture("TIFF"), "image"),
]


@pytest.mark.parametrize(
    ("data", "kind"), KINDS, ids=[f"{n}-{k}" for n, (_, k) in enumerate(KINDS)]
)
@pytest.mark.parametrize("name", ["file", "file.pdf", "file.docx", "file.png", "file.xls", "."])
def test_the_content_says_what_a_file_is_whatever_it_is_called(
    data: bytes, kind: str, name: str
) -> None:
    assert read(data, name, media_type="application/pdf").kind == kind


def test_a_picture_as_a_document_is_one_picture() -> None:
    document = read(picture("GIF"), "scan.pdf")
    (image,) = document.parts
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (40, 30))


def test_a_picture_is_refused_for_models_that_read_text_only() -> None:
    assert refusal(picture(), wants_pictures=False).code == "no_text"


def test_a_damaged_picture_is_refused_as_a_picture() -> None:
    assert refusal(picture(size=(400, 300))[:80]).code == "truncated"


@pytest.mark.parametrize("data", [b"\0\1\2\3" * 100, b"\x7fELF\2\1\1\0\0", b"BM\0\0"])
def test_data_of_an_unknown_kind_is_refused_with_what_is_expected(data: bytes) -> None:
    error = refusal(data)
    assert error.code == "unsupported_format"
    assert ".docx" in str(error)


def test_videos_are_named_as_such() -> None:
    assert "a video" in str(refusal(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2"))


def test_an_empty_file_is_refused() -> None:
    assert refusal(b"").code == "empty_file"


def old_office(*streams: str) -> bytes:
    """The head of an OLE file with a directory that names streams."""
    entries = b"".join(
        stream.encode("utf-16-le").ljust(64, b"\0") + bytes(64) for stream in streams
    )
    return (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1".ljust(512, b"\0") + b"Root".ljust(128, b"\0") + entries
    )


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (old_office("WordDocument", "1Table"), ("(.doc)", ".docx")),
        (old_office("Workbook"), ("(.xls)", ".xlsx")),
        (old_office("PowerPoint Document"), ("(.ppt)", ".pptx")),
        (old_office("Other"), ("an old office document", ".docx")),
        (rb"{\rtf1\ansi Hello}", ("RTF", ".docx")),
    ],
)
def test_old_formats_are_asked_to_be_saved_as_new_ones(data: bytes, says: tuple[str, ...]) -> None:
    error = refusal(data, "report.docx")
    assert error.code == "unsupported_format"
    assert all(word in str(error) for word in (*says, "Save it as", "'report.docx'"))


def test_office_files_with_a_password_are_named_as_such() -> None:
    assert refusal(old_office("EncryptionInfo", "EncryptedPackage")).code == "password"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/srv/secret/a.txt", "a.txt"),
        ("C:\\Users\\me\\报告.txt", "报告.txt"),
        ("a]\n[b\0.txt", "a) (b.txt"),
        ("", "document"),
        ("x" * 300 + ".txt", "x" * 76 + ".txt"),
    ],
)
def test_names_are_shown_without_folders_on_one_line(name: str, shown: str) -> None:
    document = read(b"Hello", name)
    assert document.name == shown
    assert document.parts == (f"[{shown}]\n\nHello",)


def test_a_text_about_pdf_is_a_text() -> None:
    assert read(b"Every PDF begins with %PDF-1.7, as is known.").kind == "text"


@pytest.mark.parametrize(("data", "kind"), KINDS[:4], ids=["pdf", "docx", "xlsx", "pptx"])
def test_the_same_bytes_give_the_same_parts(data: bytes, kind: str) -> None:
    def prints() -> list[bytes | str]:
        parts = read(data, "x").parts
        return [part if isinstance(part, str) else part.tobytes() for part in parts]

    assert prints() == prints()


@pytest.mark.parametrize("data", [picture(), b"Hello", b"<html>x"])
def test_pages_are_refused_where_there_are_none(data: bytes) -> None:
    assert isinstance(refusal(data, pages="1"), InputError)


@pytest.mark.parametrize(
    ("package", "data"),
    [("pypdfium2", pdf()), ("docx", word()), ("openpyxl.utils", workbook()), ("pptx", slides())],
)
def test_a_missing_extra_is_named(
    package: str, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    error = refusal(data)
    assert isinstance(error, MediaError)
    assert error.code == "missing_extra"
    assert "pip install 'qianyan[documents]'" in str(error)


def test_text_web_pages_and_tables_need_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("pypdfium2", "docx", "openpyxl", "pptx", "lxml"):
        monkeypatch.setitem(sys.modules, package, None)
    for name, data in (("a.txt", b"x"), ("a.html", b"<html>x"), ("a.csv", b"a,b"), ("a.md", b"x")):
        assert read(data, name).parts
