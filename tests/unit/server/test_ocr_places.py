"""Corners, boxes and turned rectangles of lines of text."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qianyan.inputs.grounding import Notation
from qianyan.server.ocr_places import Line, read_corners, to_photo, to_turned

# How long a draw takes says nothing where others use the machine too.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
SIDES = st.floats(1, 500)
PLACES = st.floats(-1000, 1000)


@UNHURRIED
@given(PLACES, PLACES, SIDES, SIDES, st.floats(-89, 89))
def test_a_turned_rectangle_comes_back_from_its_corners(
    x: float, y: float, width: float, height: float, angle: float
) -> None:
    corners = read_corners((x, y, width, height, angle))
    assert corners is not None
    turned = to_turned(corners)
    for number, expected in zip(turned, (x, y, width, height, angle), strict=True):
        assert number == pytest.approx(expected, abs=0.51)


def test_angles_run_clockwise_as_seen_and_corners_go_round_from_the_upper_left() -> None:
    corners = read_corners((100, 100, 40, 10, 90))
    assert corners is not None
    assert [(round(px), round(py)) for px, py in corners] == [
        (105, 80),
        (105, 120),
        (95, 120),
        (95, 80),
    ]
    upright = read_corners((90, 105, 10, 95))
    assert upright == ((10, 95), (90, 95), (90, 105), (10, 105))
    assert to_turned(upright) == [50, 100, 80, 10, 0]
    upside_down = [(90, 105), (10, 105), (10, 95), (90, 95)]
    assert to_turned(upside_down) == [50, 100, 80, 10, 0]


def test_thousandths_are_stretched_to_the_picture_and_kept_inside() -> None:
    about = {"notation": Notation.RELATIVE_1000, "seen_wh": (56, 56), "photo_wh": (2000, 1000)}
    assert to_photo((100, 100, 500, 200), **about) == (
        (200, 100),
        (1000, 100),
        (1000, 200),
        (200, 200),
    )
    turned = to_photo((500, 500, 200, 100, 90), **about)
    assert turned == ((1100, 400), (1100, 600), (900, 600), (900, 400))
    assert to_photo((-50, -50, 2000, 2000), **about) == ((0, 0), (2000, 0), (2000, 1000), (0, 1000))
    assert to_photo((2000, 2000, 3000, 3000), **about) is None
    assert to_photo((1, 2, 3), **about) is None
    assert to_photo((math.nan, 0, 1, 1), **about) is None


def test_resized_pixels_go_back_to_the_pictures_own() -> None:
    found = to_photo(
        (10, 10, 50, 10, 50, 20, 10, 20),
        notation=Notation.RESIZED_PIXELS,
        seen_wh=(100, 50),
        photo_wh=(400, 200),
    )
    assert found == ((40, 40), (200, 40), (200, 80), (40, 80))
    line = Line(text="Exit", corners=found).to_json()
    assert line == {
        "text": "Exit",
        "location": [40, 40, 200, 40, 200, 80, 40, 80],
        "rotate_rect": [120, 60, 160, 40, 0],
    }
