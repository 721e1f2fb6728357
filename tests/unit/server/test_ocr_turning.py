"""Turned pictures, and places brought back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qianyan.server.ocr_turning import Degrees, Turn, turned


@given(
    degrees=st.sampled_from([0, 90, 180, 270]),
    size=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    data=st.data(),
)
def test_a_place_in_the_turned_picture_is_that_of_the_same_pixels_before(
    degrees: Degrees, size: tuple[int, int], data: st.DataObject
) -> None:
    """Paint a box in the turned picture, turn it back, and find it where `to_sent` says."""
    image = turned(Image.new("L", size), degrees)
    x1 = data.draw(st.integers(0, image.width - 3))
    y1 = data.draw(st.integers(0, image.height - 3))
    x2 = data.draw(st.integers(x1 + 1, image.width))
    y2 = data.draw(st.integers(y1 + 1, image.height))
    image.paste(255, (x1, y1, x2, y2))
    before = turned(image, (360 - degrees) % 360)
    assert before.size == size
    word = {"text": "a", "location": [x1, y1, x2, y1, x2, y2, x1, y2], "rotate_rect": []}
    (found,) = Turn(degrees, size).to_sent({"words_info": [word]})["words_info"]
    xs, ys = found["location"][::2], found["location"][1::2]
    rows, columns = np.nonzero(np.asarray(before))
    assert (min(xs), max(xs)) == (columns.min(), columns.max() + 1)
    assert (min(ys), max(ys)) == (rows.min(), rows.max() + 1)


def test_what_has_no_places_stays_as_it_is() -> None:
    values = {"kv_result": {"a": None}}
    assert Turn(90, (10, 10)).to_sent(values) == values


@pytest.mark.parametrize("degrees", [0, 90])
def test_only_a_turned_picture_is_spoken_of(degrees: Degrees) -> None:
    assert bool(Turn(degrees, (10, 10)).notes) is (degrees == 90)
