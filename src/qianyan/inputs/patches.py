"""From upright RGB pictures to the rows a Qwen vision tower reads.

The layout is that of the published checkpoints (Qwen2-VL, section 2.1): one row per patch of
14x14 pixels and two moments; rows in merge-block order, columns (channel, time, y, x).
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
from PIL import Image

from qianyan.errors import ConfigError, InputError
from qianyan.inputs.images import smart_resize

Made = TypeVar("Made")
GridTHW = tuple[int, int, int]  # patches in time, height and width

LARGE_PIXELS = 2_000_000
"""From this area on, the three channels are worked on side by side; below, threads do not pay."""


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """How a checkpoint wants its pictures, named as in preprocessor_config.json."""

    min_pixels: int
    max_pixels: int
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ConfigError(
                f"min_pixels is {self.min_pixels} and max_pixels {self.max_pixels}; "
                "expected 0 < min_pixels <= max_pixels."
            )
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or not all(self.image_std):
            raise ConfigError("image_mean and image_std need three numbers each, std not zero.")

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read preprocessor_config.json, in the older form (min_pixels) or the newer (size)."""
        for switch in ("do_resize", "do_rescale", "do_normalize"):
            if not data.get(switch, True):
                raise ConfigError(f"preprocessor_config.json has {switch} off; expected it on.")
        if not math.isclose(data.get("rescale_factor") or 1 / 255, 1 / 255):
            raise ConfigError(
                f"preprocessor_config.json has rescale_factor {data['rescale_factor']}; "
                "expected 1/255."
            )
        size = data.get("size") or {}
        names = ("min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size")
        stated = {name: data.get(name) for name in names}
        for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            if stated[name] is None:
                stated[name] = size.get(name, size.get(edge))
        try:
            numbers = {name: int(value) for name, value in stated.items() if value is not None}
            triples = {
                name: tuple(float(value) for value in data[name])
                for name in ("image_mean", "image_std")
                if data.get(name) is not None
            }
            resample = Image.Resampling(data.get("resample", Image.Resampling.BICUBIC))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                "preprocessor_config.json holds something that is not a number where one belongs."
            ) from error
        # The defaults are those of the published class, for the rare file that states neither.
        numbers = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280} | numbers
        return cls(**numbers, **triples, resample=resample)  # type: ignore[arg-type]

    @property
    def factor(self) -> int:
        """Side in pixels of the square that becomes one token."""
        return self.patch_size * self.merge_size

    @property
    def row_size(self) -> int:
        """Numbers in one row: channels*time*height*width."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    def within(self, *, min_pixels: int | None = None, max_pixels: int | None = None) -> Self:
        """Tighten or widen the area limits; a lowered maximum lowers the minimum with it."""
        highest = self.max_pixels if max_pixels is None else max_pixels
        lowest = min(self.min_pixels, highest) if min_pixels is None else min_pixels
        return replace(self, min_pixels=lowest, max_pixels=highest)

    def seen_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in pixels of what the model sees of a picture."""
        seen_height, seen_width = smart_resize(
            height,
            width,
            factor=self.factor,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )
        return seen_width, seen_height

    def grid(self, seen_wh: tuple[int, int]) -> GridTHW:
        """Patches in time, height and width of a picture of that seen size."""
        return 1, seen_wh[1] // self.patch_size, seen_wh[0] // self.patch_size

    def video_grid(self, num_frames: int, seen_wh: tuple[int, int]) -> GridTHW:
        """Patches in time, height and width of a clip whose frames have that seen size."""
        _, height, width = self.grid(seen_wh)
        return num_frames // self.temporal_patch_size, height, width

    def num_tokens(self, grid: GridTHW) -> int:
        """Tokens that a picture or a clip of that grid takes."""
        return math.prod(grid) // self.merge_size**2


def resize(image: Image.Image, config: PatchConfig) -> Image.Image:
    """Resize an RGB picture to what the model sees of it."""
    seen_wh = config.seen_size(*image.size)
    if image.size == seen_wh or math.prod(image.size) < LARGE_PIXELS:
        return image.resize(seen_wh, config.resample)
    # Channels, not bands: of a band Pillow may resize the axes in another order, and every
    # rounding between the two would show.
    channels = _each_channel(
        lambda channel: image.getchannel(channel).resize(seen_wh, config.resample), large=True
    )
    return Image.merge("RGB", channels)


