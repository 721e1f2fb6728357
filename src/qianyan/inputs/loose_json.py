"""Read the JSON that models write: fenced, wrapped in prose, cut off, with small slips.

One pass over the text, an explicit stack, no backtracking: time is linear in the text's length.
What is forgiven: code fences and prose around, trailing and missing commas, stray or missing
brackets, single quotes, unquoted keys, full-width punctuation. What was not there is not invented:
an object that the text leaves open is kept apart, and a half-written word or number is dropped.
"""

import math
from dataclasses import dataclass, field
from typing import TypeAlias

Value: TypeAlias = "dict[str, Value] | list[Value] | Quoted | float | bool | None"

MAX_CHARS = 200_000
MAX_DEPTH = 64
MAX_DIGITS = 9  # before the point; a runaway number ("9999999…") is no number

_OPENING_QUOTES = {'"': '"', "'": "'", "“": "”", "「": "」"}
_SEPARATORS = frozenset(",，、;；")
_COLONS = frozenset(":：")
_ENDS_OF_BARE_WORD = frozenset(' \t\r\n[](){}"“”' + ",，、;；:：")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_CONSTANTS: dict[str, bool | None] = {
    "true": True,
    "false": False,
    "null": None,
    "True": True,
    "False": False,
    "None": None,
}


class TooDeepError(ValueError):
    """Brackets are nested deeper than any answer needs."""


class Quoted(str):
    """A string value that knows where it stood: text[start:end] is its inside, quotes excluded."""

    __slots__ = ("end", "start")
    start: int
    end: int

    @classmethod
    def at(cls, word: str, start: int, end: int) -> "Quoted":
        """Make the value for text[start:end]."""
        quoted = cls(word)
        quoted.start, quoted.end = start, end
        return quoted


@dataclass(frozen=True)
class Found:
    """One outermost list or object, and where it stood in the text."""

    value: Value
    start: int
    end: int


@dataclass(frozen=True)
class LooseJson:
    """All outermost lists and objects of a text, in order.

    `is_cut` says that the text ended inside one; `unfinished` then holds the pairs of the innermost
    open object that had been completely written.
    """

    found: tuple[Found, ...]
    is_cut: bool = False
    unfinished: "dict[str, Value] | None" = None


@dataclass
class _Open:
    """A list or object whose end has not come yet."""

    value: "dict[str, Value] | list[Value]"
    start: int
    key: str | None = None
    word: "Value" = (
        None  # in an object: a value seen where a key is expected, until the colon comes
    )
    has_word: bool = False


@dataclass
class _Reader:
    """The state of one pass."""

    text: str
    stack: list[_Open] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)

    def open(self, value: "dict[str, Value] | list[Value]", at: int) -> None:
        """Begin a list or object."""
        top = self.stack[-1] if self.stack else None
        if (
            top is not None
            and isinstance(top.value, dict)
            and top.key is None
            and isinstance(value, dict)
        ):
            self.close(at)  # '{… , {': the closing brace was forgotten
        if len(self.stack) >= MAX_DEPTH:
            raise TooDeepError(f"brackets are nested more than {MAX_DEPTH} deep")
        self.stack.append(_Open(value, at))

    def close(self, end: int) -> None:
        """End the innermost list or object and hand it to the one around it."""
        done = self.stack.pop()
        if self.stack:
            self.put(done.value)
        else:
            self.found.append(Found(done.value, done.start, end))

    def close_kind(self, kind: type, end: int) -> None:
        """End up to the innermost container of `kind`; a bracket that opens nothing is ignored.

        So is a list's bracket inside an object that goes on with its next key.
        """
        if kind is list and self.stack and isinstance(self.stack[-1].value, dict):
            rest = self.text[end : end + 20].lstrip()
            if rest[:1] in _SEPARATORS and rest[1:].lstrip()[:1] in _OPENING_QUOTES:
                return
        if any(isinstance(one.value, kind) for one in self.stack):
            while not isinstance(self.stack[-1].value, kind):
                self.close(end)
            self.close(end)

    def put(self, value: "Value") -> None:
        """Give a complete value to the innermost container."""
        top = self.stack[-1]
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is not None:
            key = top.key
            if key in top.value:  # '… , "bbox_2d":' again: the brackets between were forgotten
                self.close(top.start)
                self.open({key: value}, top.start)
            else:
                top.value[key] = value
                top.key = None
        else:
            top.word, top.has_word = value, True

    def colon(self) -> None:
        """Make the word just read the key of the value to come."""
        top = self.stack[-1]
        if isinstance(top.value, list) and top.value and isinstance(top.value[-1], Quoted):
            if len(self.stack) < 2 or not isinstance(self.stack[-2].value, dict):
                return
            word = top.value.pop()  # '[1, 2, 3, 4, "label":': the closing bracket was forgotten
            self.close(top.start)
            self.put(word)
            top = self.stack[-1]
        if isinstance(top.value, dict) and top.has_word:
            top.key, top.has_word = str(top.word), False

    def separator(self) -> None:
        """Forget a word that no colon made a key, and a key that got no value."""
        top = self.stack[-1]
        top.key, top.has_word = None, False

    def quoted(self, at: int) -> int:
        """Read a quoted string; return the index after it. A string that never ends is dropped."""
        text, close, pieces, index = self.text, _OPENING_QUOTES[self.text[at]], list[str](), at + 1
        while index < len(text):
            char = text[index]
            if char == close:
                self.put(Quoted.at("".join(pieces), at + 1, index))
                return index + 1
            if char == "\n":  # JSON strings hold no raw line end: the quote was a slip
                return index
            if char == "\\" and index + 1 < len(text):
                letter = text[index + 1]
                if letter == "u":
                    pieces.append(_unicode_escape(text[index + 2 : index + 6]))
                    index += 6
                    continue
                char, index = _ESCAPES.get(letter, letter), index + 1
            pieces.append(char)
            index += 1
        return index

    def bare(self, at: int) -> int:
        """Read a number, a constant or an unquoted word; return the index after it."""
        end = at
        while end < len(self.text) and self.text[end] not in _ENDS_OF_BARE_WORD:
            end += 1
        if end < len(self.text):  # at the very end of a cut text it may be half a number
            word = self.text[at:end]
            self.put(_CONSTANTS[word] if word in _CONSTANTS else _number(word, at, end))
        return end


