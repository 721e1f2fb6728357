"""A clip's rows, size and frame numbers against the published code.

transformers' video processor needs torchvision, which is not here; its `patchify` needs only torch
and is run as it stands in the installed file. Sampling and size are compared with the formulas of
qwen-vl-utils 0.0.14, written out below from their definition with torch.
"""

import ast
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qianyan.inputs.frames import VideoConfig, VideoLimits, VideoRequest, fit_frames
from qianyan.inputs.patches import PatchConfig, make_frame_patches, make_patches
from qianyan.inputs.timeline import Timeline, choose_frames
from qianyan.inputs.video import read_frames

PATCHES = PatchConfig(min_pixels=3136, max_pixels=12_845_056)
QWEN2_5 = VideoConfig(patches=PATCHES, total_tokens=24_576)
LIMITS = VideoLimits(max_duration_s=1e9)
FACTOR = 28

Patchify = Callable[..., tuple[torch.Tensor, int, int, int]]


@pytest.fixture(scope="module")
def official_patchify() -> Patchify:
    """The method of transformers' Qwen2VLVideoProcessor, compiled from its source file."""
    package = importlib.util.find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "models/qwen2_vl/video_processing_qwen2_vl.py"
    found = [
        node
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == "patchify"
    ]
    names: dict[str, object] = {"torch": torch}
    exec(compile(ast.Module(found, []), str(path), "exec"), names)  # noqa: S102
    method = names["patchify"]

    def patchify(videos: torch.Tensor) -> tuple[torch.Tensor, int, int, int]:
        return method(  # type: ignore[operator, no-any-return]
            None, videos, patch_size=14, merge_size=2, temporal_patch_size=2
        )

    return patchify


def clip(num_frames: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(num_frames * height + width)
    return rng.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def normalised(frames: np.ndarray) -> torch.Tensor:
    """(1, frames, channel, height, width) float32 as published: scaled, mean off, by std."""
    mean = torch.tensor(PATCHES.image_mean).view(3, 1, 1)
    std = torch.tensor(PATCHES.image_std).view(3, 1, 1)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    return ((pixels - mean) / std)[None]


@pytest.mark.parametrize(
    ("num_frames", "height", "width"),
    [(2, 28, 28), (4, 56, 84), (6, 84, 56), (10, 140, 252), (32, 28, 196), (3, 56, 56)],
)
def test_rows_of_sampled_frames_equal_the_official_ones(
    official_patchify: Patchify, num_frames: int, height: int, width: int
) -> None:
    frames = clip(num_frames, height, width)
    expected, *grid = official_patchify(normalised(frames))
    if num_frames % 2:
        frames = np.concatenate([frames, frames[-1:]])
    rows = make_frame_patches(frames, PATCHES)
    assert PATCHES.video_grid(len(frames), (width, height)) == tuple(grid)
    assert PATCHES.num_tokens((grid[0], grid[1], grid[2])) * 4 == len(rows)
    assert rows.dtype == np.float32
    assert np.abs(rows - expected[0].numpy()).max() <= 1e-5


def test_a_list_with_an_odd_number_of_pictures_gives_the_official_rows(
    official_patchify: Patchify,
) -> None:
    frames = clip(5, 336, 392)
    pictures = [Image.fromarray(frame) for frame in frames]
    seen = read_frames(pictures, VideoRequest(), QWEN2_5)
    assert seen.record.seen_wh == (392, 336)
    expected, *_ = official_patchify(normalised(frames))
    rows = make_frame_patches(seen.frames, PATCHES)
    assert np.abs(rows - expected[0].numpy()).max() <= 1e-5


def test_a_still_video_has_the_rows_of_the_still_picture_again_and_again() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    picture = Image.fromarray(clip(1, 150, 230)[0])
    process = Qwen2VLImageProcessorPil(min_pixels=QWEN2_5.min_pixels, max_pixels=QWEN2_5.max_pixels)
    done = process(picture, return_tensors="np")
    seen = read_frames([picture] * 6, VideoRequest(), QWEN2_5)
    rows = make_frame_patches(seen.frames, PATCHES).reshape(3, -1, PATCHES.row_size)
    grid = done["image_grid_thw"][0].tolist()
    assert list(PATCHES.video_grid(6, seen.record.seen_wh)) == [3, *grid[1:]]
    for moment in rows:
        assert np.abs(moment - done["pixel_values"]).max() <= 1e-5


def test_a_frame_twice_is_the_picture() -> None:
    frame = clip(1, 84, 112)
    rows = make_frame_patches(np.repeat(frame, 2, axis=0), PATCHES)
    assert np.array_equal(rows, make_patches([Image.fromarray(frame[0])], PATCHES))


def official_indices(total: int, fps: float, asked: dict[str, float]) -> list[int]:
    """The formula of qwen-vl-utils: calculate_video_frame_range, smart_nframes, linspace."""
    first, last = 0, total - 1
    if "video_start" in asked:
        first = math.ceil(min(asked["video_start"], total / fps) * fps)
    if "video_end" in asked:
        last = min(math.floor(min(asked["video_end"], total / fps) * fps), total - 1)
    count = last - first + 1
    if "nframes" in asked:
        num_frames = round(asked["nframes"] / 2) * 2
    else:
        least = math.ceil(asked.get("min_frames", 4) / 2) * 2
        most = math.floor(asked.get("max_frames", min(768, count)) / 2) * 2
        wanted = count / fps * asked.get("fps", 2.0)
        num_frames = math.floor(min(max(wanted, least), most, count) / 2) * 2
    return torch.linspace(first, last, num_frames).round().long().tolist()


@pytest.mark.parametrize("fps", [5.0, 12.5, 24.0, 25.0, 30_000 / 1001, 30.0, 60.0])
@pytest.mark.parametrize("total", [2, 3, 5, 24, 97, 300, 301, 1000, 1999])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"fps": 1.0},
        {"fps": 7.5},
        {"nframes": 2},
        {"max_frames": 11},
        {"min_frames": 9},
        {"min_frames": 2, "max_frames": 3, "fps": 0.3},
    ],
    ids=str,
)
def test_frame_numbers_are_those_of_qwen_vl_utils(
    total: int, fps: float, asked: dict[str, float]
) -> None:
    timeline = Timeline.counted(total, fps)
    choice = choose_frames(timeline, VideoRequest(**asked), QWEN2_5, LIMITS)  # type: ignore[arg-type]
    assert list(choice.indices) == official_indices(total, fps, asked)
    assert choice.fps == pytest.approx(len(choice.indices) / total * fps)


