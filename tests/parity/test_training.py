"""The whole way: three small stages, export, transformers computes what we do, an evaluation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qianyan.cli import run
from qianyan.inputs.processor import Processor
from qianyan.inspection.lessons import find_teacher
from qianyan.models.attention import NoCache
from qianyan.models.registry import load_model
from qianyan.train.recipe import Dataset, Rates, Recipe, Stage
from qianyan.train.training import Places, Training

ARCHITECTURES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
}


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    images, annotations = [], []
    for number in range(4):
        name = f"{number}.png"
        Image.new("RGB", (84, 56), (60 * number, 100, 50)).save(folder / name)
        images.append({"id": number, "file_name": name, "width": 84, "height": 56})
        annotations.append({"image_id": number, "category_id": 1, "bbox": [10 * number, 5, 20, 30]})
    content = {
        "categories": [{"id": 1, "name": "fire"}, {"id": 2, "name": "smoke"}],
        "images": images,
        "annotations": annotations,
    }
    (folder / "labels.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "labels.json"


@pytest.mark.parametrize("generation", list(ARCHITECTURES))
def test_three_stages_and_transformers_agree(
    make_checkpoint: Callable[..., Path],
    load_oracle: Callable[[Path], Any],
    labels: Path,
    tmp_path: Path,
    generation: str,
) -> None:
    source = make_checkpoint(f"trained-{generation}", generation=generation)
    stages = (
        Stage(name="tower", train=("vision", "merger"), steps=2, loss="text", batch=2,
              max_tokens=4096, rates=Rates(language=1e-2)),
        Stage(name="all", train=("vision", "merger", "language", "embeddings"), steps=2, batch=2,
              max_tokens=4096, rates=Rates(language=1e-2), average=0.5),
        Stage(name="answers", train=("language",), steps=3, batch=2, max_tokens=4096,
              packing=False, rates=Rates(language=1e-2)),
    )  # fmt: skip
    where = Places(source=source, run_dir=tmp_path / "run", out=tmp_path / "model")
    Training(
        Recipe(stages=stages, data=(Dataset(path=labels, lang="en"),), precision="float32"),
        where,
        teacher=lambda lang: find_teacher(ARCHITECTURES[generation], lang=lang),
    ).run()

    inputs = Processor.from_folder(where.out)(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": labels.parent / "1.png"},
                    {"type": "text", "text": "fire?"},
                ],
            }
        ]
    )
    ids = torch.tensor(inputs.prompt_token_ids)
    pixels = torch.from_numpy(inputs.pixel_values)
    oracle = load_oracle(where.out)
    model, before = (load_model(folder, dtype="float32") for folder in (where.out, source))
    image_id = oracle.config.image_token_id
    with torch.no_grad():
        expected = oracle(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            pixel_values=pixels,
            image_grid_thw=torch.tensor(inputs.grid_thw),
            mm_token_type_ids=(ids == image_id).long()[None],
        ).logits[0]
        ours, untrained = (
            one(
                one.embed(ids, one.encode_images(pixels, inputs.grid_thw)),
                one.place(inputs.prompt_token_ids, inputs.grid_thw).prompt,
                NoCache([len(ids)]),
            )
            for one in (model, before)
        )
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert (ours - untrained).abs().max() > 0.01

    report = tmp_path / "eval"
    options = ["--model", str(where.out), "--out", str(report), "--max-objects", "1"]
    assert run(["eval", "--gt", str(labels), *options]) in {0, 4}
    record = json.loads((report / "eval.json").read_text("utf-8"))
    assert len(record["pictures"]) == 4
    assert (report / "eval.html").stat().st_size > 0
