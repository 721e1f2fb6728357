"""Read Word documents (.docx): headings, lists, tables and pictures in reading order.

python-docx opens the package; the text is walked here, because its paragraphs leave out what a
reader sees: text boxes, content controls, insertions, list numbers, footnotes. Tracked changes are
read as accepted. Headers come first and footers last, each text once (ECMA-376, part 1).
"""

import re
from collections.abc import Iterator
from typing import Any

from qianyan.errors import MediaError, quote
from qianyan.inputs.archive import Package
from qianyan.inputs.document_parts import (
    Document,
    Pieces,
    clean,
    one_line,
    refusing_damage,
)
from qianyan.inputs.word_numbering import BULLET, Numbering, W
from qianyan.inputs.word_text import GONE, MC, SILENT, Inline, Picture, alternative

_HEADING = re.compile(r"(?:heading|标题)\s*([1-9])", re.IGNORECASE)


def read_word(package: Package, pieces: Pieces) -> Document:
    """Put a Word document into `pieces`.

    Raises:
        MediaError: code missing_extra, truncated, no_content or timeout.
        CapacityError: more text, pictures or table cells than the limits allow.
    """
    try:
        import docx  # noqa: PLC0415  (extra: documents)
        from docx.opc.exceptions import OpcError  # noqa: PLC0415  (extra: documents)
    except ImportError as error:
        raise MediaError(
            f"{quote(pieces.name)} is a Word document, which needs the extra: "
            "pip install 'qianyan[documents]'.",
            code="missing_extra",
        ) from error
    with refusing_damage(pieces.name, OpcError):
        document = docx.Document(package.packed())
        _add_document(document, pieces)
    return pieces.document("docx")


def _add_document(document: Any, pieces: Pieces) -> None:
    parts = _Parts(document)
    numbering = parts.elements("numbering")
    shapes = _Styles(document.styles.element, Numbering(numbering[0][1] if numbering else None))
    for part, root in parts.elements("header"):
        _Story(part, shapes, pieces).add_aside("header", root)
    _Story(document.part, shapes, pieces).add_blocks(document.element.body)
    for kind, letter in (("footnotes", ""), ("endnotes", "e")):
        for part, root in parts.elements(kind):
            for note in root:
                if note.get(f"{W}type") is None:
                    label = f"^{letter}{note.get(f'{W}id')}"
                    _Story(part, shapes, pieces).add_aside(label, note)
    for part, root in parts.elements("footer"):
        _Story(part, shapes, pieces).add_aside("footer", root)
    for _, root in parts.elements("comments"):
        if comments := sum(1 for _ in root.iter(f"{W}comment")):
            pieces.count("comments left out", comments)


class _Parts:
    """The parts that a document's main part refers to, by the last word of the relation."""

    def __init__(self, document: Any) -> None:
        self._relations = [rel for rel in document.part.rels.values() if not rel.is_external]

    def elements(self, kind: str) -> list[tuple[Any, Any]]:
        """Find parts of a kind with their XML, in the order of their names."""
        from docx.oxml import parse_xml  # noqa: PLC0415  (extra: documents)

        found = [rel.target_part for rel in self._relations if rel.reltype.endswith(f"/{kind}")]
        found.sort(key=lambda part: str(part.partname))
        return [(part, parse_xml(part.blob)) for part in found]


class _Styles:
    """What paragraph styles say about headings and lists, inherited from style to style."""

    def __init__(self, root: Any, numbering: Numbering) -> None:
        self.numbering = numbering
        self._styles = {style.get(f"{W}styleId"): style for style in root.iter(f"{W}style")}

    def prefix(self, paragraph: Any) -> tuple[str, bool]:
        """Write what stands before a paragraph's text, and whether it is a list item."""
        chain = [paragraph, *self._ancestors(_find(paragraph, "pPr/pStyle"))]
        heading = next((level for level in map(self._heading_level, chain) if level), 0)
        label, level = self._label(chain)
        if heading:
            return "#" * min(heading, 6) + " " + (
                f"{label} " if label not in {"", BULLET} else ""
            ), False
        return ("  " * level + f"{label} ", True) if label else ("", False)

    def _ancestors(self, style_id: str) -> list[Any]:
        chain: list[Any] = []
        while (style := self._styles.get(style_id)) is not None and style not in chain:
            chain.append(style)
            style_id = _find(style, "basedOn")
        return chain

    @staticmethod
    def _heading_level(owner: Any) -> int:
        name = _find(owner, "name")
        if found := _HEADING.fullmatch(name.strip()):
            return int(found[1])
        if name.lower() in {"title", "标题"}:
            return 1
        outline = _find(owner, "pPr/outlineLvl")
        return int(outline) + 1 if outline.isdigit() and int(outline) < 9 else 0

    def _label(self, chain: list[Any]) -> tuple[str, int]:
        number_id = next(
            (found for owner in chain if (found := _find(owner, "pPr/numPr/numId"))), ""
        )
        if number_id in {"", "0"}:  # 0 takes a paragraph out of its style's list
            return "", 0
        stated = next((found for owner in chain if (found := _find(owner, "pPr/numPr/ilvl"))), "")
        style_id = _find(chain[0], "pPr/pStyle")
        level = int(stated) if stated else self.numbering.level_of_style(number_id, style_id)
        return self.numbering.label(number_id, level).strip(), min(max(level, 0), 8)


