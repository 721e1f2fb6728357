"""Boxes, points, counts and words: what is read, what is left out, what is an error."""

import json
import logging
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qianyan.errors import ReplyError
from qianyan.inputs.grounding import Notation
from qianyan.reading.places import (
    Count,
    FoundBox,
    FoundPoint,
    View,
    Word,
    parse_boxes,
    parse_count,
    parse_points,
    parse_words,
)

VIEW = View(notation=Notation.RESIZED_PIXELS, seen_wh=(1000, 500), photo_wh=(2000, 1000))
THOUSANDTHS = View(notation=Notation.RELATIVE_1000, seen_wh=(448, 448), photo_wh=(2000, 1000))
CAT = FoundBox(label="cat", box=(200, 100, 400, 300))


@pytest.mark.parametrize(
    "reply",
    [
        '[{"bbox_2d": [100, 50, 200, 150], "label": "cat"}]',
        '```json\n[{"bbox_2d": [100, 50, 200, 150], "label": "cat"}]\n```',
        '{"bbox_2d": [100, 50, 200, 150], "label": "cat"}',
        'Here it is: [{"label": "cat", "bbox_2d": [200, 150, 100, 50]},]',
        '{"objects": [{"bbox": [100.2, 50.1, 199.9, 150.0], "name": " cat "}]}',
        '[{"bbox_2d": [100, 50, 200, 150]}]',
    ],
)
def test_a_box_is_read_in_the_forms_that_models_write(reply: str) -> None:
    assert parse_boxes(reply, VIEW, what="cat") == (CAT,)


@pytest.mark.parametrize(
    "reply",
    [
        "<ref>cat</ref><box>(100,100),(200,300)</box>",
        "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,100),(200,300)<|box_end|>",
        "cat(100,100),(200,300)<|im_end|>",
        "<box>(100,100),(200,300)</box>",
        "<ref>cat</ref><quad>(100,100),(200,110),(190,300),(105,290)</quad>",
    ],
)
def test_a_box_is_read_in_the_marks_of_earlier_generations(reply: str) -> None:
    assert parse_boxes(reply, THOUSANDTHS, what="cat") == (CAT,)


@pytest.mark.parametrize("reply", ["[]", "```json\n[]\n```", '{"objects": []}', "none", "None."])
def test_nothing_is_found_only_when_the_answer_says_so(reply: str) -> None:
    assert parse_boxes(reply, VIEW, what="cat", nothing="none") == ()


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "none",
        "There are no cats in this picture.",
        "I cannot answer with [] here.",
        "{}",
        "[1, 2, 3, 4]",
        '[{"bbox_2d": [100, 50, 200, 150], "label": "cat"}, {"bbox_2d": [1',
        "<ref>cat</ref><box>(100,1",
        '[{"bbox_2d": [1, 2, 3], "label": "cat"}]',
        '[{"bbox_2d": "left", "label": "cat"}]',
        '[{"label": "cat"}]',
        '[{"bbox_2d": [1200, 600, 1300, 700], "label": "cat"}]',
        "[" * 100,
    ],
)
def test_everything_else_is_an_error(reply: str) -> None:
    with pytest.raises(ReplyError) as caught:
        parse_boxes(reply, VIEW, what="cat")
    assert str(caught.value).endswith(".")


def test_what_cannot_be_placed_is_left_out_with_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    items = [
        {"bbox_2d": [100, 50, 200, 150], "label": "cat"},
        {"bbox_2d": [1, 2], "label": "cat"},
        {"bbox_2d": [5000, 50, 6000, 150], "label": "cat"},
        {"label": "a cat without a place"},
    ]
    with caplog.at_level(logging.WARNING):
        assert parse_boxes(json.dumps(items), VIEW, what="cat") == (CAT,)
    assert "left_out=3 kept=1" in caplog.text


