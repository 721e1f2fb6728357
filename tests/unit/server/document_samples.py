"""One document of every format that is read, each saying the same; read with runpy by tests."""

import json
import zipfile
from io import BytesIO
from pathlib import Path

import docx
import openpyxl
import pptx
from PIL import Image, ImageDraw, ImageFont

import qianyan

WORDS = "Crane checked at 6"
FONT = Path(qianyan.__file__).parent / "assets" / "fonts" / "NotoSansSC-Regular.ttf"
_CONTAINER = (
    '<?xml version="1.0"?><container version="1.0" '
    'xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile '
    'full-path="book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)
_BOOK = (
    '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata '
    'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Cranes</dc:title></metadata><manifest>'
    '<item id="a" href="a.xhtml" media-type="application/xhtml+xml"/></manifest>'
    '<spine><itemref idref="a"/></spine></package>'
)


def sign(text: str = WORDS) -> Image.Image:
    """Draw a picture with a line of text."""
    image = Image.new("RGB", (640, 560), "white")  # small, and not enlarged by the reader
    font = ImageFont.truetype(str(FONT), 48)
    ImageDraw.Draw(image).text((40, 80), text, font=font, fill="black")
    return image


def picture(kind: str, text: str = WORDS) -> bytes:
    """Save such a picture; as PDF it is a scan."""
    held = BytesIO()
    sign(text).save(held, kind)
    return held.getvalue()


def printed_pdf(*pages: str) -> bytes:
    """Write a PDF with a text layer, a line for each page."""
    kids = " ".join(f"{3 + 2 * at} 0 R" for at in range(len(pages)))
    font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} /MediaBox [0 0 300 200] "
        f"/Resources << /Font << /F1 {font} >> >> >>",
    ]
    for at, text in enumerate(pages):
        stream = f"BT /F1 18 Tf 20 100 Td ({text}) Tj ET"
        objects.append(f"<< /Type /Page /Parent 2 0 R /Contents {4 + 2 * at} 0 R >>")
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    out, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{one}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    head = f"xref\n0 {len(places) + 1}\n0000000000 65535 f \n{table}"
    tail = f"trailer\n<< /Size {len(places) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + (head + tail).encode()


def samples() -> dict[str, bytes]:
    """Write them all, by file name."""
    page = f"<html><body><h1>Cranes</h1><p>{WORDS}</p></body></html>"
    return {
        "a.pdf": printed_pdf(WORDS),
        "a.docx": _docx(),
        "a.xlsx": _xlsx(),
        "a.pptx": _pptx(),
        "a.epub": _epub(page),
        "a.txt": WORDS.encode(),
        "a.md": f"# Cranes\n\n{WORDS}\n".encode(),
        "a.html": page.encode(),
        "a.csv": f"what,when\n{WORDS},daily\n".encode(),
        "a.json": json.dumps({"rule": WORDS}).encode(),
    }


def _docx() -> bytes:
    held, document = BytesIO(), docx.Document()
    document.add_paragraph(WORDS)
    document.save(held)
    return held.getvalue()


def _xlsx() -> bytes:
    held, book = BytesIO(), openpyxl.Workbook()
    book.active.append([WORDS])
    book.save(held)
    return held.getvalue()


def _pptx() -> bytes:
    held, slides = BytesIO(), pptx.Presentation()
    slides.slides.add_slide(slides.slide_layouts[0]).shapes.title.text = WORDS
    slides.save(held)
    return held.getvalue()


def _epub(page: str) -> bytes:
    held = BytesIO()
    members = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": _CONTAINER,
        "book.opf": _BOOK,
        "a.xhtml": page.replace("<html>", '<html xmlns="http://www.w3.org/1999/xhtml">'),
    }
    with zipfile.ZipFile(held, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return held.getvalue()
