"""PDF: text layers and drawn pages; everything else is one sentence."""

import re
import struct
import threading
import zlib
from collections.abc import Sequence
from hashlib import md5
from io import BytesIO
from pathlib import Path

import pytest
import typst
from PIL import Image

import qianyan
from qianyan.errors import CapacityError, InputError, MediaError, QianyanError
from qianyan.inputs.documents import Document, DocumentLimits, read_document

HELLO = b"BT /F1 24 Tf 72 700 Td (Hello %d) Tj ET"
PAGES, FONT = b"2 0 R", b"3 0 R"


def stream(data: bytes, extra: bytes = b"") -> bytes:
    return b"<< /Length %d %s>>\nstream\n%s\nendstream" % (len(data), extra, data)


def file_of(objects: Sequence[bytes], trailer: bytes = b"") -> bytes:
    """A PDF of objects numbered from 1, the first its catalogue, with a right xref table."""
    out = bytearray(b"%PDF-1.7\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    for offset in offsets:
        out += b"%010d 00000 n \n" % offset
    out += b"trailer\n<< /Size %d /Root 1 0 R %s>>\n" % (len(objects) + 1, trailer)
    return bytes(out) + b"startxref\n%d\n%%%%EOF" % start


def pdf(
    contents: Sequence[bytes],
    *,
    box: bytes = b"[0 0 595 842]",
    catalogue: bytes = b"",
    filters: bytes = b"",
    trailer: bytes = b"",
) -> bytes:
    """A PDF with one page for each content stream."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * index) for index in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R %s>>" % catalogue,
        b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(contents), kids),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for index, content in enumerate(contents):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox %s /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % (box, 5 + 2 * index)
        )
        objects.append(stream(content, filters))
    return file_of(objects, trailer)


def hello(num_pages: int) -> bytes:
    return pdf([HELLO % (index + 1) for index in range(num_pages)])


def read(
    data: bytes,
    *,
    sees: bool = True,
    pages: str | None = None,
    limits: DocumentLimits | None = None,
) -> Document:
    return read_document(
        data,
        name="report.pdf",
        media_type=None,
        limits=limits or DocumentLimits(),
        wants_pictures=sees,
        pages=pages,
    )


def refusal(
    data: bytes,
    *,
    sees: bool = True,
    pages: str | None = None,
    limits: DocumentLimits | None = None,
) -> QianyanError:
    with pytest.raises(QianyanError) as caught:
        read(data, sees=sees, pages=pages, limits=limits)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert not re.search(r"0x|pdfium|Pdfium|Errno|Traceback|/tmp", sentence)
    return caught.value


def is_dark(image: Image.Image) -> bool:
    return image.convert("L").getextrema()[0] < 100  # type: ignore[operator]


def test_pages_come_with_heading_text_and_picture() -> None:
    document = read(hello(2))
    assert document.kind == "pdf"
    assert document.num_pages == 2
    assert document.parts[0] == "[report.pdf, page 1 of 2]\nHello 1"
    assert document.parts[2] == "[report.pdf, page 2 of 2]\nHello 2"
    for image in (document.parts[1], document.parts[3]):
        assert isinstance(image, Image.Image)
        assert image.mode == "RGB"
        assert is_dark(image)
    assert document.notes == ()


def test_chinese_text_with_an_embedded_font_is_read(tmp_path: Path) -> None:
    """A PDF of another program: subset font, compressed streams, an xref stream."""
    source = tmp_path / "report.typ"
    source.write_text(
        '#set text(font: "Noto Sans SC")\n= 火灾 Report\n安全帽 未戴', encoding="utf-8"
    )
    fonts = Path(qianyan.__file__).parent / "assets" / "fonts"
    document = read(typst.compile(str(source), font_paths=[str(fonts)]))
    assert document.parts[0] == "[report.pdf, page 1 of 1]\n火灾 Report\n安全帽 未戴"


def test_the_picture_has_the_named_number_of_pixels_and_the_page_s_shape() -> None:
    limits = DocumentLimits(picture_pixels=500_000)
    image = read(hello(1), limits=limits).parts[1]
    assert isinstance(image, Image.Image)
    assert 490_000 < image.width * image.height <= 500_000
    assert image.width / image.height == pytest.approx(595 / 842, rel=0.01)


def test_small_pages_are_not_blown_up_beyond_print() -> None:
    image = read(pdf([b""], box=b"[0 0 72 144]")).parts[1]
    assert isinstance(image, Image.Image)
    assert image.size == (300, 600)


def test_models_that_read_text_only_get_text_only() -> None:
    document = read(hello(2), sees=False)
    assert document.parts == (
        "[report.pdf, page 1 of 2]\nHello 1\n\n[report.pdf, page 2 of 2]\nHello 2",
    )


def test_a_scan_gives_the_picture_alone() -> None:
    document = read(pdf([b"0 0 300 300 re f"]))
    assert document.parts[0] == "[report.pdf, page 1 of 1]"
    assert isinstance(document.parts[1], Image.Image)
    assert is_dark(document.parts[1])


def test_a_scan_is_refused_for_models_that_read_text_only() -> None:
    error = refusal(pdf([b"0 0 300 300 re f"] * 3), sees=False)
    assert error.code == "no_text"
    assert "no text layer" in str(error)


def test_pages_without_text_are_counted_where_others_have_some() -> None:
    document = read(pdf([HELLO % 1, b"0 0 9 9 re f"]), sees=False)
    assert isinstance(document.parts[0], str)
    assert document.parts[0].endswith("[report.pdf, page 2 of 2: no text layer]")
    assert document.notes == ("pages without a text layer: 1",)


@pytest.mark.parametrize(
    ("pages", "expected"),
    [("2", [2]), ("1-2", [1, 2]), ("4-", [4, 5]), ("5,1, 3", [1, 3, 5]), ("4-90", [4, 5])],
)
def test_chosen_pages_are_read_in_order(pages: str, expected: list[int]) -> None:
    text = read(hello(5), sees=False, pages=pages).parts[0]
    assert isinstance(text, str)
    assert [int(number) for number in re.findall(r"Hello (\d)", text)] == expected
    assert [int(number) for number in re.findall(r"page (\d) of 5", text)] == expected


@pytest.mark.parametrize("pages", ["", "0", "x", "3-1", "1..2", "-3", "1;2", "6", "1234567", "²"])
def test_pages_outside_the_form_or_the_document_are_refused(pages: str) -> None:
    error = refusal(hello(5), pages=pages)
    assert isinstance(error, InputError)
    assert "pages is" in str(error)


def test_sixteen_thousand_pages_are_refused_before_anything_is_drawn() -> None:
    data = hello(16_000)
    error = refusal(data)
    assert isinstance(error, CapacityError)
    assert "16000 pages" in str(error)
    assert 'pages="1-64"' in str(error)
    assert 'pages="1-200"' in str(refusal(data, sees=False))
    assert len(read(data, pages="15999-16000").parts) == 4


def test_text_beyond_the_limit_is_refused_with_a_part_that_is_shorter() -> None:
    error = refusal(hello(10), sees=False, limits=DocumentLimits(max_characters=200))
    assert isinstance(error, CapacityError)
    assert "200 characters" in str(error)
    assert 'pages="1-5"' in str(error)
    read(hello(10), sees=False, pages="1-5", limits=DocumentLimits(max_characters=200))


def rc4(key: bytes, data: bytes) -> bytes:
    box = list(range(256))
    j = 0
    for i in range(256):
        j = (j + box[i] + key[i % len(key)]) % 256
        box[i], box[j] = box[j], box[i]
    out = bytearray()
    i = j = 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + box[i]) % 256
        box[i], box[j] = box[j], box[i]
        out.append(byte ^ box[(box[i] + box[j]) % 256])
    return bytes(out)


def encrypted(password: bytes) -> bytes:
    """One page under the standard security handler, revision 2 (ISO 32000-1, 7.6.3)."""
    padding = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
    identity = b"0123456789abcdef"

    def padded(word: bytes) -> bytes:
        return (word + padding)[:32]

    owner = rc4(md5(padded(b"owner")).digest()[:5], padded(password))  # noqa: S324
    permissions = struct.pack("<i", -4)
    key = md5(padded(password) + owner + permissions + identity).digest()[:5]  # noqa: S324
    user = rc4(key, padding)
    content = rc4(md5(key + b"\5\0\0\0\0").digest()[:10], HELLO % 1)  # noqa: S324
    dictionary = (
        b"/Encrypt << /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4 >> /ID [<%s> <%s>] "
    )
    hexed = [part.hex().encode() for part in (owner, user, identity, identity)]
    return pdf([content], trailer=dictionary % tuple(hexed))


def test_a_password_is_asked_to_be_removed() -> None:
    error = refusal(encrypted(b"secret"))
    assert error.code == "password"
    assert "password" in str(error)


def test_a_document_that_only_its_owner_may_print_is_read() -> None:
    assert read(encrypted(b"")).parts[0] == "[report.pdf, page 1 of 1]\nHello 1"


def test_a_wrong_xref_is_repaired() -> None:
    data = hello(2).replace(b"startxref\n", b"startxref\n77")
    assert read(data, sees=False).parts == read(hello(2), sees=False).parts


@pytest.mark.parametrize("kept", [0.02, 0.1, 0.3, 0.5])
def test_truncated_files_are_read_as_far_as_they_go_or_refused(kept: float) -> None:
    data = hello(3)
    assert refusal(data[: int(len(data) * kept)]).code in {"truncated", "no_content"}


@pytest.mark.parametrize("data", [b"%PDF-1.7", b"%PDF-1.7\n" + b"\xff" * 500, file_of([b"null"])])
def test_files_that_only_begin_as_a_pdf_are_refused(data: bytes) -> None:
    assert refusal(data).code == "truncated"


def test_rubbish_before_the_header_does_no_harm() -> None:
    assert read(b"\r\n\r\n" + hello(1)).parts[0] == "[report.pdf, page 1 of 1]\nHello 1"


def test_scripts_and_attachments_are_noted_and_left_alone() -> None:
    catalogue = (
        b"/OpenAction << /S /JavaScript /JS (while(true){}) >> /Names << "
        b"/JavaScript << /Names [(a) << /S /JavaScript /JS (app.alert\\(1\\)) >>] >> "
        b"/EmbeddedFiles << /Names [(x.exe) << /Type /Filespec /F (x.exe) /EF << /F 5 0 R >> >>] >>"
        b" >> "
    )
    document = read(pdf([HELLO % 1], catalogue=catalogue))
    assert document.parts[0] == "[report.pdf, page 1 of 1]\nHello 1"
    assert document.notes == ("attached files that are not opened: 1", "scripts are never run")


def test_what_is_typed_into_a_form_is_read_and_drawn() -> None:
    field = (
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (site) /V (North gate) /F 4 "
        b"/Rect [10 10 290 60] /DA (/F1 24 Tf 0 g) >>"
    )
    data = file_of(
        [
            b"<< /Type /Catalog /Pages 2 0 R /AcroForm << /DA (/F1 12 Tf 0 g) "
            b"/DR << /Font << /F1 3 0 R >> >> /Fields [5 0 R] >> >>",
            b"<< /Type /Pages /Count 1 /Kids [4 0 R] >>",
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 100] /Annots [5 0 R] >>",
            field,
        ]
    )
    document = read(data)
    assert document.parts[0] == "[report.pdf, page 1 of 1]\n[field site: North gate]"
    assert isinstance(document.parts[1], Image.Image)
    assert is_dark(document.parts[1])


@pytest.mark.parametrize("box", [b"[0 0 0 0]", b"[0 0 nan -5]", b"[]", b"[0 0 14400000 14400000]"])
def test_pages_of_absurd_size_are_drawn_within_the_limit(box: bytes) -> None:
    image = read(pdf([HELLO % 1], box=box)).parts[1]
    assert isinstance(image, Image.Image)
    assert image.width * image.height <= DocumentLimits().picture_pixels


@pytest.mark.parametrize("box", [b"[0 0 1000000 1]", b"[0 0 0.001 0.001]"])
def test_strips_and_specks_are_not_drawn(box: bytes) -> None:
    assert refusal(pdf([b"0 0 9 9 re f"], box=box)).code == "no_content"


def test_a_strip_among_pages_is_counted() -> None:
    data = pdf([HELLO % 1, HELLO % 2]).replace(b"[0 0 595 842]", b"[0 0 99999 9]", 1)
    document = read(data)
    assert "pages that are strips and not shown: 1" in document.notes
    assert sum(isinstance(part, Image.Image) for part in document.parts) == 1


def test_a_page_whose_content_unpacks_without_end_is_refused() -> None:
    bomb = zlib.compress(b"0 0 m 1 1 l S\n" * 4_000_000)
    assert len(bomb) < 200_000
    error = refusal(pdf([bomb], filters=b"/Filter /FlateDecode "))
    assert error.code == "too_large"


def test_pictures_in_a_page_may_be_larger_than_its_text() -> None:
    limits = DocumentLimits(max_markup_bytes=100_000)
    pixels = zlib.compress(b"\x40" * (1000 * 1000))
    picture = (
        b"/Type /XObject /Subtype /Image /Width 1000 /Height 1000 /BitsPerComponent 8 "
        b"/ColorSpace /DeviceGray /Filter /FlateDecode "
    )
    page = (
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 500 500] /Contents 4 0 R "
        b"/Resources << /XObject << /Im 5 0 R >> >> >>"
    )
    data = file_of(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>",
            page,
            stream(b"500 0 0 500 0 0 cm /Im Do"),
            stream(pixels, picture),
        ]
    )
    image = read(data, limits=limits).parts[1]
    assert isinstance(image, Image.Image)
    assert image.getpixel((300, 300)) == (64, 64, 64)


def test_a_page_that_takes_too_long_is_given_up() -> None:
    slow = zlib.compress(b"0 0 m 600 800 l 3 4 l S\n" * 400_000)
    error = refusal(
        pdf([slow], filters=b"/Filter /FlateDecode "), limits=DocumentLimits(timeout_s=0.2)
    )
    assert isinstance(error, MediaError)
    assert error.code == "timeout"


def test_a_page_that_is_missing_is_counted_and_the_others_read() -> None:
    data = hello(3).replace(b"/Kids [4 0 R 6 0 R 8 0 R]", b"/Kids [4 0 R 1 0 R 8 0 R]")
    document = read(data, sees=False)
    assert document.parts == (
        "[report.pdf, page 1 of 3]\nHello 1\n\n[report.pdf, page 2 of 3: damaged]\n\n"
        "[report.pdf, page 3 of 3]\nHello 3",
    )
    assert document.notes == ("pages that are damaged and cannot be read: 1",)


def test_threads_read_side_by_side() -> None:
    expected = read(hello(3)).parts[0]
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(read(hello(3)).parts[0])) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 6


def test_the_same_bytes_give_the_same_parts() -> None:
    def prints() -> list[bytes | str]:
        parts = read(hello(2)).parts
        return [part if isinstance(part, str) else part.tobytes() for part in parts]

    assert prints() == prints()


def test_a_picture_named_pdf_is_a_picture() -> None:
    out = BytesIO()
    Image.new("RGB", (40, 30), "red").save(out, "PNG")
    document = read(out.getvalue())
    assert document.kind == "image"
    assert [part.size for part in document.parts if isinstance(part, Image.Image)] == [(40, 30)]
