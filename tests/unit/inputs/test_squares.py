"""Pictures as squares of one size, as the first Qwen-VL reads them."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from qianyan.errors import ConfigError, InputError
from qianyan.inputs.squares import SquareConfig, make_squares

RELEASED = {
    "heads": 16,
    "image_size": 448,
    "image_start_id": 151857,
    "layers": 48,
    "mlp_ratio": 4.9231,
    "output_dim": 4096,
    "patch_size": 14,
    "width": 1664,
}
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def photo(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_the_released_model_sees_every_photo_in_one_size() -> None:
    config = SquareConfig.from_json(RELEASED)
    for size in ((1, 1), (4000, 3000), (10, 5000)):
        assert config.seen_size(*size) == (448, 448)
    grid = config.grid(config.seen_size(640, 480))
    assert grid == (1, 32, 32)
    assert config.num_tokens(grid) == 256


def test_numbers_are_those_of_scaling_then_normalising_each_channel() -> None:
    config = SquareConfig(image_size=28, patch_size=14)
    seen = [image.resize((28, 28), config.resample) for image in (photo(91, 40), photo(7, 33))]
    squares = make_squares(seen, config)
    assert squares.shape == (2, 3, 28, 28)
    assert squares.dtype == np.float32
    for square, image in zip(squares, seen, strict=True):
        scaled = np.asarray(image).astype(np.float64) / 255
        expected = (scaled - MEAN) / STD
        np.testing.assert_allclose(square, expected.transpose(2, 0, 1), rtol=0, atol=1e-6)


def test_no_pictures_make_an_empty_array() -> None:
    config = SquareConfig(image_size=28, patch_size=14)
    assert make_squares([], config).shape == (0, 3, 28, 28)


def test_limits_on_pixels_are_refused_and_none_is_fine() -> None:
    config = SquareConfig.from_json(RELEASED)
    assert config.within() is config
    for limits in ({"max_pixels": 1000}, {"min_pixels": 1000}):
        with pytest.raises(InputError, match="every picture as 448 x 448"):
            config.within(**limits)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": None}, "visual has no image_size"),
        ({"patch_size": None, "image_size": None}, "visual has no image_size, patch_size"),
        ({"image_size": 450}, "image_size is 450; expected a multiple of patch_size (14)"),
        ({"image_size": "448"}, "image_size is '448'"),
        ({"patch_size": 0}, "patch_size is '0'"),
        ({"n_queries": True}, "n_queries is 'True'"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        SquareConfig.from_json(RELEASED | changes)
    assert words in str(raised.value)


def test_a_visual_that_is_no_object_is_refused() -> None:
    with pytest.raises(ConfigError, match="visual is '7'; expected a JSON object"):
        SquareConfig.from_json(7)
