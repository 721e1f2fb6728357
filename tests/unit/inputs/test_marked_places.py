"""Names with boxes, quads and points in running text, written and read for two generations."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qianyan.errors import InputError
from qianyan.inputs.grounding import Markup
from qianyan.inputs.marked_places import MarkedPlace, Shape, read_marked, strip_marks, write_marked

BOX: Shape = ((1, 2), (3, 4))
OTHER: Shape = ((5, 6), (7, 8))
QUAD: Shape = ((1, 1), (9, 2), (8, 7), (2, 6))
MARKUPS = [Markup.REF, Markup.OBJECT_REF]
names = st.text(
    st.characters(exclude_characters="<>|()（）", codec="utf-8"), min_size=1, max_size=60
).filter(str.strip)
numbers = st.integers(0, 12_000)
corners = st.tuples(numbers, numbers)
shapes = st.one_of(*(st.tuples(*[corners] * size) for size in (1, 2, 4)))


def shown(text: str) -> list[tuple[str | None, tuple[Shape, ...]]]:
    return [(place.label, place.shapes) for place in read_marked(text).places]


def test_each_generation_writes_its_own_marks() -> None:
    assert write_marked("a cat", [BOX, OTHER], markup=Markup.REF) == (
        "<ref>a cat</ref><box>(1,2),(3,4)</box><box>(5,6),(7,8)</box>"
    )
    assert write_marked("猫", [BOX], markup=Markup.OBJECT_REF) == (
        "<|object_ref_start|>猫<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"
    )
    assert write_marked("sign", [QUAD], markup=Markup.REF) == (
        "<ref>sign</ref><quad>(1,1),(9,2),(8,7),(2,6)</quad>"
    )


@pytest.mark.parametrize("markup", MARKUPS)
@given(found=st.lists(st.tuples(names, st.lists(shapes, min_size=1, max_size=4)), max_size=5))
def test_what_is_written_is_read_again(
    markup: Markup, found: list[tuple[str, list[Shape]]]
) -> None:
    text = " and ".join(write_marked(name, places, markup=markup) for name, places in found)
    assert shown(text) == [(name.strip(), tuple(places)) for name, places in found]
    assert not read_marked(text).is_cut
    for place in read_marked(text).places:
        assert place.span is not None
        assert text[slice(*place.span)].strip() == place.label


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat(1,2),(3,4)", [("cat", (BOX,))]),
        ("cat(1,2),(3,4)(5,6),(7,8)", [("cat", (BOX, OTHER))]),
        ("cat(1,2),(3,4)\ndog(5,6),(7,8)<|im_end|>", [("cat", (BOX,)), ("dog", (OTHER,))]),
        ("猫（1，2），（3，4）、狗(5,6),(7,8)。", [("猫", (BOX,)), ("狗", (OTHER,))]),
        ("cat (1, 2), (3, 4), dog (5, 6), (7, 8)", [("cat", (BOX,)), ("dog", (OTHER,))]),
        ("sign(1,1),(9,2),(8,7),(2,6)", [("sign", (QUAD,))]),
        ("Of course. The cat(1,2),(3,4)", [("The cat", (BOX,))]),
        ("<box>(1,2),(3,4)</box>", [(None, (BOX,))]),
        ("<ref>cat<box>(1,2),(3,4)</box>", [("cat", (BOX,))]),
        ("<ref>the (1,2) door</ref><box>(1,2),(3,4)</box>", [("the (1,2) door", (BOX,))]),
        ("<ref>cat</ref> is here: <box>(1,2),(3,4)</box>", [("cat", (BOX,))]),
        ("<ref>cat</ref> is nowhere", []),
        ("There is nothing to see.", []),
        ("<|box_start|>(1,2)<|box_end|>", [(None, (((1, 2),),))]),
        ("<ref>cat</ref><box>(1,2),(3,4)", [("cat", (BOX,))]),
        ("", []),
    ],
)
def test_places_are_read_with_and_without_their_marks(
    text: str, expected: list[tuple[str | None, tuple[Shape, ...]]]
) -> None:
    assert shown(text) == expected
    assert not read_marked(text).is_cut


def test_every_prefix_of_an_answer_gives_its_complete_places_or_says_that_it_is_cut() -> None:
    text = write_marked("cat", [BOX], markup=Markup.REF)
    text += write_marked("dog", [OTHER], markup=Markup.REF)
    for size in range(len(text)):
        read = read_marked(text[:size])
        whole = [("cat", (BOX,)), ("dog", (OTHER,))]
        found = [(place.label, place.shapes) for place in read.places]
        assert found == whole[: len(found)]
        if text[:size].endswith(("(", "(5", "(5,", "(5,6", "(5,6)", "(5,6),", "<ref>d")):
            assert read.is_cut, text[:size]


def test_a_quad_gives_the_box_around_it_and_a_slip_gives_none() -> None:
    place = MarkedPlace("x", (QUAD, BOX, ((1, 2),), ((1, 2), (3, 4), (5, 6))))
    assert place.boxes == ((1, 1, 9, 7), (1, 2, 3, 4), None, None)


def test_a_name_with_a_mark_in_it_and_a_triangle_are_not_written() -> None:
    with pytest.raises(InputError, match="mark of its own"):
        write_marked("</ref><box>(0,0),(999,999)</box>", [BOX], markup=Markup.REF)
    with pytest.raises(InputError, match="3 corners"):
        write_marked("x", [((1, 2), (3, 4), (5, 6))], markup=Markup.REF)
    with pytest.raises(InputError, match="markup is 'json'"):
        write_marked("x", [BOX], markup=Markup.JSON)


def test_marks_can_be_taken_out_for_people() -> None:
    text = write_marked("cat", [BOX], markup=Markup.OBJECT_REF) + "<|im_end|>"
    assert strip_marks(text) == "cat(1,2),(3,4)"
    assert strip_marks("<ref>cat</ref>") == "cat"


@pytest.mark.parametrize(
    "piece",
    [
        *("<ref>", "(1,2),", "(", "<box>(1,2)", "(1,2)(", "a(1,2)", "<|object_ref_start|>x"),
        *("(9" * 9, "<" * 50, " " * 40, "(" + " " * 30, "1" * 60, "<ref>a</ref>", "。(1,2),(3,4)"),
    ],
)
def test_long_rubbish_is_read_in_linear_time(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    started = time.process_time()
    read_marked(text)
    assert time.process_time() - started < 3


@given(st.text(alphabet="<>|/refboxquad()（），,12.- \n猫_startend", max_size=300))
def test_any_text_gives_places_that_stand_in_it(text: str) -> None:
    for place in read_marked(text).places:
        assert place.shapes
        if place.span is not None:
            assert text[slice(*place.span)].strip() == place.label
