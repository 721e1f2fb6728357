"""What one paragraph of a Word document holds: its text, pictures and text boxes.

Whatever stands in a paragraph is walked, known or not; only what a reader does not see is passed
over (ECMA-376, part 1, section 17.3).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qianyan.inputs.document_parts import Pieces, one_line
from qianyan.inputs.word_numbering import W

_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_C = "{http://schemas.openxmlformats.org/drawingml/2006/chart}"
_DGM = "{http://schemas.openxmlformats.org/drawingml/2006/diagram}"
_V = "{urn:schemas-microsoft-com:vml}"
_WP = "{http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing}"

_WEB_ADDRESS = re.compile(r"(?:https?|mailto|ftp):", re.IGNORECASE)
SILENT = frozenset(f"{W}{tag}" for tag in ("pPr", "rPr", "instrText", "delText", "tblPr", "tcPr"))
GONE = frozenset({f"{W}del", f"{W}moveFrom"})
_SPELLED = {f"{W}tab": "\t", f"{W}br": "\n", f"{W}cr": "\n", f"{W}noBreakHyphen": "-"}
# Symbol fonts' code points that stand in inspection forms as boxes and ticks.
_SYMBOLS = {0xF0FE: "☒", 0xF0FD: "☒", 0xF0A8: "☐", 0xF06F: "☐", 0xF0FC: "✓", 0xF0FB: "✗"}


@dataclass(frozen=True)
class Picture:
    """A picture embedded in the text, with the words that stand for it."""

    data: bytes
    alt: str


Item = str | Picture | Any  # text, a picture, or a text box's element with blocks of its own


class Inline:
    """Reads paragraphs of one part, in which relations to pictures and links are looked up."""

    def __init__(self, part: Any, pieces: Pieces) -> None:
        self._part = part
        self._pieces = pieces

    def items(self, paragraph: Any) -> list[Item]:
        """List what a paragraph holds, texts joined between pictures and text boxes."""
        joined: list[Item] = []
        for item in self._inline(paragraph, ""):
            if isinstance(item, str) and joined and isinstance(joined[-1], str):
                joined[-1] += item
            else:
                joined.append(item)
        return joined

    def _inline(self, node: Any, alt: str) -> Iterator[Item]:
        for child in node:
            tag = child.tag
            if not isinstance(tag, str) or tag in SILENT:
                continue
            if tag in {f"{W}t", f"{_M}t"}:
                yield child.text or ""
            elif tag in _SPELLED:
                yield _SPELLED[tag]
            elif tag in GONE:
                self._pieces.count("tracked deletions left out")
            elif tag == f"{W}r" and child.find(f"{W}rPr/{W}vanish") is not None:
                self._pieces.count("hidden texts left out")
            elif tag == f"{W}hyperlink":
                yield from self._link(child, alt)
            elif tag == f"{W}txbxContent":
                yield child
            else:
                yield from self._drawn(child, alt)

    def _drawn(self, child: Any, alt: str) -> Iterator[Item]:
        """Take symbols, notes, pictures and what else is no plain text."""
        tag = child.tag
        if tag == f"{W}sym":
            code = int(child.get(f"{W}char", "0"), 16)
            yield _SYMBOLS.get(code, "" if 0xE000 <= code < 0xF900 else chr(code))
        elif tag in {f"{W}footnoteReference", f"{W}endnoteReference"}:
            yield f"[^{'e' if tag.endswith('endnoteReference') else ''}{child.get(f'{W}id')}]"
        elif tag in {f"{_A}blip", f"{_V}imagedata"}:
            yield from self._picture(child, alt)
        elif tag == f"{MC}AlternateContent":
            yield from self._inline(alternative(child), alt)
        elif tag in {f"{_C}chart", f"{_DGM}relIds"}:
            self._pieces.count("charts and diagrams left out")
        else:
            found = child.find(f".//{_WP}docPr") if tag == f"{W}drawing" else None
            yield from self._inline(child, alt if found is None else found.get("descr", ""))

    def _picture(self, blip: Any, alt: str) -> Iterator[Item]:
        relation = blip.get(f"{_R}embed") or blip.get(f"{_R}id")
        part = self._part.rels.get(relation)
        if part is not None and not part.is_external:
            yield Picture(part.target_part.blob, alt)
        else:
            yield "[picture outside the document]"

    def _link(self, link: Any, alt: str) -> Iterator[Item]:
        items = list(self._inline(link, alt))
        relation = self._part.rels.get(link.get(f"{_R}id"))
        address = str(relation.target_ref) if relation is not None and relation.is_external else ""
        text = "".join(item for item in items if isinstance(item, str))
        if _WEB_ADDRESS.match(address) and text.strip() and text.strip() != address:
            yield f"[{text}]({one_line(address)})"
            yield from (item for item in items if not isinstance(item, str))
        else:
            yield from items


def alternative(content: Any) -> Any:
    """Choose the newer way something is written; the other shows the same again."""
    choice = content.find(f"{MC}Choice")
    if choice is None:
        choice = content.find(f"{MC}Fallback")
    return () if choice is None else choice
