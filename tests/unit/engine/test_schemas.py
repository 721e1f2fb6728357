"""Where in a schema a complaint points; the limits themselves are tested with the grammars."""

from typing import Any

import pytest

from qianyan.engine.schemas import find_places

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "not": {"type": "string", "format": "colour"},
        "boxes": {"type": "array", "items": {"not": {"type": "boks"}}, "uniqueItems": True},
        "code": {"pattern": "(?=a)b", "default": {"not": 1}},
    },
    "$defs": {"one": {"oneOf": [{"type": "integer"}]}},
}


@pytest.mark.parametrize(
    ("complaint", "places"),
    [
        ('Unimplemented keys: ["not"]', ["properties.boxes.items.not"]),
        ('Unimplemented keys: ["uniqueItems"]', ["properties.boxes.uniqueItems"]),
        ("Unknown format: colour", ["properties.not.format"]),
        ("Invalid type: boks", ["properties.boxes.items.not.type"]),
        ("oneOf constraints are not supported.", ["$defs.one.oneOf"]),
        ("regex parse error:\n    (?=a)b\n    ^^^", ["properties.code.pattern"]),
        ("Unsatisfiable schema", []),
    ],
)
def test_a_complaint_is_about_keywords_and_never_about_names_or_data(
    complaint: str, places: list[str]
) -> None:
    assert find_places(SCHEMA, complaint) == places
