"""Books: real EPUB archives, and archives that only pretend to be one."""

import zipfile
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from qianyan.errors import CapacityError, InputError, MediaError
from qianyan.inputs.documents import Document, DocumentLimits, read_document

CONTAINER = (
    '<?xml version="1.0"?><container version="1.0" '
    'xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/>'
    "</rootfiles></container>"
)
OPF = (
    '<?xml version="1.0" encoding="utf-8"?><package xmlns="http://www.idpf.org/2007/opf" '
    'version="3.0"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
    "<dc:title>安全 [手册]</dc:title></metadata><manifest>"
    '<item id="b" href="text/two%20b.xhtml" media-type="application/xhtml+xml"/>'
    '<item id="a" href="text/one.xhtml" media-type="application/xhtml+xml"/>'
    '<item id="p" href="pictures/fire.png" media-type="image/png"/>'
    '<item id="gone" href="text/gone.xhtml" media-type="application/xhtml+xml"/>'
    '</manifest><spine><itemref idref="a"/><itemref idref="b"/><itemref idref="gone"/></spine>'
    "</package>"
)
ONE = (
    '<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html><html '
    'xmlns="http://www.w3.org/1999/xhtml"><head><title/><script>alert(1)</script></head>'
    '<body><h1>第一章 消防</h1><p>灭火器每月检查。</p><img src="../pictures/fire.png" alt="fire"/>'
    '<img src="https://far.test/x.png" alt="far"/></body></html>'
)
TWO = "<html><body><h2>Cranes</h2><table><tr><td>a</td><td>b</td></tr></table></body></html>"


def picture() -> bytes:
    out = BytesIO()
    Image.new("RGB", (60, 40), "red").save(out, "PNG")
    return out.getvalue()


def book(**changes: Any) -> bytes:
    members: dict[str, Any] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": OPF,
        "OEBPS/text/one.xhtml": ONE,
        "OEBPS/text/two b.xhtml": TWO,
        "OEBPS/pictures/fire.png": picture(),
        "OEBPS/style.css": "p {color: red}",
    }
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, blob in (members | changes).items():
            if blob is not None:
                archive.writestr(name, blob)
    return out.getvalue()


def read(data: bytes, **options: Any) -> Document:
    settings = {"limits": DocumentLimits(), "wants_pictures": True, "media_type": None} | options
    return read_document(data, name="手册.epub", **settings)


def text_of(document: Document) -> str:
    return "\n\n".join(part for part in document.parts if isinstance(part, str))


def test_chapters_come_in_reading_order_with_their_pictures() -> None:
    document = read(book())
    first, image, second = document.parts
    assert (document.kind, document.num_pages) == ("epub", 2)
    assert str(first).startswith(
        "[手册.epub: 安全 (手册)]\n\n[手册.epub, chapter 1 of 2]\n\n# 第一章 消防\n\n灭火器每月"
    )
    assert isinstance(image, Image.Image)
    assert image.size == (60, 40)
    assert "[手册.epub, chapter 2 of 2]\n\n## Cranes\n\n| a | b |" in str(second)
    assert "alert" not in text_of(document)
    assert set(document.notes) >= {"chapters that are missing: 1", "pictures not fetched: 1"}


def test_chapters_are_chosen_like_pages() -> None:
    document = read(book(), pages="2")
    assert "chapter 2 of 2" in text_of(document)
    assert "chapter 1 of 2" not in text_of(document)
    with pytest.raises(InputError, match="expected numbers"):
        read(book(), pages="9")


def test_models_that_read_text_only_get_a_word_for_each_picture() -> None:
    assert "[picture: fire]" in text_of(read(book(), wants_pictures=False))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"META-INF/container.xml": None}, "unsupported_format"),
        ({"META-INF/container.xml": "<container/>"}, "truncated"),
        ({"META-INF/container.xml": "<container>"}, "truncated"),
        ({"OEBPS/book.opf": None}, "truncated"),
        ({"OEBPS/book.opf": "<package/>"}, "truncated"),
        ({"OEBPS/book.opf": OPF.replace("<package", "<!DOCTYPE a><package")}, "unsafe_archive"),
        ({"../out.xhtml": "x"}, "unsafe_archive"),
        ({"OEBPS/text/one.xhtml": "", "OEBPS/text/two b.xhtml": "<p></p>"}, "no_content"),
    ],
)
def test_what_only_looks_like_a_book_is_refused(changes: Any, code: str) -> None:
    with pytest.raises(MediaError) as caught:
        read(book(**changes))
    assert caught.value.code == code


def test_encrypted_chapters_are_refused_and_scrambled_fonts_are_not() -> None:
    listed = (
        '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container" '
        'xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:EncryptedData><e:CipherData>'
        '<e:CipherReference URI="{}"/></e:CipherData></e:EncryptedData></encryption>'
    )
    assert read(book(**{"META-INF/encryption.xml": listed.format("OEBPS/font.otf")})).parts
    with pytest.raises(MediaError) as caught:
        read(book(**{"META-INF/encryption.xml": listed.format("OEBPS/text/two%20b.xhtml")}))
    assert caught.value.code == "password"


def test_bombs_and_long_books_keep_to_the_limits() -> None:
    bomb = {"OEBPS/text/one.xhtml": "<p>" + "0" * 30_000_000}
    with pytest.raises(MediaError) as caught:
        read(book(**bomb))
    assert caught.value.code == "too_large"
    with pytest.raises(CapacityError, match='pages="1"'):
        read(book(), limits=DocumentLimits(max_pages=1))
    with pytest.raises(CapacityError):
        read(book(), limits=DocumentLimits(max_characters=30))
