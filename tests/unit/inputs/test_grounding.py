"""Which generation counts and marks places how; points and quads at known places."""

import math

import pytest

from qianyan.inputs.grounding import (
    Markup,
    Notation,
    find_markup,
    find_notation,
    to_model_point,
    to_photo_point,
    to_photo_quad,
)

SIZES = {"seen_wh": (448, 336), "photo_wh": (1000, 500)}


@pytest.mark.parametrize(
    ("architecture", "notation", "markup"),
    [
        ("QWenLMHeadModel", Notation.RELATIVE_1000, Markup.REF),
        ("Qwen2VLForConditionalGeneration", Notation.RELATIVE_BELOW_1000, Markup.OBJECT_REF),
        ("Qwen2_5_VLForConditionalGeneration", Notation.RESIZED_PIXELS, Markup.JSON),
        ("Qwen2_5OmniModel", Notation.RESIZED_PIXELS, Markup.JSON),
        ("Qwen2_5OmniForConditionalGeneration", Notation.RESIZED_PIXELS, Markup.JSON),
        ("Qwen3VLForConditionalGeneration", Notation.RELATIVE_1000, Markup.JSON),
        ("LlamaForCausalLM", None, Markup.JSON),
    ],
)
def test_config_json_tells_the_notation_and_the_markup(
    architecture: str, notation: Notation | None, markup: Markup
) -> None:
    assert find_notation(architecture) is notation
    assert find_markup(architecture) is markup


@pytest.mark.parametrize(
    ("point", "notation", "expected"),
    [
        ((224, 168), Notation.RESIZED_PIXELS, (500, 250)),
        ((0, 0), Notation.RESIZED_PIXELS, (0, 0)),
        ((448, 336), Notation.RESIZED_PIXELS, (999, 499)),
        ((449, 0), Notation.RESIZED_PIXELS, None),
        ((0, -1), Notation.RESIZED_PIXELS, None),
        ((100, 900), Notation.RELATIVE_1000, (100, 450)),
        ((900, 100), Notation.RELATIVE_1000_YX, (100, 450)),
        ((0.1, 0.9), Notation.RELATIVE_1, (100, 450)),
        ((math.nan, 1), Notation.RELATIVE_1000, None),
        ((math.inf, 1), Notation.RELATIVE_1000, None),
    ],
)
def test_known_points_of_a_photo_of_1000x500_seen_as_448x336(
    point: tuple[float, float], notation: Notation, expected: tuple[int, int] | None
) -> None:
    assert to_photo_point(point, notation=notation, **SIZES) == expected


def test_points_are_written_in_the_order_and_range_of_the_notation() -> None:
    assert to_model_point((1000, 250), notation=Notation.RELATIVE_1000_YX, **SIZES) == (500, 1000)
    assert to_model_point((1000, 500), notation=Notation.RELATIVE_BELOW_1000, **SIZES) == (999, 999)
    assert to_model_point((250, 250), notation=Notation.RELATIVE_1, **SIZES) == (0.25, 0.5)


def test_a_quad_keeps_its_order_and_is_clipped_or_refused() -> None:
    notation = Notation.RELATIVE_1000
    quad = ((-10, 100), (500, 100), (500, 1200), (0, 900))
    clipped = ((0, 50), (500, 50), (500, 500), (0, 450))
    assert to_photo_quad(quad, notation=notation, **SIZES) == clipped
    outside = ((1100, 0), (1200, 0), (1200, 50), (1100, 50))
    assert to_photo_quad(outside, notation=notation, **SIZES) is None
    broken = ((math.nan, 0), (10, 0), (10, 50), (0, 50))
    assert to_photo_quad(broken, notation=notation, **SIZES) is None
