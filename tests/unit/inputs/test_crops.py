"""The square around a box stays inside the photo and shows all of the box."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qianyan.errors import InputError
from qianyan.inputs.crops import crop_region, square_crop


def test_a_box_in_the_middle_gets_its_margin_on_every_side() -> None:
    assert crop_region((100, 100, 200, 160), (400, 300)) == (70, 50, 230, 210)


def test_a_square_over_the_border_is_shifted_back_inside() -> None:
    assert crop_region((0, 0, 50, 50), (400, 300)) == (0, 0, 80, 80)
    assert crop_region((350, 250, 400, 300), (400, 300)) == (320, 220, 400, 300)


def test_a_tiny_box_gets_the_smallest_side() -> None:
    left, top, right, bottom = crop_region((50, 50, 52, 53), (400, 300))
    assert (right - left, bottom - top) == (32, 32)


def test_a_region_longer_than_the_photo_is_squeezed_into_a_square() -> None:
    photo = Image.new("RGB", (400, 100))
    assert crop_region((0, 10, 390, 90), photo.size) == (0, 0, 400, 100)
    assert square_crop(photo, (0, 10, 390, 90)).size == (400, 400)


@given(
    st.floats(0, 300),
    st.floats(0, 200),
    st.floats(1, 300),
    st.floats(1, 200),
    st.integers(8, 500),
    st.integers(8, 500),
)
def test_the_region_lies_inside_the_photo(
    x1: float, y1: float, width: float, height: float, photo_width: int, photo_height: int
) -> None:
    left, top, right, bottom = crop_region(
        (x1, y1, x1 + width, y1 + height), (photo_width, photo_height)
    )
    assert 0 <= left < right <= photo_width
    assert 0 <= top < bottom <= photo_height


@pytest.mark.parametrize(
    "box", [(10, 10, 10, 20), (20, 10, 10, 20), (0, 0, float("nan"), 5), (0, 0, float("inf"), 5)]
)
def test_a_box_without_area_is_an_error(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match="expected finite corners"):
        square_crop(Image.new("RGB", (40, 40)), box)
