"""A document as HTML with places ("QwenVL HTML"): cleaned, and its places in photo pixels.

Qwen2.5-VL writes a page as ordinary tags with `data-bbox="x1 y1 x2 y2"` (Qwen2.5-VL, section 2.2):
paragraphs, tables, and div.chart, div.formula, div.image and the like. What a page says may come
from a stranger, so the result holds a fixed list of tags and attributes and nothing that a browser
would run or load: no scripts, no styles, no links, no addresses of pictures.
One pass over the text, no backtracking: time is linear in its length.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape, unescape

from qianyan.errors import ReplyError
from qianyan.reading.places import PhotoBox, View

log = logging.getLogger(__name__)

MAX_CHARS = 400_000
MAX_DEPTH = 32
"""Tags opened inside this many others are dropped; their text stays."""

_KNOWN = """html body main section article header footer h1 h2 h3 h4 h5 h6 p div span br hr pre code
blockquote ul ol li dl dt dd table caption thead tbody tfoot tr th td figure figcaption img
b i u em strong sub sup s small"""
_DANGEROUS = "script style iframe object embed noscript template title textarea select svg math"
TAGS = frozenset(_KNOWN.split())
VOID_TAGS = frozenset({"br", "hr", "img"})
DROPPED_WITH_CONTENT = frozenset(_DANGEROUS.split())
_ENDED_BY_THE_NEXT = frozenset({"p", "li", "dt", "dd", "tr", "td", "th"})
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]{0,19})([^<>]{0,4000})>")
_ATTRIBUTE = re.compile(
    r"([A-Za-z][\w-]{0,30})\s{0,3}=\s{0,3}(?:\"([^\"]{0,500})\"|'([^']{0,500})')"
)
_CLASS = re.compile(r"[\w -]{1,60}")
_SPAN = re.compile(r"[1-9]\d{0,2}")
_BOX = re.compile(r"-?\d{1,9}(?:\.\d{1,6})?(?:[\s,]{1,3}-?\d{1,9}(?:\.\d{1,6})?){3}")

PROMPT = {"zh": "把这一页转换成 QwenVL HTML。", "en": "Turn this page into QwenVL HTML."}


@dataclass(frozen=True, kw_only=True)
class Element:
    """A part of a page that has a place.

    `kind` is its class ("chart", "formula", …), empty for ordinary text. `box` is in photo pixels,
    None where what the model wrote is no place in the picture.
    """

    tag: str
    kind: str
    text: str
    box: PhotoBox | None


@dataclass(frozen=True, kw_only=True)
class Page:
    """A document page: clean HTML with `data-bbox` in photo pixels, its elements, and the reply."""

    html: str
    elements: tuple[Element, ...]
    raw: str

    @property
    def text(self) -> str:
        """The text of all elements, one per line."""
        return "\n".join(element.text for element in self.elements if element.text)


def parse_page(reply: str, view: View) -> Page:
    """Clean a reply and bring its places to the photo.

    Raises ReplyError when the reply is no HTML, is longer than MAX_CHARS, never ends something that
    has to be left out, or when none of its text has a place. A page without text is a blank one.
    """
    if len(reply) > MAX_CHARS:
        raise ReplyError(
            f"The model's answer is {len(reply)} characters; expected at most {MAX_CHARS}."
        )
    cleaner = _Cleaner(view.box)
    at = 0
    for tag in _TAG.finditer(_without_comments(reply)):
        cleaner.text(tag.string[at : tag.start()])
        cleaner.tag(tag)
        at = tag.end()
        rest = tag.string
    if not cleaner.num_tags:
        raise ReplyError(
            f"The model's answer of {len(reply)} characters is no HTML; expected tags with "
            "data-bbox."
        )
    cleaner.text(_after_page(rest[at:]))
    if cleaner.dropping:
        raise ReplyError(f"The model's HTML has a {cleaner.dropping} that never ends.")
    page = cleaner.finish(reply)
    if not page.elements and cleaner.has_text:
        raise ReplyError("The model's HTML says nowhere where its parts are; expected data-bbox.")
    return page


@dataclass
class _Open:
    """A tag whose end has not come yet, and the element it makes, if it has a place."""

    tag: str
    element: int | None = None


@dataclass
class _Cleaner:
    """The state of one pass."""

    place: Callable[[tuple[float, ...]], PhotoBox | None]
    written: list[str] = field(default_factory=list)
    stack: list[_Open] = field(default_factory=list)
    elements: list[Element] = field(default_factory=list)
    texts: list[list[str]] = field(default_factory=list)  # of each element
    dropping: str | None = None  # the tag whose content is being left out
    num_tags: int = 0
    num_lost: int = 0
    has_text: bool = False
    is_before_page: bool = True

    def text(self, raw: str) -> None:
        """Take text between two tags; what stands before the first tag is no part of the page."""
        if self.dropping or self.is_before_page:
            return
        said = unescape(raw)
        self.written.append(escape(said, quote=False))
        if said.strip():
            self.has_text = True
            for one in self.stack:
                if one.element is not None:
                    self.texts[one.element].append(said)

    def tag(self, found: re.Match[str]) -> None:
        """Take one tag: write it clean, or drop it."""
        is_end, name, rest = bool(found[1]), found[2].lower(), found[3]
        if self.dropping:
            if is_end and name == self.dropping:
                self.dropping = None
        elif name in DROPPED_WITH_CONTENT:
            is_empty = is_end or rest.endswith("/")
            self.dropping = None if is_empty else name
        elif name in TAGS:
            self.is_before_page = False
            self.num_tags += 1
            if is_end:
                self._close(name)
            else:
                self._open(name, dict(_attributes(rest)))

    def finish(self, raw: str) -> Page:
        """Close what is open and hand the page over."""
        while self.stack:
            self._close(self.stack[-1].tag)
        if self.num_lost:
            log.warning("Places outside the page were left out. left_out=%d", self.num_lost)
        elements = tuple(
            Element(tag=one.tag, kind=one.kind, text=_joined(texts), box=one.box)
            for one, texts in zip(self.elements, self.texts, strict=True)
        )
        return Page(html="".join(self.written).strip(), elements=elements, raw=raw)

    def _open(self, name: str, given: dict[str, str]) -> None:
        if self.stack and self.stack[-1].tag == name and name in _ENDED_BY_THE_NEXT:
            self._close(name)
        if len(self.stack) >= MAX_DEPTH:
            return
        kept = []
        kind = given.get("class", "").strip()
        if _CLASS.fullmatch(kind):
            kept.append(f'class="{kind}"')
        kept += [
            f'{key}="{given[key]}"'
            for key in ("colspan", "rowspan")
            if _SPAN.fullmatch(given.get(key, ""))
        ]
        element = None
        if "data-bbox" in given:
            box = self._box(given["data-bbox"])
            element = len(self.elements)
            self.elements.append(Element(tag=name, kind=kind, text="", box=box))
            self.texts.append([])
            if box is not None:
                kept.append(f'data-bbox="{" ".join(map(str, box))}"')
        self.written.append(f"<{' '.join([name, *kept])}>")
        if name not in VOID_TAGS:
            self.stack.append(_Open(name, element))

    def _close(self, name: str) -> None:
        """Close a tag and all that was opened in it; an end that closes nothing is dropped."""
        if name in VOID_TAGS or all(one.tag != name for one in self.stack):
            return
        while True:
            done = self.stack.pop()
            self.written.append(f"</{done.tag}>")
            if done.tag == name:
                return

    def _box(self, said: str) -> PhotoBox | None:
        """Bring a data-bbox to the photo; None, counted, for one that has no place there."""
        box = None
        if _BOX.fullmatch(said.strip()):
            box = self.place(tuple(float(number) for number in said.replace(",", " ").split()))
        self.num_lost += box is None
        return box


def _attributes(text: str) -> list[tuple[str, str]]:
    """List the quoted attributes of a tag, names in lower case; the last of a name counts."""
    return [
        (found[1].lower(), unescape(found[2] if found[2] is not None else found[3]))
        for found in _ATTRIBUTE.finditer(text)
    ]


def _without_comments(text: str) -> str:
    """Leave out comments and declarations."""
    kept, at = [], 0
    while (start := text.find("<!", at)) >= 0:
        kept.append(text[at:start])
        mark = "-->" if text.startswith("<!--", start) else ">"
        end = text.find(mark, start)
        if end < 0:
            raise ReplyError("The model's HTML has a comment that never ends.")
        at = end + len(mark)
    return "".join([*kept, text[at:]])


def _after_page(text: str) -> str:
    """Take what stands after the last tag, less the end of a code fence."""
    return text.replace("```", "")


def _joined(texts: list[str]) -> str:
    return " ".join(" ".join(texts).split())
