"""The pictures and text boxes that lie on a workbook's sheets, and WPS's pictures in cells.

openpyxl reads none of them in the mode that keeps memory small (ECMA-376, part 1, section 20.5;
pictures in cells are DISPIMG formulas that name an entry of xl/cellimages.xml).
"""

import re
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from qianyan.inputs.archive import Package, parse_markup
from qianyan.inputs.document_parts import Pieces, one_line

_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_XDR = "{http://schemas.openxmlformats.org/drawingml/2006/spreadsheetDrawing}"
_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_CELL_IMAGES = "xl/cellimages.xml"
_DISPIMG = re.compile(r'DISPIMG\("([^"]{1,100})"')
_COMMENT = re.compile(rb"<(?:\w{1,20}:)?comment[ >]")


@dataclass(frozen=True)
class _Placed:
    """A picture or the text of a box, at the cell under its upper left corner."""

    row: int
    column: int
    content: bytes | str
    alt: str = ""

    @property
    def cell(self) -> str:
        letters, column = "", self.column + 1
        while column > 0:
            column, letter = divmod(column - 1, 26)
            letters = chr(ord("A") + letter) + letters
        return f"{letters}{self.row + 1}"


class Drawings:
    """What lies on the sheets of one workbook."""

    def __init__(self, package: Package, pieces: Pieces) -> None:
        self._package = package
        self._pieces = pieces
        self._members = _sheet_members(package)
        self._in_cells = _cell_images(package)
        for name, blob in package.members.items():
            if name.startswith("xl/comments") and (comments := len(_COMMENT.findall(blob))):
                pieces.count("cell comments left out", comments)

    def image_in_cell(self, text: str) -> bytes | None:
        """Find the picture that a cell's DISPIMG formula names."""
        found = _DISPIMG.search(text)
        return self._in_cells.get(found[1]) if found else None

    def add(self, title: str) -> bool:
        """Add a sheet's pictures and text boxes from top to bottom; tells whether it has any."""
        placed = []
        for kind, drawing in self._package.related(self._members.get(title, "")).values():
            if kind == "drawing" and drawing in self._package.members:
                placed += self._placed(drawing)
        placed.sort(key=lambda item: (item.row, item.column))
        for item in placed:
            if isinstance(item.content, str):
                self._pieces.add_text(f"[text box at {item.cell}]: {item.content}")
            else:
                self._pieces.add_text(f"[picture at {item.cell}]")
                self._pieces.add_picture(item.content, item.alt)
        return bool(placed)

    def _placed(self, drawing: str) -> list[_Placed]:
        images = self._package.related(drawing)
        found = []
        for anchor in parse_markup(self._package.members[drawing]):
            row, column = _corner(anchor)
            for picture in anchor.iter(f"{_XDR}pic"):
                data = _image(picture, images, self._package)
                if data is None:
                    self._pieces.count("pictures outside the document")
                    continue
                name = picture.find(f".//{_XDR}cNvPr")
                alt = "" if name is None else name.get("descr", "")
                found.append(_Placed(row, column, data, alt))
            for shape in anchor.iter(f"{_XDR}sp"):
                paragraphs = (
                    "".join(t.text or "" for t in p.iter(f"{_A}t")) for p in shape.iter(f"{_A}p")
                )
                if text := one_line(" ".join(paragraphs)):
                    found.append(_Placed(row, column, text))
            if charts := sum(1 for _ in anchor.iter(f"{_XDR}graphicFrame")):
                self._pieces.count("charts and diagrams left out", charts)
        return found


def _sheet_members(package: Package) -> dict[str, str]:
    """Find the member of each sheet by its title."""
    main = next(
        (name for kind, name in package.related("").values() if kind == "officeDocument"), ""
    )
    related = package.related(main)
    members = {}
    if main in package.members:
        for sheet in parse_markup(package.members[main]).iter(f"{_MAIN}sheet"):
            _, member = related.get(sheet.get(f"{_R}id", ""), ("", ""))
            members[sheet.get("name", "")] = member
    return members


def _cell_images(package: Package) -> dict[str, bytes]:
    images: dict[str, bytes] = {}
    if _CELL_IMAGES not in package.members:
        return images
    related = package.related(_CELL_IMAGES)
    for picture in parse_markup(package.members[_CELL_IMAGES]).iter(f"{_XDR}pic"):
        name = picture.find(f".//{_XDR}cNvPr")
        data = _image(picture, related, package)
        if name is not None and data is not None:
            images[name.get("name", "")] = data
    return images


def _image(picture: Element, related: dict[str, tuple[str, str]], package: Package) -> bytes | None:
    blip = picture.find(f".//{_A}blip")
    _, member = related.get("" if blip is None else blip.get(f"{_R}embed", ""), ("", ""))
    return package.members.get(member)


def _corner(anchor: Element) -> tuple[int, int]:
    """Read an anchor's first cell, (row, column) from 0; the first cell where it has none."""
    texts = (anchor.findtext(f"{_XDR}from/{_XDR}{axis}", "0") for axis in ("row", "col"))
    row, column = (min(int(text), 1 << 20) for text in texts)
    return row, column
