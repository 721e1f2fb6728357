"""Find the listed objects in a model's answer: label words, sub-label words and box numbers.

Takes any of the shapes that models fall into: a list, several lists, lists in lists, one object,
objects under a wrapping key or grouped under the name of their label, rows of four numbers and
words; or, instead of JSON, names and boxes as Qwen-VL and Qwen2-VL mark them in running text.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from qianyan.errors import ReplyError
from qianyan.inputs.loose_json import (
    Found,
    LooseJson,
    Quoted,
    TooDeepError,
    Value,
    read_loose_json,
)
from qianyan.inputs.marked_places import read_marked
from qianyan.inspection.synonyms import find_label

_BOX_KEYS = ("bbox_2d", "bbox", "box_2d", "box", "bounding_box", "coordinates")
_LABEL_KEYS = ("label", "class", "category", "name", "type", "标签", "类别")
_SUB_LABEL_KEYS = ("sub_label", "sublabel", "severity", "status", "state", "attribute", "子标签")
_CORNER_KEYS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"))
_WRAPPERS = frozenset(
    {"detections", "objects", "results", "result", "items", "data", "answer", "检测结果", "结果"}
)
_END_OF_THOUGHT = "</think>"
_NUMBER = re.compile(r"[-+]?\d{1,9}(?:\.\d{1,20})?")
MAX_NUMBER_TEXT_CHARS = 200
_AROUND = " \t\r\n`.。"

Numbers = tuple[float, float, float, float]


@dataclass(frozen=True)
class Item:
    """One object as the model wrote it; `boxes` holds None for each box that is not four numbers.

    `spans` are the places of the label's and sub-label's words in the answer.
    """

    label: str | None
    sub_label: str | None
    boxes: tuple[Numbers | None, ...]
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Listing:
    """An answer taken apart; no items means that the model said so."""

    items: tuple[Item, ...]
    is_cut: bool = False


def read_listing(reply: str) -> Listing:
    """Take an answer apart.

    Raises ReplyError when it neither lists objects nor states, by an empty list, that there are
    none.
    """
    answer = _without_thought(reply)
    read = _read(answer)
    items = tuple(item for found in read.found for item in _items(found.value, None))
    if read.unfinished:
        tail = _item(read.unfinished, None)
        if tail.label and tail.sub_label and tail.boxes and None not in tail.boxes:
            items = (*items, tail)  # nothing but its closing bracket is missing
    if items:
        return Listing(items, is_cut=read.is_cut)
    marked = read_marked_items(answer)
    if marked.items:
        return marked
    if read.is_cut or marked.is_cut:
        raise ReplyError(
            f"The model's answer of {len(reply)} characters was cut before its first object was "
            "complete."
        )
    if not _states_nothing(read.found, reply):
        raise ReplyError(
            f"The model's answer of {len(reply)} characters lists no objects; expected a JSON "
            "array, which is [] when nothing is found."
        )
    return Listing(())


def find_end(reply: str, count: int, *, start: int = 0) -> int | None:
    """Find where the last of `count` objects ends in an answer that is still being written.

    Only ends at `start` or later are looked for; None when not that many are complete, or while the
    model is thinking.
    """
    for index in range(start, len(reply)):
        if reply[index] in "}]" and _count_complete(reply[: index + 1]) >= count:
            return index + 1
    return None


def _count_complete(reply: str) -> int:
    """Count the objects of an answer that ends with a closing bracket."""
    try:
        read = _read(_without_thought(reply))
    except ReplyError:
        return 0
    return sum(1 for found in read.found for _ in _items(found.value, None))


def read_marked_items(answer: str) -> Listing:
    """Find names and boxes marked in running text; none is no statement that nothing is there."""
    marked = read_marked(answer)
    items = [
        Item(place.label, None, place.boxes, () if place.span is None else (place.span,))
        for place in marked.places
    ]
    return Listing(tuple(items), is_cut=marked.is_cut)


def _without_thought(reply: str) -> str:
    """Blank out the model's thinking aloud; places stay as they are."""
    thought, end, _ = reply.rpartition(_END_OF_THOUGHT)
    if not end and "<think>" in reply:
        raise ReplyError("The model's answer ended while it was still thinking.")
    return " " * len(thought + end) + reply[len(thought + end) :]


def _read(answer: str) -> LooseJson:
    """Find all lists and objects."""
    try:
        return read_loose_json(answer)
    except TooDeepError as error:
        raise ReplyError(f"The model's answer cannot be read: {error}.") from error


def _items(value: Value, group: str | None) -> Iterator[Item]:
    """Walk a value for objects, in order; `group` is the label that a surrounding key names."""
    if isinstance(value, list):
        if (row := _row(value)) is not None:
            yield row
            return
        if sum(isinstance(element, float) for element in value) >= 4:
            yield Item(None, None, (None,))  # numbers of nothing: counted, never passed over
        for element in value:
            yield from _items(element, group)
    elif isinstance(value, dict):
        if _first(value, _BOX_KEYS) is not None or _corners(value) is not None:
            yield _item(value, group)
            return
        nested = {key: one for key, one in value.items() if isinstance(one, list | dict)}
        for key, one in nested.items():
            yield from _items(one, key if find_label(key) else group)
        if not nested and _first(value, _LABEL_KEYS) is not None:
            yield _item(value, group)  # an object without a box: counted, never passed over


