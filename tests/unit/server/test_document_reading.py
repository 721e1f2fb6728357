"""Documents for models that see and models that do not, and what is said of what was left out."""

import io
import runpy
import sys
from pathlib import Path

import docx
import pypdfium2
import pytest
from PIL import Image

from qianyan.errors import CapacityError, MediaError
from qianyan.inputs.document_parts import DocumentLimits
from qianyan.server.document_reading import DocumentFile, read_for_model
from qianyan.server.ocr_offline import OfflineReader

SAMPLES = runpy.run_path(str(Path(__file__).with_name("document_samples.py")))
WORDS: str = SAMPLES["WORDS"]
FEW = DocumentLimits(max_pictures=2)


@pytest.fixture(scope="module")
def ocr() -> OfflineReader:
    pytest.importorskip("rapidocr", reason="the extra ocr is not installed")
    return OfflineReader()


def scan(*texts: str) -> bytes:
    """Make a PDF of pictures."""
    first, *others = (SAMPLES["sign"](text) for text in texts)
    held = io.BytesIO()
    first.save(held, "PDF", save_all=True, append_images=others)
    return held.getvalue()


def illustrated(number: int) -> bytes:
    held, document = io.BytesIO(), docx.Document()
    document.add_paragraph(WORDS)
    picture = io.BytesIO(SAMPLES["picture"]("PNG"))
    for _ in range(number):
        document.add_picture(picture)
    document.save(held)
    return held.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.pdf", SAMPLES["printed_pdf"](*[WORDS] * 3)), ("a.docx", illustrated(3))],
)
def test_a_document_with_too_many_pictures_is_read_as_text_and_says_so(
    name: str, data: bytes
) -> None:
    document = read_for_model(DocumentFile(data=data, name=name), FEW, OfflineReader(), sees=True)
    assert all(isinstance(part, str) for part in document.parts)
    assert WORDS in str(document.parts[0])
    assert document.notes == ("its pictures are not shown, as they are more than 2",)


def test_a_scan_of_too_many_pages_is_refused_with_the_way_to_send_less() -> None:
    file = DocumentFile(data=scan("1", "2", "3"), name="a.pdf")
    with pytest.raises(CapacityError, match="3 pages"):
        read_for_model(file, FEW, OfflineReader(), sees=True)


def test_pages_can_be_chosen() -> None:
    data = SAMPLES["printed_pdf"]("one", WORDS, "three")
    file = DocumentFile(data=data, name="a.pdf", pages="2")
    document = read_for_model(file, DocumentLimits(), OfflineReader(), sees=False)
    assert document.parts == (f"[a.pdf, page 2 of 3]\n{WORDS}",)


def test_the_pages_of_a_scan_are_written_out_in_their_places(ocr: OfflineReader) -> None:
    file = DocumentFile(data=scan("First page", WORDS), name="a.pdf")
    document = read_for_model(file, DocumentLimits(), ocr, sees=False)
    (text,) = document.parts
    heads = ["[a.pdf, page 1 of 2]", "First", "[a.pdf, page 2 of 2]", "Crane"]
    places = [str(text).index(words) for words in heads]
    assert places == sorted(places)
    assert document.notes == ("pictures read by text recognition, which may err: 2",)


def mixed() -> bytes:
    """Join a printed page, two scans and another printed page."""
    whole = pypdfium2.PdfDocument.new()
    sources = [SAMPLES["printed_pdf"]("Before"), scan(WORDS, "Signed by Wang"),
               SAMPLES["printed_pdf"]("After")]  # fmt: skip
    for source in sources:
        opened = pypdfium2.PdfDocument(source)
        whole.import_pages(opened)
        opened.close()
    held = io.BytesIO()
    whole.save(held)
    whole.close()
    return held.getvalue()


def test_scans_among_printed_pages_are_read_in_their_places(ocr: OfflineReader) -> None:
    file = DocumentFile(data=mixed(), name="a.pdf")
    document = read_for_model(file, DocumentLimits(), ocr, sees=False)
    (text,) = document.parts
    heads = ["Before", "page 2 of 4]\nCrane", "page 3 of 4]\nSigned", "page 4 of 4]\nAfter"]
    places = [str(text).index(words) for words in heads]
    assert places == sorted(places)
    assert "no text layer" not in str(text)
    assert document.notes == ("pictures read by text recognition, which may err: 2",)


def test_without_the_extra_scans_among_printed_pages_are_said_to_be_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    file = DocumentFile(data=mixed(), name="a.pdf")
    document = read_for_model(file, DocumentLimits(), OfflineReader(), sees=False)
    assert document.notes == ("pages without a text layer: 2",)


def test_a_scan_without_text_is_refused(ocr: OfflineReader) -> None:
    held = io.BytesIO()
    Image.new("RGB", (200, 200), "grey").save(held, "PNG")
    file = DocumentFile(data=held.getvalue(), name="a.png")
    with pytest.raises(MediaError, match="no text was found") as refused:
        read_for_model(file, DocumentLimits(), ocr, sees=False)
    assert refused.value.code == "no_content"


def test_reading_a_scan_has_its_time() -> None:
    file = DocumentFile(data=SAMPLES["picture"]("PNG"), name="a.png")
    with pytest.raises(MediaError, match="longer than 0 seconds") as refused:
        read_for_model(file, DocumentLimits(timeout_s=0), OfflineReader(), sees=False)
    assert refused.value.code == "timeout"
