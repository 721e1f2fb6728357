"""Read web pages (HTML): the text a visitor sees, as Markdown.

Headings, lists, tables, links, quotes and code keep their form; scripts, styles and hidden parts
are dropped. Nothing is fetched: pictures are read from data: URIs only. Tables around tables are
layout and read as running text (HTML Living Standard, sections 13.1.2 and 15.3).
"""

import re
from collections import Counter
from html.parser import HTMLParser

from qianyan.inputs.document_parts import Document, Pieces, clean, damaged, refusing_damage
from qianyan.inputs.markup_writer import BLOCKS, HEADINGS, FindPicture, Writer
from qianyan.inputs.plain_text import decode

_CHUNK = 1 << 16
_LONGEST_REST = 20_000
_DEEPEST = 5_000
_SNIFFED_BYTES = 4096
_CHARSET = re.compile(rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"^\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.:-]{1,40})")

_DROPPED = frozenset({"script", "style", "template", "iframe", "canvas", "datalist", "noembed"})
_VOID = frozenset(
    (
        *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param"),
        *("source", "track", "wbr", "keygen", "frame"),
    )
)
_TABLE_TAGS = frozenset({"table", "thead", "tbody", "tfoot", "tr", "td", "th", "caption"})
_TRACKED = BLOCKS | _TABLE_TAGS | frozenset(HEADINGS) | {"a", "pre", "title", "svg"}
_BARRIERS = frozenset({"td", "th", "table", "caption"})  # what stray end tags do not close
# Elements whose end tag may be left out: what they end when they begin, up to what.
_CELL_ENDS = frozenset({"td", "th", "p", "li"})
_ENDS = {
    "p": (frozenset({"p"}), frozenset({"li", "td", "th", "div", "body", "blockquote"})),
    "li": (frozenset({"li", "p"}), frozenset({"ul", "ol", "menu", "td", "th"})),
    "dt": (frozenset({"dt", "dd", "p"}), frozenset({"dl", "td", "th"})),
    "dd": (frozenset({"dt", "dd", "p"}), frozenset({"dl", "td", "th"})),
    "td": (_CELL_ENDS, frozenset({"tr", "table"})),
    "th": (_CELL_ENDS, frozenset({"tr", "table"})),
    "tr": (_CELL_ENDS | {"tr", "caption"}, frozenset({"table"})),
    **dict.fromkeys(
        ("thead", "tbody", "tfoot"),
        (_CELL_ENDS | {"tr", "caption", "thead", "tbody", "tfoot"}, frozenset({"table"})),
    ),
    "a": (frozenset({"a"}), frozenset({"td", "th"})),
    "body": (frozenset({"title"}), frozenset({"html"})),
}
_HIDING = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d])", re.IGNORECASE
)


def read_markup(data: bytes, pieces: Pieces, declared: str | None = None) -> Document:
    """Put a web page into `pieces`.

    Args:
        data: the page.
        pieces: where its text and pictures go.
        declared: the encoding that came with it, which a byte order mark overrules.

    Raises:
        MediaError: code not_text, too_large, no_content, truncated or timeout.
        CapacityError: more text, pictures or table cells than the limits allow.
    """
    add_markup(data, pieces, declared)
    return pieces.document("html")


def add_markup(
    data: bytes,
    pieces: Pieces,
    declared: str | None = None,
    find_picture: FindPicture | None = None,
) -> None:
    """Put a page into `pieces` that is one of several; errors as for `read_markup`.

    `find_picture` looks pictures up by their addresses; without it those in data: URIs are read.
    """
    text = decode(data, pieces, declared or _stated_encoding(data))
    page = _Page(pieces, find_picture)
    with refusing_damage(pieces.name):
        for start in range(0, len(text), _CHUNK):
            pieces.check_time()
            page.feed(text[start : start + _CHUNK])
        page.finish()


