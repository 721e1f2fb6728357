"""Boxes, points and words in a model's answer become values in photo pixels, or an error.

Answers are JSON as Qwen2.5-VL writes it (`bbox_2d`, `point_2d`, `text_content`), or names and boxes
marked in running text (Qwen-VL, Qwen2-VL). An empty list is a statement; prose without a place, a
cut answer, and an answer of which nothing can be placed are ReplyErrors. Single objects that cannot
be placed are left out with a line in the log.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qianyan.errors import ReplyError
from qianyan.inputs.grounding import Notation, Size, to_photo_box, to_photo_point
from qianyan.inputs.loose_json import LooseJson, TooDeepError, Value, read_loose_json
from qianyan.inputs.marked_places import read_marked, strip_marks

log = logging.getLogger(__name__)

_BOX_KEYS = ("bbox_2d", "bbox", "box_2d", "box")
_POINT_KEYS = ("point_2d", "point")
_NAME_KEYS = ("label", "text_content", "text", "name", "content")
_COUNT_KEYS = ("count", "number", "total", "数量")
_AROUND = " \t\r\n`.。"
MAX_STATEMENT_CHARS = 200

PhotoBox = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class FoundBox:
    """A thing and where it is: `box` is (x1, y1, x2, y2) in pixels of the photo."""

    label: str
    box: PhotoBox


@dataclass(frozen=True, kw_only=True)
class FoundPoint:
    """A thing and a pixel of the photo that lies on it."""

    label: str
    x: int
    y: int


@dataclass(frozen=True, kw_only=True)
class Count:
    """How many things were boxed, and how many the model says there are (None: it did not say)."""

    boxes: tuple[FoundBox, ...]
    stated: int | None

    @property
    def number(self) -> int:
        """The number of boxes, each of which can be looked at."""
        return len(self.boxes)

    @property
    def agrees(self) -> bool:
        """Whether the model says the same number; if not, trust neither."""
        return self.stated in {None, self.number}


@dataclass(frozen=True, kw_only=True)
class Word:
    """A line or word of text as it is written in the photo, and where."""

    text: str
    box: PhotoBox


@dataclass(frozen=True, kw_only=True)
class View:
    """How a model saw a photo: what its numbers mean, and in which size it was shown."""

    notation: Notation
    seen_wh: Size
    photo_wh: Size

    def box(self, numbers: Sequence[float]) -> PhotoBox | None:
        """Bring a box to the photo; None when nothing of it lies there."""
        x1, y1, x2, y2 = numbers
        return to_photo_box(
            (x1, y1, x2, y2), notation=self.notation, seen_wh=self.seen_wh, photo_wh=self.photo_wh
        )

    def point(self, numbers: Sequence[float]) -> tuple[int, int] | None:
        """Bring a point to the photo; None when it lies outside."""
        x, y = numbers
        return to_photo_point(
            (x, y), notation=self.notation, seen_wh=self.seen_wh, photo_wh=self.photo_wh
        )


@dataclass(frozen=True)
class _Listed:
    """One object as the model wrote it; `numbers` is None where a place was no list of numbers."""

    name: str | None
    numbers: tuple[float, ...] | None


def parse_boxes(reply: str, view: View, *, what: str, nothing: str = "") -> tuple[FoundBox, ...]:
    """Read an answer that boxes things; `what` names those that the model gave no name.

    `nothing` is a word that the question agreed on for "there is none", beside the empty list.

    Raises:
        ReplyError: the answer is cut or not readable, or nothing in it can be placed.
    """
    return _boxes(_list(reply, _BOX_KEYS, nothing), view, what)


def parse_points(reply: str, view: View, *, what: str, nothing: str = "") -> tuple[FoundPoint, ...]:
    """Read an answer that points at things; of a box its centre is taken.

    Arguments and errors as for `parse_boxes`.
    """
    listed = _list(reply, _POINT_KEYS + _BOX_KEYS, nothing)
    found = []
    for one in listed:
        spot = _spot(one.numbers, view)
        if spot is not None:
            found.append(FoundPoint(label=one.name or what, x=spot[0], y=spot[1]))
    _check_placed(len(found), len(listed))
    return tuple(found)


def parse_count(reply: str, view: View, *, what: str, nothing: str = "") -> Count:
    """Read an answer that boxes things and then says how many there are.

    Arguments and errors as for `parse_boxes`.
    """
    boxes = _boxes(_list(reply, _BOX_KEYS, nothing), view, what)
    stated = [
        int(number)
        for found in _read(reply).found
        if isinstance(found.value, dict)
        and isinstance(number := _first(found.value, _COUNT_KEYS), float)
    ]
    return Count(boxes=boxes, stated=stated[0] if stated else None)


def parse_words(reply: str, view: View, *, nothing: str = "") -> tuple[Word, ...]:
    """Read an answer that transcribes text with boxes; arguments and errors as for `parse_boxes`.

    A box without text is left out: it reads nothing.
    """
    listed = _list(reply, _BOX_KEYS, nothing)
    words = [Word(text=one.label, box=one.box) for one in _placed(listed, view, "") if one.label]
    _check_placed(len(words), len(listed))
    return tuple(words)


def _boxes(listed: Sequence[_Listed], view: View, what: str) -> tuple[FoundBox, ...]:
    found = _placed(listed, view, what)
    _check_placed(len(found), len(listed))
    return tuple(found)


def _placed(listed: Sequence[_Listed], view: View, what: str) -> list[FoundBox]:
    placed = [
        (one.name or what, view.box(one.numbers))
        for one in listed
        if one.numbers is not None and len(one.numbers) == 4
    ]
    return [FoundBox(label=name, box=box) for name, box in placed if box is not None]


def _spot(numbers: tuple[float, ...] | None, view: View) -> tuple[int, int] | None:
    if numbers is None or len(numbers) not in {2, 4}:
        return None
    if len(numbers) == 4:
        numbers = ((numbers[0] + numbers[2]) / 2, (numbers[1] + numbers[3]) / 2)
    return view.point(numbers)


def _check_placed(num_placed: int, num_listed: int) -> None:
    if num_listed and not num_placed:
        raise ReplyError(
            f"None of the {num_listed} places in the model's answer lies in the picture; expected "
            "numbers inside it."
        )
    if num_placed < num_listed:
        log.warning(
            "Places that cannot be used were left out. left_out=%d kept=%d",
            num_listed - num_placed,
            num_placed,
        )


def _list(reply: str, keys: tuple[str, ...], nothing: str) -> list[_Listed]:
    """Find the objects of an answer; none only when the answer says so."""
    read = _read(reply)
    marked = read_marked(reply)
    listed = [item for found in read.found for item in _walk(found.value, keys)]
    if read.is_cut or (not listed and marked.is_cut):
        raise ReplyError(
            f"The model's answer of {len(reply)} characters was cut off. Ask for less, or raise "
            "max_tokens."
        )
    if not listed:
        for place in marked.places:
            for shape, box in zip(place.shapes, place.boxes, strict=True):
                numbers = shape[0] if len(shape) == 1 else box
                listed.append(_Listed(place.label, numbers))
    if not listed and not _states_nothing(reply, read, nothing):
        raise ReplyError(
            f"The model's answer of {len(reply)} characters holds no places; expected a list of "
            "them, which is empty when there are none."
        )
    return listed


def _read(reply: str) -> LooseJson:
    try:
        return read_loose_json(reply)
    except TooDeepError as error:
        raise ReplyError(f"The model's answer cannot be read: {error}.") from error


def _walk(value: Value, keys: tuple[str, ...]) -> Iterator[_Listed]:
    """Walk lists and objects for those with a place, in order."""
    if isinstance(value, list):
        for element in value:
            yield from _walk(element, keys)
    elif isinstance(value, dict):
        place, name = _first(value, keys), _first(value, _NAME_KEYS)
        plain = name.strip() if isinstance(name, str) else ""
        if place is not None or plain:  # a name without a place is counted, not passed over
            yield _Listed(plain or None, _numbers(place))
            return
        for element in value.values():
            yield from _walk(element, keys)


def _first(value: dict[str, Value], keys: tuple[str, ...]) -> Value:
    return next((value[key] for key in keys if value.get(key) is not None), None)


def _numbers(place: Value) -> tuple[float, ...] | None:
    if not isinstance(place, list):
        return None
    numbers = tuple(number for number in place if isinstance(number, float))
    return numbers if len(numbers) == len(place) else None


def _states_nothing(reply: str, read: LooseJson, nothing: str) -> bool:
    """Tell whether the answer is an empty list and nothing else, or the agreed word alone."""
    if len(reply) > MAX_STATEMENT_CHARS:
        return False
    said = strip_marks(reply).strip(_AROUND).removeprefix("json").strip(_AROUND)
    if nothing and said.lower() == nothing.lower():
        return True
    if len(read.found) != 1 or said != reply[read.found[0].start : read.found[0].end]:
        return False
    value = read.found[0].value
    lists = value.values() if isinstance(value, dict) else [value]
    return any(one == [] for one in lists) and all(
        one == [] or one == 0 or one is None for one in lists
    )
