"""Places that models mark in running text: a name, then boxes, quads or points in brackets.

Qwen-VL: `<ref>name</ref><box>(x1,y1),(x2,y2)</box>`, several boxes after one name, quads as
`<quad>(x1,y1),(x2,y2),(x3,y3),(x4,y4)</quad>`. Qwen2-VL (section 2): the same with the tokens
`<|object_ref_start|>name<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>`.
Marks are control tokens, which decoders may leave out: `name(x1,y1),(x2,y2)` reads the same.
One pass, no backtracking: time is linear in the text's length. What the numbers mean is decided
by `Notation`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from qianyan.errors import InputError, quote
from qianyan.inputs.grounding import Corners, Markup, Point, box_around

MAX_CHARS = 200_000
MAX_LABEL_CHARS = 80
"""Length of a name without marks around it; what stands further before a place is prose."""

Shape = tuple[Point, ...]
"""Corners as written: one is a point, two are a box, four a quad, any other number a slip."""

_MARKS: dict[Markup, dict[str, str]] = {
    Markup.REF: {
        "ref": "<ref>",
        "/ref": "</ref>",
        "box": "<box>",
        "/box": "</box>",
        "quad": "<quad>",
        "/quad": "</quad>",
    },
    Markup.OBJECT_REF: {
        "ref": "<|object_ref_start|>",
        "/ref": "<|object_ref_end|>",
        "box": "<|box_start|>",
        "/box": "<|box_end|>",
        "quad": "<|quad_start|>",
        "/quad": "<|quad_end|>",
    },
}
_KIND_OF_MARK = {mark: kind for marks in _MARKS.values() for kind, mark in marks.items()}
# Every repetition is bounded, so that no start costs more than a few dozen characters.
_NUMBER = r"\s{0,3}(-?\d{1,9}(?:\.\d{1,9})?)\s{0,3}"
_PIECE = re.compile(
    "|".join(map(re.escape, _KIND_OF_MARK)) + rf"|[(（]{_NUMBER}[,，]{_NUMBER}[)）]"
)
_BETWEEN_CORNERS = re.compile(r"\s{0,3}[,，]\s{0,3}")
_CONTROL_TOKEN = re.compile(r"<\|[a-z_]{1,30}\|>")
_BEFORE_A_NAME = re.compile(r"[\n\r。.!！?？;；:：,，、)）]|<\|[a-z_]{1,30}\|>")
_HALF_A_PLACE = re.compile(r"[(（][-\d\s.,，]{0,40}$")
_AROUND_NAME = " \t\r\n\"'`“”*-"


@dataclass(frozen=True)
class MarkedPlace:
    """A name and the shapes after it; `label` is None where a place has no name.

    `span` is where the name stands in the text.
    """

    label: str | None
    shapes: tuple[Shape, ...]
    span: tuple[int, int] | None = None

    @property
    def boxes(self) -> tuple[Corners | None, ...]:
        """The shapes as upright boxes; None for one that is neither a box nor a quad."""
        return tuple(
            (*shape[0], *shape[1])
            if len(shape) == 2
            else box_around(shape)
            if len(shape) == 4
            else None
            for shape in self.shapes
        )


@dataclass(frozen=True)
class MarkedText:
    """The places of a text in order; `is_cut` says that it ended inside one."""

    places: tuple[MarkedPlace, ...]
    is_cut: bool = False


def write_marked(label: str, shapes: Sequence[Shape], *, markup: Markup) -> str:
    """Write a name and its boxes, quads or points as a model of that generation would.

    Raises InputError for a name with a mark in it, and for shapes of other than 1, 2 or 4 corners.
    """
    marks = _MARKS.get(markup)
    if marks is None:
        raise InputError(f"markup is {quote(markup)}; expected one with marks, ref or object_ref.")
    if any(mark in label for mark in _KIND_OF_MARK):
        raise InputError(f"The name {quote(label)} holds a mark of its own; expected plain words.")
    written = [f"{marks['ref']}{label}{marks['/ref']}"]
    for shape in shapes:
        if len(shape) not in {1, 2, 4}:
            raise InputError(f"A shape has {len(shape)} corners; expected 1, 2 or 4.")
        kind = "quad" if len(shape) == 4 else "box"
        corners = ",".join(f"({x:g},{y:g})" for x, y in shape)
        written.append(f"{marks[kind]}{corners}{marks['/' + kind]}")
    return "".join(written)


def read_marked(text: str) -> MarkedText:
    """Find all places marked in a text; characters beyond MAX_CHARS are cut off.

    A text without places gives none: whether that means "nothing found" is the caller's to say.
    """
    reader = _Reader(text[:MAX_CHARS])
    for piece in _PIECE.finditer(reader.text):
        kind = _KIND_OF_MARK.get(piece[0])
        if kind is None:
            reader.corner(piece)
        else:
            reader.mark(kind, piece)
    return reader.finish(is_cut=len(text) > MAX_CHARS)


def strip_marks(text: str) -> str:
    """Take marks and other control tokens out of a text, for reading by people."""
    plain = _CONTROL_TOKEN.sub("", text)
    for mark in _MARKS[Markup.REF].values():
        plain = plain.replace(mark, "")
    return plain


@dataclass
class _Reader:
    """The state of one pass."""

    text: str
    places: list[MarkedPlace] = field(default_factory=list)
    label: str | None = None  # of the shapes to come
    span: tuple[int, int] | None = None
    shapes: list[Shape] = field(default_factory=list)
    corners: list[Point] = field(default_factory=list)  # of the shape being read
    name_starts: int | None = None  # inside a marked name
    end: int = 0  # of the last piece
    is_inside: bool = False  # of a marked box or quad

    def mark(self, kind: str, piece: re.Match[str]) -> None:
        """Step over a mark."""
        self._close_shape()
        if kind == "ref":
            self._close_place()
            self.name_starts = piece.end()
        elif self.name_starts is not None:  # a box ends a name as well as its own mark does
            self._name(self.name_starts, piece.start())
            self.name_starts = None
        self.is_inside = kind in {"box", "quad"}
        self.end = piece.end()

    def corner(self, piece: re.Match[str]) -> None:
        """Take one bracketed pair; it goes on with a shape when only a comma stands between."""
        if self.name_starts is not None:
            return  # part of a name
        if self.corners:
            between = self.text[self.end : piece.start()]
            if len(between) > 7 or not _BETWEEN_CORNERS.fullmatch(between):
                self._close_shape()
        if not self.corners and not self.is_inside:
            self._name_from_prose(piece.start())
        self.corners.append((float(piece[1]), float(piece[2])))
        self.end = piece.end()

    def finish(self, *, is_cut: bool) -> MarkedText:
        """End the pass; a shape that the end of the text cut in two is left out."""
        tail = self.text[max(self.end, len(self.text) - 48) :]
        is_half = _HALF_A_PLACE.search(tail) is not None
        is_half = is_half or (self.is_inside and len(self.corners) not in {2, 4})
        is_half = is_half or self.name_starts is not None
        if is_half and self.corners:
            self.corners = []
        self._close_shape()
        self._close_place()
        return MarkedText(tuple(self.places), is_cut=is_cut or is_half)

    def _name(self, start: int, end: int) -> None:
        label = self.text[start:end].strip()
        self.label, self.span = (label, (start, end)) if label else (None, None)

    def _name_from_prose(self, at: int) -> None:
        """Take what stands before a place without marks as its name; nothing there: the last one.

        Looks back at most MAX_LABEL_CHARS, to the last end of a sentence or clause.
        """
        start = max(self.end, at - MAX_LABEL_CHARS)
        ends = [found.end() for found in _BEFORE_A_NAME.finditer(self.text, start, at)]
        start = ends[-1] if ends else start
        if not self.text[start:at].strip(_AROUND_NAME):
            return
        self._close_place()
        words = self.text[start:at]
        start += len(words) - len(words.lstrip(_AROUND_NAME))
        self._name(start, start + len(words.strip(_AROUND_NAME)))

    def _close_shape(self) -> None:
        if self.corners:
            self.shapes.append(tuple(self.corners))
            self.corners = []

    def _close_place(self) -> None:
        """Hand over the name with its shapes; a name without any is prose."""
        self._close_shape()
        if self.shapes:
            self.places.append(MarkedPlace(self.label, tuple(self.shapes), self.span))
        self.shapes, self.label, self.span = [], None, None