def make_patches(images: Sequence[Image.Image], config: PatchConfig) -> np.ndarray:
    """Cut seen pictures (already resized) into one float32 array, (patches, row_size).

    Rows run over each picture's merge blocks, row-major, and row-major inside a block. A still
    picture fills all `temporal_patch_size` slots of its patches.
    """
    counts = [math.prod(config.grid(image.size)) for image in images]
    rows = np.empty((sum(counts), config.row_size), dtype=np.float32)
    start = 0
    for image, count in zip(images, counts, strict=True):
        _fill_patches(rows[start : start + count], image, config)
        start += count
    return rows


def make_frame_patches(frames: np.ndarray, config: PatchConfig) -> np.ndarray:
    """Cut a clip's seen frames into one float32 array, (patches, row_size).

    `frames` is (frames, height, width, 3) uint8, a multiple of `temporal_patch_size` of them.
    Rows run over time first, then as in a picture; the frames of one temporal patch lie beside
    each other in its rows.
    """
    num_frames, height, width, _ = frames.shape
    moments, rest = divmod(num_frames, config.temporal_patch_size)
    if rest:
        raise InputError(
            f"The clip has {num_frames} frames; expected a multiple of "
            f"{config.temporal_patch_size}. Repeat the last one."
        )
    count = math.prod(config.grid((width, height)))
    rows = np.empty((moments * count, config.row_size), dtype=np.float32)
    for index, frame in enumerate(frames):
        moment, slot = divmod(index, config.temporal_patch_size)
        piece = rows[moment * count : (moment + 1) * count]
        for channel in range(3):
            _fill_channel(piece, frame[..., channel], channel, config, slice(slot, slot + 1))
    return rows


def _fill_patches(rows: np.ndarray, image: Image.Image, config: PatchConfig) -> None:
    """Write a still picture's patches into `rows` (patches, row_size), at every moment."""

    def fill(channel: int) -> None:
        _fill_channel(rows, np.asarray(image.getchannel(channel)), channel, config)

    _each_channel(fill, large=math.prod(image.size) >= LARGE_PIXELS)


def _fill_channel(
    rows: np.ndarray,
    plane: np.ndarray,
    channel: int,
    config: PatchConfig,
    times: slice = slice(None),
) -> None:
    """Write one channel (height, width) uint8 of a picture into `rows` (patches, row_size).

    `times` says which of the `temporal_patch_size` slots it fills; a still picture fills all.
    """
    patch, merge = config.patch_size, config.merge_size
    height, width = plane.shape
    rows_of_blocks, blocks_per_row = height // config.factor, width // config.factor
    # A patch's row of pixels is one element, which numpy moves at once.
    blocks = np.ascontiguousarray(plane).view(f"V{patch}")  # (height, width/patch)
    blocks = blocks.reshape(rows_of_blocks, merge, patch, blocks_per_row, merge)
    blocks = blocks.transpose(0, 3, 1, 4, 2)  # (rows, columns, merge, merge, y)
    slots = rows.reshape(rows_of_blocks, -1, 3, config.temporal_patch_size, patch**2)
    std = config.image_std[channel]
    scale, shift = np.float32(1 / 255 / std), np.float32(-config.image_mean[channel] / std)
    for block_row, slot_row in zip(blocks, slots, strict=True):  # row by row: no large copies
        values = np.ascontiguousarray(block_row).view(np.uint8).astype(np.float32)
        values *= scale
        values += shift
        slot_row[:, channel, times] = values.reshape(-1, 1, patch**2)


def _each_channel(work: Callable[[int], Made], *, large: bool) -> list[Made]:
    """Do the work for red, green and blue, on three threads when it is large.

    Pillow and numpy let other threads run meanwhile.
    """
    if not large:
        return [work(channel) for channel in range(3)]
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(work, range(3)))
