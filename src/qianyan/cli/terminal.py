"""What others wrote, made safe to show on a terminal."""

import unicodedata

_STEERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the direction of text: with them a name can look like another one."""


def printable(text: str) -> str:
    """Show names that others chose without what would steer a terminal or cannot be written."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def printable_text(text: str) -> str:
    """Show what a model wrote: its lines, tabs and spaces of all kinds, and no control sequence."""
    lines = text.replace("\r", "")
    return "".join("\N{REPLACEMENT CHARACTER}" if _steers(char) else char for char in lines)


def _steers(char: str) -> bool:
    if char in "\n\t":
        return False
    return unicodedata.category(char) in {"Cc", "Cs"} or char in _STEERING