def read_loose_json(text: str) -> LooseJson:
    """Read every outermost list and object of `text`; characters beyond MAX_CHARS are cut off.

    Raises TooDeepError for bracket towers.
    """
    reader = _Reader(text[:MAX_CHARS])
    index = 0
    while index < len(reader.text):
        index = _step(reader, index)
    if not reader.stack:
        return LooseJson(tuple(reader.found), is_cut=len(text) > MAX_CHARS)
    unfinished = _drop_innermost_object(reader)
    while reader.stack:
        reader.close(len(reader.text))
    return LooseJson(tuple(reader.found), is_cut=True, unfinished=unfinished)


def _step(reader: _Reader, index: int) -> int:
    """Read what stands at `index`; return the index of what comes next."""
    char = reader.text[index]
    if char == "[" or (char == "(" and reader.stack):
        reader.open([], index)
    elif char == "{":
        reader.open({}, index)
    elif not reader.stack or char.isspace():
        pass  # prose between answers
    elif char in "])":
        reader.close_kind(list, index + 1)
    elif char == "}":
        reader.close_kind(dict, index + 1)
    elif char in _COLONS:
        reader.colon()
    elif char in _SEPARATORS:
        reader.separator()
    elif char in _OPENING_QUOTES:
        return reader.quoted(index)
    else:
        return max(reader.bare(index), index + 1)
    return index + 1


def _drop_innermost_object(reader: _Reader) -> "dict[str, Value] | None":
    """Take off the open object that holds no finished object, with the lists inside it.

    Objects that only wrap a list of finished ones stay.
    """
    for depth in range(len(reader.stack) - 1, -1, -1):
        value = reader.stack[depth].value
        if _holds_objects(value):
            return None
        if isinstance(value, dict):
            del reader.stack[depth:]
            return value
    return None


def _holds_objects(value: "dict[str, Value] | list[Value]") -> bool:
    """Tell whether a finished object stands in this list, or in a list of this object."""
    if isinstance(value, list):
        return any(isinstance(item, dict) for item in value)
    return any(
        isinstance(item, dict) or (isinstance(item, list) and _holds_objects(item))
        for item in value.values()
    )


def _number(word: str, start: int, end: int) -> "Value":
    """Read a bare word as a number where it is one of sane length."""
    digits = word.lstrip("+-")
    if not digits[:1].isdigit():
        return Quoted.at(word, start, end)
    if len(digits.partition(".")[0]) > MAX_DIGITS:
        return None
    try:
        number = float(word)
    except ValueError:
        return Quoted.at(word, start, end)
    return number if math.isfinite(number) else None


def _unicode_escape(digits: str) -> str:
    """Read the four hex digits of a \\u escape; anything else reads as the replacement mark."""
    try:
        char = chr(int(digits, 16))
    except ValueError:
        return "\N{REPLACEMENT CHARACTER}"
    return "\N{REPLACEMENT CHARACTER}" if "\ud800" <= char <= "\udfff" else char