def _stated_encoding(data: bytes) -> str | None:
    start = data[:_SNIFFED_BYTES]
    found = _CHARSET.search(start) or _XML_ENCODING.search(start)
    return found[1].decode("ascii") if found else None


class _Page(HTMLParser):
    """Follows which elements are open and whether they are seen; the writer gets what is seen."""

    def __init__(self, pieces: Pieces, find_picture: FindPicture | None) -> None:
        super().__init__(convert_charrefs=True)
        self._pieces = pieces
        self._writer = Writer(pieces, find_picture)
        self._stack: list[tuple[str, bool]] = []  # (tag, is dropped itself)
        self._open: Counter[str] = Counter()
        self._num_dropped = 0
        self._is_counted = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element; what is not seen goes no further."""
        self._pieces.check_time()
        if tag in _ENDS:
            self._end_implied(*_ENDS[tag])
        stated = {name: value or "" for name, value in attrs}
        is_dropped = _is_dropped(tag, stated)
        if tag in _VOID:
            if not is_dropped and not self._num_dropped:
                self._writer.add_void(tag, stated)
            return
        if not (tag in _TRACKED or is_dropped or self._num_dropped):
            return
        if len(self._stack) >= _DEEPEST:
            raise damaged(self._pieces.name)
        if tag == "iframe" and not self._num_dropped:
            self._pieces.count("frames not fetched")
        self._stack.append((tag, is_dropped))
        self._open[tag] += 1
        if is_dropped:
            # Scripts and styles are never seen by anybody, and not worth a note.
            self._is_counted = self._is_counted if self._num_dropped else tag in _DROPPED
            self._num_dropped += 1
        elif not self._num_dropped:
            self._writer.enter(tag, stated)

    def handle_endtag(self, tag: str) -> None:
        """Close an element and what is open inside it; stray end tags close nothing."""
        if not self._open[tag]:
            return
        barriers = frozenset() if tag in _TABLE_TAGS else _BARRIERS
        for opened, _ in reversed(self._stack):
            if opened == tag:
                break
            if opened in barriers:
                return
        while self._close() != tag:
            pass

    def handle_data(self, data: str) -> None:
        """Take text that is seen, and note text that is hidden."""
        if not self._num_dropped:
            self._writer.add_words(clean(data))
        elif not self._is_counted and data.strip():
            self._pieces.count("hidden parts left out")
            self._is_counted = True

    def parse_marked_section(self, i: int, report: int = 1) -> int:
        """Pass over <![…]> of any word; the library's own raises for those it does not know."""
        del report
        end = self.rawdata.find(">", i)
        return end + 1 if end >= 0 else -1

    def finish(self) -> None:
        """Take the end of the page, with all that was never closed."""
        if len(self.rawdata) > _LONGEST_REST:
            # The library takes quadratic time over a long rest of broken tags.
            self._pieces.count("characters in a tag or comment that never ends", len(self.rawdata))
        else:
            self.close()
        while self._stack:
            self._close()
        self._writer.finish()

    def _end_implied(self, ended: frozenset[str], stops: frozenset[str]) -> None:
        """Close elements whose end tag was left out."""
        while any(self._open[tag] for tag in ended):
            found = next((tag for tag, _ in reversed(self._stack) if tag in ended | stops), "")
            if found not in ended or found in stops:
                return
            while self._close() != found:
                pass

    def _close(self) -> str:
        tag, is_dropped = self._stack.pop()
        self._open[tag] -= 1
        if is_dropped:
            self._num_dropped -= 1
        elif not self._num_dropped:
            self._writer.leave(tag)
        return tag


def _is_dropped(tag: str, attributes: dict[str, str]) -> bool:
    """Whether a visitor sees nothing of an element."""
    return (
        tag in _DROPPED
        or "hidden" in attributes
        or (tag == "dialog" and "open" not in attributes)
        or (tag == "input" and attributes.get("type", "").lower() == "hidden")
        or bool(_HIDING.search(attributes.get("style", "")))
    )