@pytest.mark.parametrize(
    "asked",
    [
        {"video_start": 1.0},
        {"video_end": 7.3},
        {"video_start": 2.02, "video_end": 9.99},
        {"video_start": 3.0, "video_end": 500.0, "fps": 4.0},
    ],
    ids=str,
)
def test_a_stretch_of_a_video_has_the_frames_of_qwen_vl_utils(asked: dict[str, float]) -> None:
    timeline = Timeline.counted(317, 25.0)
    choice = choose_frames(timeline, VideoRequest(**asked), QWEN2_5, LIMITS)  # type: ignore[arg-type]
    assert list(choice.indices) == official_indices(317, 25.0, asked)


def test_in_long_videos_float32_is_off_by_one_frame_at_most() -> None:
    """What the published code does with 25 minutes depends on the processor's vector width."""
    timeline = Timeline.counted(37_500, 25.0)
    ours = np.array(choose_frames(timeline, VideoRequest(), QWEN2_5, LIMITS).indices)
    theirs = np.array(official_indices(37_500, 25.0, {}))
    assert len(ours) == len(theirs) == 768
    assert np.abs(ours - theirs).max() <= 1
    assert (ours == theirs).mean() > 0.95
    assert np.array_equal(ours, np.linspace(0, 37_499, 768).round().astype(int))


def official_size(width: int, height: int, num_frames: int, total_pixels: float) -> tuple[int, int]:
    """The size of qwen-vl-utils, (width, height)."""
    least = 128 * FACTOR**2
    most = max(min(768 * FACTOR**2, total_pixels / num_frames * 2), int(least * 1.05))
    new_height = max(FACTOR, round(height / FACTOR) * FACTOR)
    new_width = max(FACTOR, round(width / FACTOR) * FACTOR)
    if new_height * new_width > most:
        shrink = math.sqrt(height * width / most)
        new_height = max(FACTOR, math.floor(height / shrink / FACTOR) * FACTOR)
        new_width = max(FACTOR, math.floor(width / shrink / FACTOR) * FACTOR)
    elif new_height * new_width < least:
        grow = math.sqrt(least / (height * width))
        new_height = math.ceil(height * grow / FACTOR) * FACTOR
        new_width = math.ceil(width * grow / FACTOR) * FACTOR
    return new_width, new_height


@pytest.mark.parametrize("size", [(1920, 1080), (1080, 1920), (640, 360), (318, 240), (64, 48)])
@pytest.mark.parametrize("num_frames", [2, 16, 60, 100, 180])
def test_where_the_least_area_fits_the_size_is_that_of_qwen_vl_utils(
    size: tuple[int, int], num_frames: int
) -> None:
    total = QWEN2_5.total_pixels
    assert total / num_frames * 2 > 1.05 * 128 * FACTOR**2
    seen_wh, notes = fit_frames(size, num_frames, VideoRequest(), QWEN2_5)
    assert seen_wh == official_size(*size, num_frames, total)
    assert notes == ()


def test_at_768_frames_the_cap_holds_where_qwen_vl_utils_exceeds_it() -> None:
    seen_wh, _ = fit_frames((1920, 1080), 768, VideoRequest(), QWEN2_5)
    theirs = official_size(1920, 1080, 768, QWEN2_5.total_pixels)
    assert PATCHES.num_tokens(PATCHES.video_grid(768, seen_wh)) <= 24_576
    assert PATCHES.num_tokens(PATCHES.video_grid(768, theirs)) > 24_576
