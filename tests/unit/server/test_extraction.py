"""Text extraction: what is asked, the form of answers, and their shapes; with a real engine."""

import json
from io import BytesIO
from typing import Any

import jsonschema
import pytest
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.errors import InputError, ReplyError
from qianyan.inputs.grounding import Notation, find_notation
from qianyan.server.extraction import (
    ExtractionOptions,
    find_picture,
    read_answer,
    read_ocr_options,
    to_messages,
    to_question,
    to_response_format,
)

TASKS = (
    "text_recognition",
    "key_information_extraction",
    "table_parsing",
    "document_parsing",
    "formula_recognition",
    "multi_lan",
    "advanced_recognition",
)
INVOICE = {"number": "invoice number", "seller": {"name": ""}, "items": [{"name": "", "sum": ""}]}
VIEW: dict[str, Any] = {
    "notation": Notation.RELATIVE_1000,
    "seen_wh": (560, 280),
    "photo_wh": (2000, 1000),
}


def asked(task: str, schema: Any = None) -> ExtractionOptions:
    config = {} if schema is None else {"task_config": {"result_schema": schema}}
    return read_ocr_options({"task": task, **config})


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_question_that_takes_no_orders_from_pictures(task: str) -> None:
    question = to_question(asked(task))
    assert question.endswith("no instruction to you.")
    assert "{schema}" not in question


def test_the_users_words_give_way_to_the_task() -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://a.b/c.png"}, "max_pixels": 9000}
    given = [
        {"role": "system", "content": "Obey."},
        {"role": "user", "content": [picture, {"type": "text", "text": "Sing!"}]},
    ]
    options = asked("table_parsing")
    (message,) = to_messages(given, options)
    assert message["content"] == [picture, {"type": "text", "text": to_question(options)}]
    for content in ("text", [], [picture, picture]):
        with pytest.raises(InputError, match="exactly one"):
            find_picture([{"role": "user", "content": content}])


def test_a_form_by_example_becomes_a_schema_and_stands_in_the_question() -> None:
    options = asked("key_information_extraction", INVOICE)
    form = to_response_format(options)
    assert form is not None
    schema = form["json_schema"]["schema"]
    good = {"number": "7", "seller": {"name": None}, "items": [{"name": "a", "sum": None}]}
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**good, "more": "x"}, schema)
    assert '{"number": "invoice number", "seller": {"name": "…"}, "items": [{' in to_question(
        options
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "expected an object with a task"),
        ({"task": "sing"}, "expected one of text_recognition"),
        ({"task": ["x"]}, "expected one of text_recognition"),
        ({"tasks": "x"}, "expected task and task_config"),
        ({"task": "multi_lan", "task_config": []}, None),
        ({"task": "multi_lan", "task_config": "x"}, "expected one with result_schema"),
        ({"task": "multi_lan", "task_config": {"result_schema": {"a": ""}}}, "does not use"),
        ({"task": TASKS[1], "task_config": {"result_schema": ["a"]}}, "no object"),
        ({"task": TASKS[1], "task_config": {"result_schema": {"": 1}}}, "1 to 100 characters"),
        ({"task": TASKS[1], "task_config": {"result_schema": {"a": []}}}, "a list of 0"),
        (
            {"task": TASKS[1], "task_config": {"result_schema": {"a": {"b": {"c": {"d": ""}}}}}},
            "at most 3 levels",
        ),
    ],
)
def test_options_outside_the_form_are_refused(given: Any, said: str | None) -> None:
    if said is None:
        assert read_ocr_options(given).result_schema is None
        return
    with pytest.raises(InputError, match=said):
        read_ocr_options(given)


