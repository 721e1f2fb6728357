"""Boxes keep their place through every notation, whatever the sizes."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from qianyan.inputs.grounding import (
    HYPOTHESES,
    Markup,
    Notation,
    box_around,
    find_markup,
    find_notation,
    to_model_box,
    to_model_point,
    to_model_quad,
    to_photo_box,
    to_photo_point,
    to_photo_quad,
)
from qianyan.inputs.images import smart_resize
from qianyan.inputs.loose_json import read_loose_json
from qianyan.inputs.marked_places import Shape, read_marked, strip_marks, write_marked

sides = st.integers(1, 12_000)
sizes = st.tuples(sides, sides)
notations = st.sampled_from(list(Notation))
GENERATIONS = {
    "Qwen-VL": "QWenLMHeadModel",
    "Qwen2-VL": "Qwen2VLForConditionalGeneration",
    "Qwen2.5-VL": "Qwen2_5_VLForConditionalGeneration",
    "Qwen2.5-Omni": "Qwen2_5OmniModel",
    "Qwen3-VL": "Qwen3VLForConditionalGeneration",
}
numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)
SENT_ELSEWHERE = (1316, 728)


@st.composite
def photos_with_a_box(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """A photo's size and a box inside it with some area."""
    width, height = draw(sizes)
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x2, y2 = draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))
    return (width, height), (x1, y1, x2, y2)


def slack(notation: Notation, seen: int, photo: int) -> float:
    """How far a corner may move: half a step of the notation, then half a pixel of the photo."""
    step = photo / (notation.span or seen)
    if notation.span == 1:
        step = photo / 10_000
    if notation is Notation.RELATIVE_BELOW_1000:
        step *= 2  # its far edge is written one step short
    return step / 2 + 0.5 + 1e-6


@given(photos_with_a_box(), sizes, notations)
def test_a_box_comes_back_within_rounding(
    photo: tuple[tuple[int, int], tuple[int, int, int, int]],
    seen_wh: tuple[int, int],
    notation: Notation,
) -> None:
    photo_wh, box = photo
    written = to_model_box(box, notation=notation, seen_wh=seen_wh, photo_wh=photo_wh)
    read = to_photo_box(written, notation=notation, seen_wh=seen_wh, photo_wh=photo_wh)
    if read is None:  # thinner than one step of the notation: written without area
        ordered = (written[0] == written[2]) or (written[1] == written[3])
        assert ordered
        return
    for index, (before, after) in enumerate(zip(box, read, strict=True)):
        axis = index % 2
        # A box thinner than a pixel is widened to one, which may move a corner once more.
        assert abs(before - after) <= slack(notation, seen_wh[axis], photo_wh[axis]) + 1


@given(st.tuples(numbers, numbers, numbers, numbers), sizes, sizes, notations)
def test_whatever_a_model_writes_is_inside_the_photo_or_nothing(
    box: tuple[float, float, float, float],
    seen_wh: tuple[int, int],
    photo_wh: tuple[int, int],
    notation: Notation,
) -> None:
    read = to_photo_box(box, notation=notation, seen_wh=seen_wh, photo_wh=photo_wh)
    if read is None:
        return
    x1, y1, x2, y2 = read
    assert 0 <= x1 < x2 <= photo_wh[0]
    assert 0 <= y1 < y2 <= photo_wh[1]
    assert all(isinstance(corner, int) for corner in read)


@given(photos_with_a_box(), notations)
def test_swapped_corners_mean_the_same_box(
    photo: tuple[tuple[int, int], tuple[int, int, int, int]], notation: Notation
) -> None:
    photo_wh, box = photo
    a, b, c, d = to_model_box(box, notation=notation, seen_wh=SENT_ELSEWHERE, photo_wh=photo_wh)
    readings = {
        to_photo_box(corners, notation=notation, seen_wh=SENT_ELSEWHERE, photo_wh=photo_wh)
        for corners in ((a, b, c, d), (c, d, a, b), (a, d, c, b), (c, b, a, d))
    }
    assert len(readings) == 1