class _Story:
    """One flow of text: the body, a header, a footnote. Pictures are looked up in its part."""

    def __init__(self, part: Any, styles: _Styles, pieces: Pieces) -> None:
        self._inline = Inline(part, pieces)
        self._styles = styles
        self._pieces = pieces
        self._was_item = False

    def add_blocks(self, container: Any) -> None:
        """Add paragraphs and tables in order."""
        for block in self._blocks(container):
            self._pieces.check_time()
            if block.tag == f"{W}tbl":
                self._was_item = False
                self._add_table(block)
            else:
                self._add_paragraph(block)

    def add_aside(self, label: str, container: Any) -> None:
        """Add a header, footer or footnote: its lines behind its label."""
        pictures: list[Picture] = []
        lines = " / ".join(
            line.strip() for line in self._lines(container, pictures) if line.strip()
        )
        if lines:
            self._pieces.add_text(f"[{label}]: {lines}")
        if pictures:
            self._pieces.count("pictures in headers, footers and notes left out", len(pictures))

    def _blocks(self, container: Any) -> Iterator[Any]:
        for child in container:
            if child.tag in {f"{W}p", f"{W}tbl"}:
                yield child
            elif child.tag == f"{W}altChunk":
                self._pieces.count("inserted files that are not opened")
            elif child.tag == f"{MC}AlternateContent":
                yield from self._blocks(alternative(child))
            elif isinstance(child.tag, str) and child.tag not in GONE | SILENT:
                yield from self._blocks(child)

    def _add_paragraph(self, paragraph: Any) -> None:
        items = self._inline.items(paragraph)
        prefix, is_item = self._styles.prefix(paragraph) if items else ("", False)
        text = prefix
        boxes = []
        for item in items:
            if isinstance(item, str):
                text += item
                continue
            self._add_text(text, prefix, is_item=is_item)
            text = ""
            if isinstance(item, Picture):
                self._pieces.add_picture(item.data, item.alt)
            else:
                boxes.append(item)
        self._add_text(text, prefix, is_item=is_item)
        for box in boxes:
            self.add_blocks(box)

    def _add_text(self, text: str, prefix: str, *, is_item: bool) -> None:
        if not text.removeprefix(prefix).strip():
            return
        if prefix.startswith("#"):
            text = one_line(text)
        self._pieces.add_text(text.rstrip(), gap="\n" if is_item and self._was_item else "\n\n")
        self._was_item = is_item

    def _add_table(self, table: Any) -> None:
        cells = [[*_inside(row, f"{W}tc")] for row in _inside(table, f"{W}tr")]
        if [len(row) for row in cells] == [1]:  # a frame around text rather than a table
            self.add_blocks(cells[0][0])
            return
        pictures: list[Picture] = []
        marks: list[str] = []
        rows = []
        size = 0
        for row in cells:
            rows.append(self._row(row, pictures, marks))
            size += sum(map(len, rows[-1]))
            self._pieces.check_table(len(rows), len(rows[-1]))
            self._pieces.check_room(size)
        self._pieces.add_table(rows)
        for mark, picture in zip(marks, pictures, strict=True):
            self._pieces.add_text(mark)
            self._pieces.add_picture(picture.data, picture.alt)

    def _row(self, cells: list[Any], pictures: list[Picture], marks: list[str]) -> list[str]:
        row: list[str] = []
        for cell in cells:
            span = int(_find(cell, "tcPr/gridSpan") or 1)
            self._pieces.check_table(1, len(row) + span)
            merged = cell.find(f"{W}tcPr/{W}vMerge")
            if merged is not None and merged.get(f"{W}val") != "restart":
                row += [""] * span
                continue
            found: list[Picture] = []
            lines = self._lines(cell, found)
            added = [self._pieces.mark() for _ in found]
            pictures += found
            marks += added
            row += ["\n".join([*lines, *added]), *[""] * (span - 1)]
        return row

    def _lines(self, container: Any, pictures: list[Picture]) -> list[str]:
        """Write blocks as plain lines; their pictures go to `pictures`."""
        lines = []
        for block in self._blocks(container):
            if block.tag == f"{W}tbl":
                for row in _inside(block, f"{W}tr"):
                    cells = [
                        " ".join(self._lines(cell, pictures)) for cell in _inside(row, f"{W}tc")
                    ]
                    lines.append("; ".join(cell for cell in cells if cell))
                continue
            items = self._inline.items(block)
            prefix, is_item = self._styles.prefix(block) if items else ("", False)
            text = clean("".join(item for item in items if isinstance(item, str))).strip()
            lines += [f"{prefix if is_item else ''}{text}"] if text else []
            for item in items:
                if isinstance(item, Picture):
                    pictures.append(item)
                elif not isinstance(item, str):
                    lines += self._lines(item, pictures)
        return lines


def _find(owner: Any, path: str) -> str:
    """Read the w:val of a descendant; "" where there is none."""
    found = owner.find("/".join(f"{W}{step}" for step in path.split("/")))
    return "" if found is None else str(found.get(f"{W}val", ""))


def _inside(container: Any, tag: str) -> Iterator[Any]:
    """Find rows or cells of a table, through content controls, not through nested tables."""
    for child in container:
        if child.tag == tag:
            if child.find(f"{W}trPr/{W}del") is None:
                yield child
        elif child.tag not in {f"{W}tc", f"{W}tbl"} | SILENT and isinstance(child.tag, str):
            yield from _inside(child, tag)
