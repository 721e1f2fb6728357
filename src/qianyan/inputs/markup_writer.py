"""Write what is seen of a web page as Markdown: blocks, lists, quotes, code and tables."""

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from qianyan.inputs.document_parts import Pieces, one_line

BLOCKS = frozenset(
    (
        *("address", "article", "aside", "blockquote", "body", "center", "dd", "details", "dialog"),
        *("div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "header"),
        *("hgroup", "html", "legend", "li", "main", "menu", "nav", "ol", "p", "section"),
        *("summary", "ul"),
    )
)
HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_BREAK = "\0"  # stands for <br> while white space is put together; texts have none
_DEEPEST_INDENT = 20
_NOT_AN_ADDRESS = re.compile(
    r"\s*(?:javascript|data|vbscript|about|blob):|\s*#|\s*$", re.IGNORECASE
)
_DATA_PICTURE = re.compile(r"\s*data:image/[\w.+-]{1,40}((?:;[\w=.+-]{1,40})*),", re.IGNORECASE)
_UNTYPED_INPUTS = frozenset({"password", "file", "image", "range", "color"})


FindPicture = Callable[[str], bytes | None]
"""From a picture's address to its bytes; None for one that is not at hand."""


@dataclass
class _Table:
    """One table while it is read; a table that holds another is layout."""

    rows: list[list[str]] = field(default_factory=list)
    cell: list[str] | None = None  # the open cell's lines
    span: tuple[int, int] = (1, 1)  # of the open cell, (columns, rows)
    reserved: dict[int, int] = field(default_factory=dict)  # column -> rows a cell above takes
    pictures: list[tuple[str, bytes, str]] = field(default_factory=list)
    size: int = 0
    is_layout: bool = False


@dataclass
class _List:
    next_number: int | None  # None for bullets


class Writer:
    """Turns the elements of a page, as they come, into blocks of text."""

    def __init__(self, pieces: Pieces, find_picture: FindPicture | None = None) -> None:
        self._pieces = pieces
        self._find_picture = find_picture or data_picture
        self._words: list[str] = []
        self._link: tuple[int, str] | None = None  # where its words begin, its address
        self._lists: list[_List] = []
        self._tables: list[_Table] = []
        self._marker = ""
        self._prefix = ""
        self._quotes = 0
        self._is_code = False
        self._was_item = False

    def add_words(self, text: str) -> None:
        """Add running text."""
        self._words.append(text)

    def add_void(self, tag: str, attributes: dict[str, str]) -> None:
        """Add an element without content: a line break, a picture, a form field."""
        if tag == "br":
            self._words.append("\n" if self._is_code else _BREAK)
        elif tag == "hr":
            self._end_block()
        elif tag == "img":
            self._add_picture(attributes)
        elif tag == "input":
            kind = attributes.get("type", "").lower()
            if kind in {"checkbox", "radio"}:
                self._words.append(" ☒ " if "checked" in attributes else " ☐ ")
            elif kind not in _UNTYPED_INPUTS:
                self._words.append(f" {attributes.get('value', '')} ")

    def enter(self, tag: str, attributes: dict[str, str]) -> None:
        """Begin an element."""
        if tag == "a":
            self._link = (len(self._words), attributes.get("href", ""))
            return
        if tag == "svg":
            return
        self._end_block()
        if tag in HEADINGS:
            self._prefix = HEADINGS[tag]
        elif tag == "title":
            self._prefix = "Title: "
        elif tag in {"ul", "menu"}:
            self._lists.append(_List(None))
        elif tag == "ol":
            self._lists.append(_List(_number(attributes.get("start"), 1, 10**6)))
        elif tag == "li":
            self._begin_item(attributes)
        elif tag == "blockquote":
            self._quotes += 1
        elif tag == "pre":
            self._is_code = True
        else:
            self._enter_table(tag, attributes)

    def leave(self, tag: str) -> None:
        """End an element."""
        if tag == "a":
            self._end_link()
            self._link = None
            return
        if tag == "svg":
            return
        self._end_block()
        if tag in HEADINGS or tag == "title":
            self._prefix = ""
        elif tag in {"ul", "ol", "menu"} and self._lists:
            self._lists.pop()
            self._marker = ""
        elif tag == "blockquote":
            self._quotes = max(0, self._quotes - 1)
        elif tag == "pre":
            self._is_code = False
        elif tag in {"td", "th"}:
            self._end_cell()
        elif tag == "table" and self._tables:
            self._write_table(self._tables.pop())

    def finish(self) -> None:
        """Write what is still open."""
        self._end_block()
        while self._tables:
            self._write_table(self._tables.pop())

    def _begin_item(self, attributes: dict[str, str]) -> None:
        indent = "  " * min(max(0, len(self._lists) - 1), _DEEPEST_INDENT)
        current = self._lists[-1] if self._lists else _List(None)
        if current.next_number is None:
            self._marker = f"{indent}- "
            return
        number = _number(attributes.get("value"), current.next_number, 10**6)
        current.next_number = number + 1
        self._marker = f"{indent}{number}. "

    def _end_link(self) -> None:
        """Write the words of the open link, so far, as a link."""
        if self._link is None:
            return
        start, address = self._link
        words = "".join(self._words[start:])
        if one_line(words) and not _NOT_AN_ADDRESS.match(address):
            self._words[start:] = [f"[{words.strip()}]({one_line(address)})"]

    def _end_block(self) -> None:
        """Write the words so far as one block."""
        if self._link is not None:
            self._end_link()
            self._link = (0, self._link[1])  # its next block's words
        text = "".join(self._words)
        self._words.clear()
        if self._is_code:
            text = text.replace(_BREAK, "\n").strip("\n")
        else:
            text = "\n".join(one_line(line) for line in text.split(_BREAK)).strip()
        if not text.strip():
            return
        table = self._tables[-1] if self._tables else None
        if table and not table.is_layout and table.cell is not None:
            table.cell.append(self._marker.lstrip() + text)
            table.size += len(text)
            self._pieces.check_room(table.size)
            self._marker = ""
            return
        self._add_block(text)

    def _add_block(self, text: str) -> None:
        if self._is_code:
            text = f"```\n{text}\n```"
        if self._prefix:
            text = self._prefix + one_line(text)
        marker, self._marker = self._marker, ""
        if not marker and self._lists:
            marker = "  " * min(len(self._lists), _DEEPEST_INDENT)  # goes on with its item
        is_item = bool(marker.strip())
        text = marker + text.replace("\n", "\n" + " " * len(marker))
        if self._quotes:
            quoted = "> " * min(self._quotes, _DEEPEST_INDENT)
            text = quoted + text.replace("\n", "\n" + quoted)
        self._pieces.add_text(text, gap="\n" if is_item and self._was_item else "\n\n")
        self._was_item = bool(self._lists)

    def _add_picture(self, attributes: dict[str, str]) -> None:
        alt = one_line(attributes.get("alt", ""))
        data = self._find_picture(attributes.get("src", ""))
        if data is None:
            self._pieces.count("pictures not fetched")
            self._words.append(f" [picture: {alt}] " if alt else "")
        elif self._tables and not self._tables[-1].is_layout:
            mark = self._pieces.mark()
            self._words.append(f" {mark} ")
            self._tables[-1].pictures.append((mark, data, alt))
        else:
            self._end_block()
            self._pieces.add_picture(data, alt)

    def _enter_table(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "table":
            if self._tables and not self._tables[-1].is_layout:
                outer = self._tables[-1]
                self._end_cell()
                self._write_table(outer)
                self._tables[-1] = _Table(is_layout=True)
            self._tables.append(_Table())
        elif not self._tables:
            return
        elif tag == "tr":
            table = self._tables[-1]
            _end_row(table)
            table.rows.append([])
            self._pieces.check_table(len(table.rows), 0)
        elif tag in {"td", "th"}:
            table = self._tables[-1]
            table.cell = []
            most = self._pieces.limits.max_columns + 1
            table.span = (
                _number(attributes.get("colspan"), 1, most),
                _number(attributes.get("rowspan"), 1, 65534),
            )

    def _end_cell(self) -> None:
        """Put the open cell into its row, behind columns that cells above still take."""
        table = self._tables[-1] if self._tables else None
        if table is None or table.cell is None:
            return
        if not table.rows:
            table.rows.append([])
        row = table.rows[-1]
        while table.reserved.get(len(row), 0):
            table.reserved[len(row)] -= 1
            row.append("")
        columns, rows = table.span
        for column in range(len(row), len(row) + columns):
            table.reserved[column] = rows - 1
        row += ["\n".join(table.cell), *[""] * (columns - 1)]
        table.cell = None
        self._pieces.check_table(1, len(row))

    def _write_table(self, table: _Table) -> None:
        """Write a table; one cell alone is a frame, and its text is written as such."""
        rows = [row for row in table.rows if any(row)]
        if len(rows) == 1 and len([cell for cell in rows[0] if cell]) == 1:
            self._add_block(next(cell for cell in rows[0] if cell))
        elif rows:
            self._pieces.add_table(rows)
        self._was_item = False
        for mark, data, alt in table.pictures:
            self._pieces.add_text(mark)
            self._pieces.add_picture(data, alt)


def _end_row(table: _Table) -> None:
    """Count down what cells above take of the columns that the last row did not reach."""
    if table.rows:
        for column, rows in table.reserved.items():
            if column >= len(table.rows[-1]) and rows:
                table.reserved[column] = rows - 1


def _number(text: str | None, default: int, most: int) -> int:
    """Read a whole number from 0 to `most`; the default where there is none."""
    stated = (text or "").strip()
    if not stated.isascii() or not stated.isdigit() or len(stated) > 7:
        return default
    return min(int(stated), most) or default


def data_picture(source: str) -> bytes | None:
    """Decode a data: URI of a picture; None for everything else."""
    found = _DATA_PICTURE.match(source)
    if found is None:
        return None
    payload = source[found.end() :]
    if not found[1].lower().endswith(";base64"):
        return unquote_to_bytes(payload)
    try:
        return base64.b64decode("".join(payload.split()) + "==")
    except (binascii.Error, ValueError):
        return b""
