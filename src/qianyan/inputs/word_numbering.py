"""The numbers and bullets that Word draws before list items and headings, from numbering.xml.

They are not in a document's text: a paragraph only names a list and a level (ECMA-376, 17.9).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
BULLET = "-"
_LEVELS = 9
_PLACE = re.compile(r"%([1-9])")
_DIGITS = "零一二三四五六七八九"
_ROMAN = (
    *((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L")),
    *((40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")),
)


@dataclass(frozen=True)
class _Level:
    format: str
    text: str
    start: int


@dataclass
class _List:
    """One list of the file: how each level is written, and which style stands for which level."""

    levels: dict[int, _Level] = field(default_factory=dict)
    styles: dict[str, int] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)


class Numbering:
    """Counts list items in the order they are asked for."""

    def __init__(self, root: Any | None) -> None:
        self._lists: dict[str, _List] = {}
        self._numbers: dict[str, tuple[str, dict[int, int]]] = {}
        if root is not None:
            self._read(root)

    def label(self, number_id: str, level: int) -> str:
        """Count one item of a list, and write what stands before it; "" for none."""
        list_id, restarts = self._numbers.get(number_id, ("", {}))
        counted = self._lists.get(list_id)
        if counted is None or not 0 <= level < _LEVELS:
            return ""
        if restarts:
            counted.counts.update({at: start - 1 for at, start in restarts.items()})
            restarts.clear()  # a list starts anew once, where its number is first used
        shape = counted.levels.get(level, _Level("bullet", "", 1))
        counted.counts[level] = counted.counts.get(level, shape.start - 1) + 1
        for deeper in range(level + 1, _LEVELS):
            counted.counts.pop(deeper, None)
        if shape.format == "bullet":
            return BULLET
        return _PLACE.sub(lambda place: self._written(counted, int(place[1]) - 1), shape.text)

    def level_of_style(self, number_id: str, style_id: str) -> int:
        """Find the level that a list gives to a paragraph style; 0 where it says nothing."""
        counted = self._lists.get(self._numbers.get(number_id, ("", {}))[0])
        return counted.styles.get(style_id, 0) if counted else 0

    def _read(self, root: Any) -> None:
        for item in root.iter(f"{W}abstractNum"):
            made = _List()
            for level in item.iter(f"{W}lvl"):
                at = int(level.get(f"{W}ilvl", "0"))
                shape = {kind: _value(level, kind) for kind in ("numFmt", "lvlText", "start")}
                made.levels[at] = _Level(
                    shape["numFmt"] or "decimal", shape["lvlText"], int(shape["start"] or 1)
                )
                if style := _value(level, "pStyle"):
                    made.styles[style] = at
            self._lists[item.get(f"{W}abstractNumId", "")] = made
        for item in root.iter(f"{W}num"):
            restarts = {
                int(override.get(f"{W}ilvl", "0")): int(_value(override, "startOverride"))
                for override in item.iter(f"{W}lvlOverride")
                if _value(override, "startOverride")
            }
            self._numbers[item.get(f"{W}numId", "")] = (_value(item, "abstractNumId"), restarts)

    @staticmethod
    def _written(counted: _List, level: int) -> str:
        shape = counted.levels.get(level, _Level("decimal", "", 1))
        count = counted.counts.get(level, shape.start)
        return _FORMATS.get(shape.format, str)(count)


def _value(element: Any, kind: str) -> str:
    found = element.find(f"{W}{kind}")
    return "" if found is None else str(found.get(f"{W}val", ""))


def _letters(count: int) -> str:
    """A to Z, then AA, BB, ... as Word does."""
    if not 1 <= count <= 26 * 9:
        return str(count)
    return chr(ord("a") + (count - 1) % 26) * ((count - 1) // 26 + 1)


def _roman(count: int) -> str:
    if not 1 <= count <= 3999:
        return str(count)
    written = ""
    for value, letters in _ROMAN:
        written += letters * (count // value)
        count %= value
    return written


def _chinese(count: int) -> str:
    if not 1 <= count <= 99:
        return str(count)
    tens, ones = divmod(count, 10)
    leading = ("" if tens == 1 else _DIGITS[tens]) + "十" if tens else ""
    return leading + (_DIGITS[ones] if ones else "")


def _circled(count: int) -> str:
    return chr(0x2460 + count - 1) if 1 <= count <= 20 else str(count)


_FORMATS: dict[str, Callable[[int], str]] = {
    "none": lambda _: "",
    "lowerLetter": _letters,
    "upperLetter": lambda count: _letters(count).upper(),
    "lowerRoman": lambda count: _roman(count).lower(),
    "upperRoman": _roman,
    "decimalZero": lambda count: f"{count:02d}",
    "chineseCounting": _chinese,
    "chineseCountingThousand": _chinese,
    "japaneseCounting": _chinese,
    "taiwaneseCountingThousand": _chinese,
    "decimalEnclosedCircle": _circled,
    "decimalEnclosedCircleChinese": _circled,
}
