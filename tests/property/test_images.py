"""Sizes and patches keep their promises for every picture."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qianyan.errors import MediaError
from qianyan.inputs.images import MAX_RATIO, smart_resize
from qianyan.inputs.patches import PatchConfig, make_patches

FACTOR = 28
# A wide range between the two: rounding to whole blocks can leave a narrow one on either side.
limits = st.tuples(st.integers(1, 64), st.integers(16, 256)).map(
    lambda blocks: {
        "min_pixels": blocks[0] * FACTOR**2,
        "max_pixels": blocks[0] * blocks[1] * FACTOR**2,
    }
)


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    """Sides of a picture that is no longer than the models allow."""
    short = draw(st.integers(1, 3000))
    long = draw(st.integers(short, min(short * MAX_RATIO, 20_000)))
    return (short, long) if draw(st.booleans()) else (long, short)


@given(sizes(), limits)
def test_seen_sizes_are_whole_blocks_within_the_limits(
    size: tuple[int, int], limits: dict[str, int]
) -> None:
    height, width = smart_resize(*size, factor=FACTOR, **limits)
    assert height % FACTOR == 0
    assert width % FACTOR == 0
    assert min(height, width) >= FACTOR
    # A side that is already one block cannot shrink further, so a thin strip may stay above.
    if min(height, width) > FACTOR:
        assert height * width <= limits["max_pixels"]
    assert height * width >= limits["min_pixels"]


@given(sizes(), limits)
def test_resizing_a_seen_size_again_changes_nothing(
    size: tuple[int, int], limits: dict[str, int]
) -> None:
    """A client that resizes first gets coordinates in the pixels it sent."""
    once = smart_resize(*size, factor=FACTOR, **limits)
    within = limits["min_pixels"] <= math.prod(once) <= limits["max_pixels"]
    if within and max(once) <= MAX_RATIO * min(once):
        assert smart_resize(*once, factor=FACTOR, **limits) == once


@given(sizes(), limits)
def test_the_transposed_picture_has_the_transposed_size(
    size: tuple[int, int], limits: dict[str, int]
) -> None:
    height, width = smart_resize(*size, factor=FACTOR, **limits)
    assert smart_resize(*size[::-1], factor=FACTOR, **limits) == (width, height)


@given(st.integers(1, 100), st.integers(1, 100_000))
def test_strips_longer_than_the_models_allow_are_refused(short: int, extra: int) -> None:
    with pytest.raises(MediaError) as caught:
        smart_resize(short, short * MAX_RATIO + extra, min_pixels=3136, max_pixels=12_845_056)
    assert caught.value.code == "too_narrow"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([(14, 2, 2), (14, 1, 2), (16, 2, 2)]))
def test_every_pixel_lands_in_its_row_and_column(
    block_rows: int, block_columns: int, shape: tuple[int, int, int]
) -> None:
    """Rows by merge block, columns by channel, time, y, x: looked up one number at a time."""
    patch, time, merge = shape
    config = PatchConfig(
        min_pixels=1,
        max_pixels=10**9,
        patch_size=patch,
        temporal_patch_size=time,
        merge_size=merge,
        image_mean=(0.0, 0.0, 0.0),
        image_std=(1 / 255, 1 / 255, 1 / 255),
    )
    rng = np.random.default_rng(block_rows * 7 + block_columns)
    height, width = block_rows * config.factor, block_columns * config.factor
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows = make_patches([Image.fromarray(pixels)], config)
    assert rows.shape == (math.prod(config.grid((width, height))), config.row_size)
    for y, x, channel in zip(
        rng.integers(0, height, 50), rng.integers(0, width, 50), rng.integers(0, 3, 50), strict=True
    ):
        block = (y // config.factor) * block_columns + x // config.factor
        inside = (y // patch % merge) * merge + x // patch % merge
        row = block * merge**2 + inside
        for moment in range(time):
            column = ((channel * time + moment) * patch + y % patch) * patch + x % patch
            assert rows[row, column] == pytest.approx(pixels[y, x, channel], abs=1e-3)