def _row(value: "list[Value]") -> Item | None:
    """Read `[x1, y1, x2, y2, label, sub_label]`; with too few or many numbers, it has no box."""
    numbers = list(takewhile(lambda element: isinstance(element, float), value))
    words = [element for element in value[len(numbers) :] if isinstance(element, Quoted)]
    if not numbers or not 1 <= len(words) <= 2 or len(numbers) + len(words) != len(value):
        return None
    if len(numbers) != 4 and not find_label(words[0]):
        return None
    spans = tuple((word.start, word.end) for word in words)
    return Item(words[0], words[1] if len(words) > 1 else None, (_four(numbers),), spans)


def _item(value: Mapping[str, Value], group: str | None) -> Item:
    label = _word(_first(value, _LABEL_KEYS))
    sub_label = _word(_first(value, _SUB_LABEL_KEYS))
    spans = tuple((word.start, word.end) for word in (label, sub_label) if isinstance(word, Quoted))
    box = _first(value, _BOX_KEYS)
    boxes = (_corners(value),) if box is None else _boxes(box)
    return Item(group if label is None else label, sub_label, boxes, spans)


def _first(value: Mapping[str, Value], keys: tuple[str, ...]) -> Value:
    """Take the first of several keys, in any case, that is there and not null."""
    lower = {key.strip().lower(): one for key, one in value.items()}
    return next((lower[key] for key in keys if lower.get(key) is not None), None)


def _word(value: Value) -> str | None:
    """Take a word, or the only word of a list."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) and value.strip() else None


def _boxes(value: Value) -> tuple[Numbers | None, ...]:
    """Read four numbers, two pairs, a text of four numbers, named corners, or a list of those."""
    if isinstance(value, dict):
        return (_corners(value),)
    if isinstance(value, str):
        return (_four(_NUMBER.findall(value[:MAX_NUMBER_TEXT_CHARS])),)
    if not isinstance(value, list):
        return (None,)
    if len(value) == 1 and isinstance(value[0], str | list):
        return _boxes(value[0])
    if value and all(isinstance(element, list) for element in value):
        if len(value) == 2 and all(isinstance(one, list) and len(one) == 2 for one in value):
            return (_four([number for pair in value if isinstance(pair, list) for number in pair]),)
        return tuple(box for element in value for box in _boxes(element))
    return (_four(value),)


def _corners(value: Mapping[str, Value]) -> Numbers | None:
    """Read corners that have names of their own."""
    for keys in _CORNER_KEYS:
        if all(key in value for key in keys):
            return _four([value[key] for key in keys])
    return None


def _four(values: "Sequence[Value | str]") -> Numbers | None:
    """Read exactly four numbers, some of which may be quoted."""
    if len(values) != 4:
        return None
    numbers = [_number(value) for value in values]
    x1, y1, x2, y2 = numbers
    if x1 is None or y1 is None or x2 is None or y2 is None:
        return None
    return x1, y1, x2, y2


def _number(value: "Value | str") -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return value
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()[:MAX_NUMBER_TEXT_CHARS]):
        return float(value)
    return None


def _states_nothing(found: tuple[Found, ...], reply: str) -> bool:
    """Tell whether the answer is an empty list, perhaps with prose before or after it.

    Brackets in the middle of a sentence ("I cannot say []") are no statement.
    """
    if not found or not all(_is_nothing(one.value) for one in found):
        return False
    before = reply[: found[0].start].rpartition(_END_OF_THOUGHT)[2].strip(_AROUND).lower()
    after = reply[found[-1].end :].strip(_AROUND)
    lines = f"\n{reply}\n"
    return before in {"", "json"} or not after or any(_has_own_line(one, lines) for one in found)


def _is_nothing(value: Value) -> bool:
    if isinstance(value, list):
        return all(_is_nothing(element) for element in value)
    if isinstance(value, dict) and value:
        return all(
            (key.strip().lower() in _WRAPPERS or find_label(key) is not None)
            and isinstance(one, list | dict)
            and _is_nothing(one)
            for key, one in value.items()
        )
    return False


def _has_own_line(found: Found, lines: str) -> bool:
    """Tell whether nothing but white space and quotation marks shares its line.

    `lines` is the answer between two line ends; a line is looked at for 20 characters to each side.
    """
    start, end = found.start + 1, found.end + 1
    _, line_end, left = lines[max(start - 20, 0) : start].rpartition("\n")
    right = lines[end : end + 20].partition("\n")[0]
    return bool(line_end) and not left.strip(_AROUND) and not right.strip(_AROUND)