def test_points_are_read_and_boxes_give_their_centre() -> None:
    reply = (
        '[{"point_2d": [100, 50], "label": "eye"}, {"bbox_2d": [0, 0, 200, 100], "label": "nose"}]'
    )
    assert parse_points(reply, VIEW, what="eye") == (
        FoundPoint(label="eye", x=200, y=100),
        FoundPoint(label="nose", x=200, y=100),
    )
    marked = "<ref>eye</ref><box>(0,0),(200,200)</box><box>(100,100)</box>"
    assert parse_points(marked, THOUSANDTHS, what="eye") == (
        FoundPoint(label="eye", x=200, y=100),
        FoundPoint(label="eye", x=200, y=100),
    )
    with pytest.raises(ReplyError, match="lies in the picture"):
        parse_points('[{"point_2d": [1100, 50], "label": "eye"}]', VIEW, what="eye")


def test_a_count_says_whether_boxes_and_number_agree() -> None:
    box = {"bbox_2d": [100, 50, 200, 150], "label": "cat"}
    agreed = parse_count(json.dumps({"objects": [box], "count": 1}), VIEW, what="cat")
    assert agreed == Count(boxes=(CAT,), stated=1)
    assert agreed.number == 1
    assert agreed.agrees
    torn = parse_count(json.dumps({"objects": [box], "count": 4}), VIEW, what="cat")
    assert (torn.number, torn.stated, torn.agrees) == (1, 4, False)
    none = parse_count('{"objects": [], "count": 0}', VIEW, what="cat")
    assert (none.number, none.agrees) == (0, True)
    silent = parse_count("<ref>cat</ref><box>(100,100),(200,300)</box>", THOUSANDTHS, what="cat")
    assert (silent.number, silent.stated, silent.agrees) == (1, None, True)


def test_boxes_that_cannot_be_placed_are_not_counted_and_no_longer_agree() -> None:
    boxes = [{"bbox_2d": [100, 50, 200, 150]}, {"bbox_2d": [5000, 50, 6000, 150]}]
    count = parse_count(json.dumps({"objects": boxes, "count": 2}), VIEW, what="cat")
    assert (count.number, count.agrees) == (1, False)


def test_words_keep_their_text_and_order() -> None:
    reply = json.dumps(
        [
            {"bbox_2d": [100, 50, 200, 150], "text_content": "安全第一"},
            {"bbox_2d": [0, 0, 100, 50], "text_content": "No. 7 “(a)”"},
            {"bbox_2d": [0, 0, 100, 50], "text_content": " "},
        ]
    )
    assert parse_words(reply, VIEW) == (
        Word(text="安全第一", box=(200, 100, 400, 300)),
        Word(text="No. 7 “(a)”", box=(0, 0, 200, 100)),
    )
    quads = "<ref>EXIT</ref><quad>(100,100),(200,100),(200,300),(100,300)</quad>"
    assert parse_words(quads, THOUSANDTHS) == (Word(text="EXIT", box=(200, 100, 400, 300)),)
    with pytest.raises(ReplyError):
        parse_words('[{"bbox_2d": [100, 50, 200, 150]}]', VIEW)


PIECES = st.sampled_from(
    [
        *('[{"bbox_2d": [1, 2, 30, 40], "label": "x"}', '"point_2d": [5, 6]', "]", "}", "[", "{"),
        *("<ref>a</ref>", "<box>(1,2),(3,4)</box>", "(1,2)", ",", "none", "[]", '"', "9" * 30),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=30).map("".join), st.sampled_from(list(Notation)))
def test_any_answer_is_an_error_or_lies_inside_the_photo(reply: str, notation: Notation) -> None:
    view = View(notation=notation, seen_wh=(50, 60), photo_wh=(640, 480))
    try:
        boxes = parse_boxes(reply, view, what="x")
        points = parse_points(reply, view, what="x")
    except ReplyError:
        return
    for found in boxes:
        x1, y1, x2, y2 = found.box
        assert 0 <= x1 < x2 <= 640
        assert 0 <= y1 < y2 <= 480
    assert all(0 <= spot.x < 640 and 0 <= spot.y < 480 for spot in points)


def test_a_long_answer_is_read_in_linear_time() -> None:
    started = time.process_time()
    item = '{"bbox_2d": [100, 50, 200, 150], "label": "cat"},'
    assert len(parse_boxes(f"[{item * 3_000}]", VIEW, what="cat")) == 3_000
    assert time.process_time() - started < 3