@given(photos_with_a_box(), notations)
def test_what_is_written_stays_inside_the_notation(
    photo: tuple[tuple[int, int], tuple[int, int, int, int]], notation: Notation
) -> None:
    photo_wh, box = photo
    written = to_model_box(box, notation=notation, seen_wh=SENT_ELSEWHERE, photo_wh=photo_wh)
    far = notation.far_corner(SENT_ELSEWHERE)
    if notation is Notation.RELATIVE_BELOW_1000:
        far = (999, 999)
    far = far[::-1] if notation.is_yx else far
    assert all(0 <= number <= far[index % 2] for index, number in enumerate(written))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(60, 400),
    st.integers(60, 400),
    st.tuples(*[st.floats(0, 1) for _ in range(4)]),
    notations,
)
def test_a_drawn_rectangle_is_found_where_it_was_drawn(
    width: int, height: int, place: tuple[float, float, float, float], notation: Notation
) -> None:
    """Measured in the resized picture, written as a model would, the box covers the drawing."""
    x1, x2 = sorted((round(place[0] * (width - 30)), round(place[2] * (width - 30))))
    y1, y2 = sorted((round(place[1] * (height - 30)), round(place[3] * (height - 30))))
    drawn = (x1, y1, x2 + 30, y2 + 30)
    photo = Image.new("L", (width, height))
    ImageDraw.Draw(photo).rectangle((drawn[0], drawn[1], drawn[2] - 1, drawn[3] - 1), fill=255)
    seen = photo.resize((448, 308), Image.Resampling.BOX)
    measured = seen.point(lambda level: 255 if level >= 128 else 0).getbbox()
    assert measured is not None
    # The model sees only the resized picture: its photo is that picture.
    written = to_model_box(measured, notation=notation, seen_wh=seen.size, photo_wh=seen.size)
    read = to_photo_box(written, notation=notation, seen_wh=seen.size, photo_wh=photo.size)
    assert read is not None
    for index, (before, after) in enumerate(zip(drawn, read, strict=True)):
        axis = index % 2
        pixel = photo.size[axis] / seen.size[axis]
        assert abs(before - after) <= pixel + slack(notation, seen.size[axis], photo.size[axis])


def seen_by(generation: str, photo_wh: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """The size in which a generation looks at a photo."""
    if generation == "Qwen-VL":
        return (448, 448)
    factor = 32 if generation == "Qwen3-VL" else 28
    height, width = smart_resize(
        photo_wh[1], photo_wh[0], factor=factor, min_pixels=3136, max_pixels=max_pixels
    )
    return width, height


def say(shape: Shape, markup: Markup) -> str:
    """Write a box (two corners) or a point (one) into an answer, as that generation does."""
    if markup is not Markup.JSON:
        return write_marked("the thing", [shape], markup=markup)
    key = "point_2d" if len(shape) == 1 else "bbox_2d"
    numbers = [number for corner in shape for number in corner]
    return f"```json\n[{json.dumps({key: numbers, 'label': 'the thing'})}]\n```"


def hear(reply: str, markup: Markup) -> list[float]:
    """Read the numbers of the only place in an answer."""
    if markup is not Markup.JSON:
        ((shape,),) = [place.shapes for place in read_marked(reply).places]
        return [number for corner in shape for number in corner]
    ((item,),) = [found.value for found in read_loose_json(reply).found]
    return next(numbers for numbers in item.values() if isinstance(numbers, list))


photos_as_shot = st.tuples(st.integers(80, 4000), st.integers(80, 4000)).filter(
    lambda wh: max(wh) / min(wh) < 40
)
places = st.tuples(*[st.floats(0, 1) for _ in range(4)])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(GENERATIONS)),
    photos_as_shot,
    st.sampled_from([28 * 28 * 64, 1280 * 28 * 28, 12_845_056]),
    places,
    st.booleans(),
)
def test_a_known_rectangle_comes_back_through_the_words_of_every_generation(
    generation: str,
    photo_wh: tuple[int, int],
    max_pixels: int,
    place: tuple[float, ...],
    has_marks: bool,
) -> None:
    """Photo pixels, the model's own words, photo pixels again: within one unit of its notation."""
    architecture = GENERATIONS[generation]
    notation, markup = find_notation(architecture), find_markup(architecture)
    assert notation is not None
    sizes = {"seen_wh": seen_by(generation, photo_wh, max_pixels), "photo_wh": photo_wh}
    width, height = photo_wh
    x1, x2 = sorted((round(place[0] * (width - 60)), round(place[2] * (width - 60))))
    y1, y2 = sorted((round(place[1] * (height - 60)), round(place[3] * (height - 60))))
    box = (x1, y1, x2 + 60, y2 + 60)
    units = [
        max(1.0, length / (notation.span or seen))
        for length, seen in zip(photo_wh, sizes["seen_wh"], strict=True)
    ]
    a, b, c, d = to_model_box(box, notation=notation, **sizes)
    reply = say(((a, b), (c, d)), markup)
    if not has_marks:  # decoders may leave control tokens out
        reply = strip_marks(reply)
    heard = hear(reply, markup)
    read = to_photo_box((*heard,), notation=notation, **sizes)
    assert read is not None
    for index, (before, after) in enumerate(zip(box, read, strict=True)):
        assert abs(before - after) <= units[index % 2] + 0.5  # on whole pixels
    point = (x1 + 20, y1 + 40)
    written = to_model_point(point, notation=notation, **sizes)
    spot = to_photo_point((*hear(say((written,), markup), markup),), notation=notation, **sizes)
    assert spot is not None
    assert all(abs(p - s) <= unit + 0.5 for p, s, unit in zip(point, spot, units, strict=True))