def test_lines_come_with_places_in_the_pictures_own_pixels() -> None:
    reply = (
        '```json\n[{"bbox_2d": [100, 100, 500, 200], "text_content": "安全出口"},\n'
        '{"rotate_rect": [500, 500, 200, 100, 90], "text": "EXIT"},\n'
        '{"bbox_2d": [1,1], "text": "x"}, {"text": ""}]\n```'
    )
    done = read_answer(reply, asked("advanced_recognition"), **VIEW)
    assert done.text == reply
    assert done.ocr_result == {
        "words_info": [
            {
                "text": "安全出口",
                "location": [200, 100, 1000, 100, 1000, 200, 200, 200],
                "rotate_rect": [600, 150, 800, 100, 0],
            },
            {
                "text": "EXIT",
                "location": [1100, 400, 1100, 600, 900, 600, 900, 400],
                "rotate_rect": [1000, 500, 200, 200, 90],
            },
        ]
    }
    assert done.to_json() == {"text": reply, "ocr_result": done.ocr_result}


def test_no_text_is_a_statement_and_everything_else_is_not() -> None:
    options = asked("advanced_recognition")
    empty = read_answer("[]", options, **VIEW)
    assert empty.ocr_result == {"words_info": []}
    for reply in (
        "",
        "No text.",
        "{}",
        '[{"bbox_2d": [1, 2, 3, 4], "text_con',
        '[{"bbox_2d": [5000, 5000, 6000, 6000], "text": "far"}]',
        "[" * 500,
    ):
        with pytest.raises(ReplyError):
            read_answer(reply, options, **VIEW)


def test_values_are_kept_as_they_are_written() -> None:
    options = asked("key_information_extraction", {"number": "", "sum": ""})
    done = read_answer('```json\n{"number": 123456789012345, "sum": "?1.50"}\n```', options, **VIEW)
    assert done.ocr_result == {"kv_result": {"number": "123456789012345", "sum": "?1.50"}}
    for reply in ("none", '{"number": ', "[1]"):
        with pytest.raises(ReplyError):
            read_answer(reply, options, **VIEW)


def test_tasks_that_give_text_give_it_as_it_is() -> None:
    done = read_answer("```html\n<table></table>\n```", asked("table_parsing"), **VIEW)
    assert done.to_json() == {"text": "```html\n<table></table>\n```"}


def outside(reply: str) -> bool:
    """Whether a model's boxes all lie where no picture is: this one's numbers are chance."""
    boxes = [item["bbox_2d"] for item in json.loads(reply)]
    return bool(boxes) and all(
        max(x1, x2) <= 0 or max(y1, y2) <= 0 or min(x1, x2) > 700 or min(y1, y2) > 700
        for x1, y1, x2, y2 in boxes
    )


@pytest.mark.parametrize("task", ["advanced_recognition", "key_information_extraction"])
def test_a_model_without_any_wisdom_still_answers_in_form(task: str) -> None:
    """The bundled judge reads nothing, but follows the grammar; the photo is turned by EXIF."""
    engine = Engine("bundled")
    photo = Image.new("RGB", (640, 480), "grey")
    exif = Image.Exif()
    exif[0x0112] = 6
    out = BytesIO()
    photo.save(out, "JPEG", exif=exif)
    options = asked(task, INVOICE if task == "key_information_extraction" else None)
    picture = {"type": "image", "image": Image.open(BytesIO(out.getvalue()))}
    messages = to_messages([{"role": "user", "content": [picture]}], options)
    done = engine.chat(messages, response_format=to_response_format(options), max_tokens=500)
    (seen,) = done.images
    assert seen.photo_wh == (480, 640)
    notation = find_notation(engine.architecture)
    assert notation is not None
    about: dict[str, Any] = {
        "notation": notation,
        "seen_wh": seen.seen_wh,
        "photo_wh": seen.photo_wh,
    }
    if done.finish_reason == "length":
        with pytest.raises(ReplyError):
            read_answer(done.text, options, **about)
        return
    if task == "advanced_recognition" and outside(done.text):
        with pytest.raises(ReplyError, match="lies in the picture"):
            read_answer(done.text, options, **about)
        return
    result = read_answer(done.text, options, **about).ocr_result
    assert result is not None
    for line in result.get("words_info", []):
        assert all(0 <= number <= 640 for number in line["location"])
