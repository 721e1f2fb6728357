"""Fields of a form: which schema they make, and what an answer may say."""

from typing import Any

import jsonschema
import pytest

from qianyan.errors import InputError, ReplyError
from qianyan.reading.fields import fields_prompt, fields_schema, parse_fields

FIELDS = ["发票号", "total"]


def test_names_become_a_schema_of_text_or_null_in_their_order() -> None:
    schema = fields_schema(FIELDS)
    assert list(schema["properties"]) == FIELDS
    jsonschema.validate({"发票号": "7", "total": None}, schema)
    for bad in (
        {"发票号": "7"},
        {"发票号": 7, "total": None},
        {"发票号": "7", "total": "1", "x": "2"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


def test_a_schema_of_plain_values_is_taken_and_closed() -> None:
    schema = fields_schema(
        {
            "type": "object",
            "properties": {
                "plate": {"type": "string", "description": "the licence plate"},
                "seats": {"type": ["integer", "null"]},
                "fuel": {"enum": ["petrol", "diesel"]},
                "year": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            },
        }
    )
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["plate", "seats", "fuel", "year"]
    assert "plate (the licence plate), seats" in fields_prompt(schema, lang="en")
    assert parse_fields('{"plate": "A 1", "seats": 4, "fuel": "diesel"}', schema) == {
        "plate": "A 1",
        "seats": "4",
        "fuel": "diesel",
        "year": None,
    }


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["a", "a"],
        [""],
        ["x" * 101],
        "total",
        [1],
        [str(number) for number in range(101)],
        {},
        {"type": "array"},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"a": {"type": "array"}}},
        {"type": "object", "properties": {"a": {"type": ["string", "object"]}}},
        {"type": "object", "properties": {"a": "string"}},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_before_the_model_is_asked(fields: Any) -> None:
    with pytest.raises(InputError):
        fields_schema(fields)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"发票号": "0012", "total": null}', {"发票号": "0012", "total": None}),
        ('```json\n{"total": "1.50 €"}\n```', {"发票号": None, "total": "1.50 €"}),
        ('{"发票号": 0.10, "total": true}', {"发票号": "0.10", "total": "true"}),
        ('{"发票号": " ", "total": "x {y}"}', {"发票号": None, "total": "x {y}"}),
        ("{}", {"发票号": None, "total": None}),
    ],
)
def test_values_come_as_text_and_missing_ones_as_none(
    reply: str, expected: dict[str, str | None]
) -> None:
    read = parse_fields(reply, fields_schema(FIELDS))
    assert read == expected
    assert list(read) == FIELDS


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        ('{"total": "1", "tax": "2"}', "'tax', which was not asked for"),
        ('{"total": ["1"]}', "a list as 'total'"),
        ('{"total": {"sum": 1}}', "an object as 'total'"),
        ('{"total": "1"', "no complete JSON object"),
        ("The total is 1.", "no complete JSON object"),
        ("", "no complete JSON object"),
        ('["total"]', "expected an object"),
        ('{"a":' * 100_000, "no complete JSON object"),
    ],
    ids=lambda text: text[:30],
)
def test_other_answers_are_errors(reply: str, sentence: str) -> None:
    with pytest.raises(ReplyError, match=sentence):
        parse_fields(reply, fields_schema(FIELDS))
