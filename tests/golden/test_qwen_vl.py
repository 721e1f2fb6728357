"""Our Qwen-VL against what the official code answered, on a small random checkpoint, float32.

The official code runs on old libraries only, so its answers are kept as tensors beside the
checkout: a picture through the tower, prompts with none, one and two pictures, one prompt beyond
the trained length, and eight greedy tokens.
"""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from qianyan.engine.cache import Span, StepCache, Storage
from qianyan.inputs.squares import SquareConfig, make_squares
from qianyan.models.attention import NoCache
from qianyan.models.positions import Grid
from qianyan.models.qwen import QWenLMHeadModel, qwen_config
from qianyan.models.qwen_vl import sine_positions
from qianyan.models.weights import load_weights, read_tensors

assert_golden = partial(assert_close, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    folder = shared / "golden" / "qwen_vl"
    if not folder.is_dir():
        pytest.skip("no golden tensors of Qwen-VL beside this checkout")
    return folder


@pytest.fixture(scope="module")
def expected(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "expected.safetensors")


@pytest.fixture(scope="module")
def model(golden: Path) -> QWenLMHeadModel:
    config = qwen_config(json.loads((golden / "config.json").read_text()))
    with torch.device("meta"):
        model = QWenLMHeadModel(config)
    load_weights(model, read_tensors(golden))
    return model.eval()


@pytest.fixture(scope="module")
def picture(golden: Path) -> tuple[Tensor, Grid]:
    """The picture as our own inputs prepare it, and its grid."""
    squares = SquareConfig.from_json(json.loads((golden / "config.json").read_text())["visual"])
    with Image.open(golden / "p.png") as image:
        rgb = image.convert("RGB")
    seen = rgb.resize(squares.seen_size(*rgb.size), squares.resample)
    return torch.from_numpy(make_squares([seen], squares)), squares.grid(seen.size)


def our_logits(model: QWenLMHeadModel, ids: Tensor, features: Tensor | None, grid: Grid) -> Tensor:
    count = 0 if features is None else int((ids == 300).sum())
    hidden = model.embed(ids, None if features is None else features.repeat(count, 1))
    placed = model.place(ids.tolist(), [grid] * count)
    return model(hidden, placed.prompt, NoCache([len(ids)]))


@torch.inference_mode()
def test_the_picture_gets_the_same_features(
    model: QWenLMHeadModel, expected: dict[str, Tensor], picture: tuple[Tensor, Grid]
) -> None:
    pixel_values, grid = picture
    features = model.encode_images(pixel_values, [grid])
    assert_golden(features, expected["image_features"].flatten(0, 1))


@pytest.mark.parametrize("case", ["text", "image", "two", "long"])
@torch.inference_mode()
def test_prompts_get_the_same_logits(
    model: QWenLMHeadModel,
    expected: dict[str, Tensor],
    picture: tuple[Tensor, Grid],
    case: str,
) -> None:
    pixel_values, grid = picture
    ids = expected[f"{case}_ids"][0]
    features = model.encode_images(pixel_values, [grid]) if case in ("image", "two") else None
    assert_golden(our_logits(model, ids, features, grid), expected[f"{case}_logits"][0])


@torch.inference_mode()
def test_greedy_tokens_are_the_same_one_cached_step_at_a_time(
    model: QWenLMHeadModel, expected: dict[str, Tensor], picture: tuple[Tensor, Grid]
) -> None:
    pixel_values, grid = picture
    ids = expected["image_ids"][0]
    placed = model.place(ids.tolist(), [grid])
    hidden = model.embed(ids, model.encode_images(pixel_values, [grid]))
    storage = Storage(64)
    generated: list[int] = []
    start = 0
    while len(generated) < len(expected["greedy"]):
        stop = start + len(hidden)
        span = Span(slice(start, stop), slice(0, stop), start, 0, len(hidden))
        cache = StepCache(storage, [span], num_rows=storage.num_rows)
        logits = model(hidden, placed.at(start, stop), cache, torch.tensor([len(hidden) - 1]))
        generated.append(int(logits.argmax()))
        hidden = model.embed(torch.tensor(generated[-1:]))
        start = stop
    assert generated == expected["greedy"].tolist()


def test_the_saved_table_of_positions_is_the_formula(model: QWenLMHeadModel) -> None:
    saved = model.transformer.visual.attn_pool.pos_embed
    assert_close(sine_positions(4, 256), saved.data, rtol=0, atol=1e-6)
