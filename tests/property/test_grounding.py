"""Boxes keep their place through every notation, whatever the sizes."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from qianyan.inputs.grounding import HYPOTHESES, Notation, to_model_box, to_photo_box

sides = st.integers(1, 12_000)
sizes = st.tuples(sides, sides)
notations = st.sampled_from(list(Notation))
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
