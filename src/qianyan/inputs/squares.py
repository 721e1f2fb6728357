"""From upright RGB pictures to the squares that the first Qwen-VL reads.

Every picture becomes a square of one size, whatever its shape: width and height are scaled each on
its own (Qwen-VL, arXiv 2308.12966, section 2.1). The numbers are in config.json's `visual`; these
checkpoints have no preprocessor_config.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from qianyan.errors import ConfigError, InputError, quote
from qianyan.inputs.patches import GridTHW


@dataclass(frozen=True, kw_only=True)
class SquareConfig:
    """How a checkpoint wants its pictures, named as in config.json's `visual`."""

    image_size: int
    patch_size: int
    n_queries: int = 256
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "n_queries"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(
                    f"visual {name} is {quote(value)}; expected an integer of at least 1."
                )
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"visual image_size is {self.image_size}; "
                f"expected a multiple of patch_size ({self.patch_size})."
            )

    @classmethod
    def from_json(cls, visual: Any) -> Self:
        """Read the `visual` object of config.json."""
        if not isinstance(visual, Mapping):
            raise ConfigError(f"config.json's visual is {quote(visual)}; expected a JSON object.")
        missing = [name for name in ("image_size", "patch_size") if visual.get(name) is None]
        if missing:
            raise ConfigError(f"config.json's visual has no {', '.join(missing)}; copy it again.")
        names = ("image_size", "patch_size", "n_queries")
        return cls(**{name: visual[name] for name in names if visual.get(name) is not None})

    def within(self, *, min_pixels: int | None = None, max_pixels: int | None = None) -> Self:
        """Refuse limits: every picture is seen in one size. Raises InputError."""
        if min_pixels is not None or max_pixels is not None:
            raise InputError(
                f"This model sees every picture as {self.image_size} x {self.image_size} pixels; "
                "leave min_pixels and max_pixels out."
            )
        return self

    def seen_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in pixels of what the model sees; the same for every picture."""
        del width, height
        return self.image_size, self.image_size

    def grid(self, seen_wh: tuple[int, int]) -> GridTHW:
        """Patches in time, height and width of a picture of that seen size."""
        return 1, seen_wh[1] // self.patch_size, seen_wh[0] // self.patch_size

    def num_tokens(self, grid: GridTHW) -> int:
        """Tokens that a picture takes in a prompt; the same for every grid."""
        del grid
        return self.n_queries


def make_squares(images: Sequence[Image.Image], config: SquareConfig) -> np.ndarray:
    """Stack seen pictures (already resized) into float32 (pictures, 3, image_size, image_size)."""
    side = config.image_size
    squares = np.empty((len(images), 3, side, side), dtype=np.float32)
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = (np.array(each, np.float32) for each in (config.image_mean, config.image_std))
    table = (levels - mean[:, None]) / std[:, None]  # (channel, 256), for a look-up per pixel
    for square, image in zip(squares, images, strict=True):
        pixels = np.asarray(image)  # (y, x, channel)
        for channel in range(3):
            square[channel] = table[channel][pixels[:, :, channel]]
    return squares
