"""What a JSON schema may cost, and where in it a compiler's complaint points.

Schemas may come from strangers: size, depth and list lengths are checked before llguidance sees
them, level by level and never deeper than the limit.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from qianyan.errors import GrammarError, quote

MAX_SCHEMA_BYTES = 65_536
MAX_SCHEMA_DEPTH = 32
MAX_ENUM_VALUES = 2_048
MAX_PROPERTIES = 512
MAX_COUNT = 100_000
"""Largest minLength, maxLength, minItems, maxItems, minProperties and maxProperties."""
MAX_PATTERN_CHARACTERS = 4_096
COUNT_KEYWORDS = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
)

# Models are trained on the separators of Python's json.dumps; leaving white space free as well
# would leave nothing for the grammar to force.
ITEM_SEPARATOR = ", "
KEY_SEPARATOR = ": "
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
"""Keywords whose keys are names, not keywords."""
_DATA = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are no schemas."""
_TOLD_VALUES = (("Unknown format: ", "format"), ("Invalid type: ", "type"))


def to_json(schema: Any) -> str:
    """Check a schema against the limits and write it out.

    Raises GrammarError.
    """
    if not isinstance(schema, dict):
        raise GrammarError(f"The schema is {quote(schema)}; expected an object.")
    _check_levels(schema)
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        size_bytes = len(text.encode())
    except (TypeError, ValueError) as error:
        raise GrammarError("The schema is not JSON; expected plain values only.") from error
    if size_bytes > MAX_SCHEMA_BYTES:
        raise GrammarError(
            f"The schema is {size_bytes} bytes; expected at most {MAX_SCHEMA_BYTES}."
        )
    return text


def find_places(schema: dict[str, Any], complaint: str) -> list[str]:
    """Find what a complaint of llguidance is about: paths such as "properties.a.not"."""
    keys = set(re.findall(r'"([^"]+)"', complaint)) if "Unimplemented keys" in complaint else set()
    if complaint.startswith("oneOf"):
        keys.add("oneOf")
    values = {
        (key, complaint.removeprefix(start))
        for start, key in _TOLD_VALUES
        if complaint.startswith(start)
    }
    is_regex = "regex parse error" in complaint
    return [
        path
        for path, key, value in _keywords(schema)
        if key in keys
        or (isinstance(value, str) and (key, value) in values)
        or (is_regex and key == "pattern" and isinstance(value, str) and value in complaint)
    ]


def _keywords(schema: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Walk over a schema: the path, the name and the value of each keyword in it."""
    waiting: list[tuple[str, Any, bool]] = [("", schema, False)]
    while waiting:
        path, node, are_names = waiting.pop()
        if isinstance(node, list):
            waiting += [(f"{path}[{index}]", item, False) for index, item in enumerate(node)]
        elif isinstance(node, dict):
            for key, value in node.items():
                below = f"{path}.{key}" if path else str(key)
                if not are_names:
                    yield below, key, value
                if are_names or key not in _DATA:
                    waiting.append((below, value, not are_names and key in _NAMED))


def _check_levels(schema: dict[str, Any]) -> None:
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                _check_keywords(node)
                below.extend(node.values())
            elif isinstance(node, list):
                if len(node) > MAX_ENUM_VALUES:
                    raise GrammarError(
                        f"A list in the schema has {len(node)} values; "
                        f"expected at most {MAX_ENUM_VALUES}."
                    )
                below.extend(node)
        if not below:
            return
        level = below
    raise GrammarError(f"The schema is nested too deeply; expected at most {MAX_SCHEMA_DEPTH}.")


def _check_keywords(node: dict[str, Any]) -> None:
    if len(node) > MAX_PROPERTIES:
        raise GrammarError(
            f"An object in the schema has {len(node)} keys; expected at most {MAX_PROPERTIES}."
        )
    for keyword in COUNT_KEYWORDS & node.keys():
        count = node[keyword]
        if isinstance(count, int | float) and not 0 <= count <= MAX_COUNT:
            raise GrammarError(f"{keyword} is {count}; expected 0 to {MAX_COUNT}.")
    pattern = node.get("pattern")
    if isinstance(pattern, str) and len(pattern) > MAX_PATTERN_CHARACTERS:
        raise GrammarError(
            f"A pattern in the schema is {len(pattern)} characters; "
            f"expected at most {MAX_PATTERN_CHARACTERS}."
        )