@given(photos_with_a_box(), sizes, notations)
def test_points_and_quads_come_back_within_one_unit(
    photo: tuple[tuple[int, int], tuple[int, int, int, int]],
    seen_wh: tuple[int, int],
    notation: Notation,
) -> None:
    photo_wh, (x1, y1, x2, y2) = photo
    how = {"notation": notation, "seen_wh": seen_wh, "photo_wh": photo_wh}
    quad = ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
    read = to_photo_quad(to_model_quad(quad, **how), **how)
    slacks = [slack(notation, seen, length) for seen, length in zip(seen_wh, photo_wh, strict=True)]
    if read is not None:
        for before, after in zip(quad, read, strict=True):
            assert all(abs(b - a) <= s for b, a, s in zip(before, after, slacks, strict=True))
        whole = box_around(read)
        assert 0 <= whole[0] <= whole[2] <= photo_wh[0]
        assert 0 <= whole[1] <= whole[3] <= photo_wh[1]
    corner = (x1, y1)  # a pixel of the photo: x1 < width
    spot = to_photo_point(to_model_point(corner, **how), **how)
    assert spot is not None
    assert all(abs(b - a) <= s for b, a, s in zip(corner, spot, slacks, strict=True))


@given(st.tuples(numbers, numbers), sizes, sizes, notations)
def test_a_point_is_a_pixel_of_the_photo_or_nothing(
    point: tuple[float, float],
    seen_wh: tuple[int, int],
    photo_wh: tuple[int, int],
    notation: Notation,
) -> None:
    spot = to_photo_point(point, notation=notation, seen_wh=seen_wh, photo_wh=photo_wh)
    if spot is None:
        return
    assert 0 <= spot[0] < photo_wh[0]
    assert 0 <= spot[1] < photo_wh[1]


@pytest.mark.parametrize(
    ("box", "notation", "expected"),
    [
        ((0, 0, 448, 336), Notation.RESIZED_PIXELS, (0, 0, 1000, 500)),
        ((224, 168, 460, 400), Notation.RESIZED_PIXELS, (500, 250, 1000, 500)),
        ((100, 100, 500, 999), Notation.RELATIVE_1000, (100, 50, 500, 500)),
        ((100, 100, 500, 999), Notation.RELATIVE_1000_YX, (100, 50, 999, 250)),
        ((0.25, 0.5, 0.75, 1.0), Notation.RELATIVE_1, (250, 250, 750, 500)),
        ((-5, -5, 3, 3), Notation.SENT_PIXELS, (0, 0, 7, 4)),
        ((447.9, 0, 447.95, 336), Notation.RESIZED_PIXELS, (999, 0, 1000, 500)),
        ((500, 10, 600, 20), Notation.RESIZED_PIXELS, None),
        ((10, 10, 10, 20), Notation.RESIZED_PIXELS, None),
        ((10, 10, math.nan, 20), Notation.RESIZED_PIXELS, None),
        ((0, 0, math.inf, 20), Notation.RESIZED_PIXELS, None),
    ],
)
def test_known_boxes_of_a_photo_of_1000x500_seen_as_448x336(
    box: tuple[float, float, float, float], notation: Notation, expected: object
) -> None:
    assert (
        to_photo_box(box, notation=notation, seen_wh=(448, 336), photo_wh=(1000, 500)) == expected
    )


def test_hypotheses_of_a_probe_read_one_box_differently() -> None:
    """A probe can tell all of them apart but the two that count pixels of one picture."""
    readings = {
        notation: to_photo_box(
            (0.1, 0.2, 0.3, 0.7) if notation.span == 1 else (100, 200, 300, 700),
            notation=notation,
            seen_wh=(1316, 728) if "resized" in notation else (1500, 900),
            photo_wh=(1500, 900),
        )
        for notation in HYPOTHESES
    }
    assert len(set(readings.values())) >= 6
