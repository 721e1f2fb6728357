"""Recipes are read whole or refused; the released models' hold what their papers give."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qianyan.errors import ConfigError
from qianyan.train.recipe import Stage, list_recipes, read_recipe
from qianyan.train.samples import read_sample

STAGE = '[[stages]]\nname = "one"\ntrain = ["language"]\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_start_from_the_recipe(tmp_path: Path) -> None:
    read = read_recipe(write(tmp_path, STAGE + '[[data]]\npath = "photos/a.jsonl"\nweight = 0.5\n'))
    assert read.data[0].path == tmp_path / "photos/a.jsonl"
    assert read.stages[0].train == ("language",)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stags = 1", "'stags' in the recipe of 'site.toml' is no setting; the nearest is stages"),
        (STAGE + "batches = 2", "'batches' in .* is no setting; the nearest is batch"),
        (STAGE + 'batch = "many"', "batch in .* is 'many'; expected a whole number"),
        (STAGE + "batch = 0", "batch is 0; expected at least 1"),
        (STAGE + 'loss = "all"', "loss in .* is 'all'; expected one of answers, text"),
        (STAGE.replace("language", "brain"), "expected one of vision, audio, merger"),
        (STAGE + STAGE, "expected at least one, each with a name of its own"),
        ("stages = []", "The recipe's stages are none"),
        (STAGE + "rates = { langage = 1.0 }", "the nearest is language"),
        ("stages = [", "is not TOML"),
        ("", "has no stages"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_recipe(write(tmp_path, text))


def test_an_unknown_name_lists_the_recipes() -> None:
    with pytest.raises(ConfigError, match="expected a TOML file or one of finetune, lora"):
        read_recipe("qwen9")


def value(stage: Stage, name: str) -> Any:
    found: Any = stage
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", list_recipes())
def test_published_names_are_fields_that_have_values(name: str) -> None:
    for stage in read_recipe(name).stages:
        for field in stage.published:
            assert value(stage, field) is not None


# Qwen-VL (arXiv 2308.12966), table 8: steps, batch, sequence length, highest and lowest rate,
# warm-up and layer decay of its three stages.
QWEN_VL = (
    (50_000, 30_720, 512, 2e-4, 1e-6, 500, 0.95),
    (19_000, 4096, 2048, 5e-5, 1e-5, 400, 0.95),
    (8000, 128, 2048, 1e-5, 1e-6, 3000, 1.0),
)


def test_the_first_generation_is_trained_as_published() -> None:
    stages = read_recipe("qwen-vl").stages
    for stage, numbers in zip(stages, QWEN_VL, strict=True):
        rates = stage.rates
        lowest = pytest.approx(rates.language * rates.floor)
        assert (stage.steps, stage.batch, stage.max_tokens, rates.language) == numbers[:4]
        assert (numbers[4], rates.warmup_steps, rates.layer_decay) == (lowest, *numbers[5:])
        assert (stage.optimizer.betas, stage.optimizer.eps) == ((0.9, 0.98), 1e-6)
        assert (stage.optimizer.weight_decay, stage.optimizer.clip) == (0.05, 1.0)
    assert [set(stage.train) for stage in stages] == [
        {"vision", "merger"},
        {"vision", "merger", "language", "embeddings"},
        {"merger", "language", "embeddings"},
    ]


def test_later_generations_train_the_published_parts_at_the_published_lengths() -> None:
    frozen = {"language", "embeddings"}
    for name, lengths in (
        ("qwen2.5-vl", [8192, 8192, 32_768, 32_768]),
        ("qwen2.5-omni", [8192, 8192, 8192, 32_768]),
    ):
        stages = read_recipe(name).stages
        assert [stage.max_tokens for stage in stages] == lengths
        assert frozen.isdisjoint(stages[0].train)
    assert "vision" not in read_recipe("qwen2-vl").stages[2].train


def test_what_the_documentation_shows_is_read(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs/training.md"
    blocks = re.findall(r"```(toml|json)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    recipes = [read_recipe(write(tmp_path, text)) for form, text in blocks if form == "toml"]
    assert [recipe.model for recipe in recipes if recipe.model] == [
        "path/to/Qwen2.5-VL-3B-Instruct",
        "Qwen/Qwen2.5-Omni-3B",
    ]
    lines = [line for form, text in blocks if form == "json" for line in text.splitlines()]
    kinds = [
        part["type"]
        for line in lines
        for message in read_sample(json.loads(line), source="a", images=tmp_path).messages
        for part in message["content"]
        if isinstance(part, dict) and part["type"] != "text"
    ]
    assert kinds == ["audio_url", "video_url", "audio", "audio"]
