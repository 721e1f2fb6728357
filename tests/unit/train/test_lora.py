"""Low-rank additions: merged is unmerged, on plain layers and on codes; the rest stays."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qianyan.errors import ConfigError
from qianyan.inputs.processor import Processor
from qianyan.models.registry import Model, load_model
from qianyan.models.weights import quantized_layers
from qianyan.train.examples import ExampleMaker
from qianyan.train.lora import add_lora, lora_layers, merged, without_lora
from qianyan.train.packing import Pack, TokenLosses, pack
from qianyan.train.parts import freeze
from qianyan.train.recipe import Dataset, Lora, Preference, Rates, Recipe, Stage
from qianyan.train.samples import JsonLines
from qianyan.train.training import Places, Report, Training

LORA = Lora(rank=4, alpha=8, targets=("q_proj", "down_proj"))
STAGE = Stage(
    name="lora", train=(), lora=LORA, steps=8, batch=2, max_tokens=256,
    rates=Rates(language=2e-2, warmup_share=0.1), save_every=0,
)  # fmt: skip


def packed(model: Model, checkpoint: Path, conversations: Path) -> Pack:
    processor = Processor.from_folder(checkpoint)
    maker = ExampleMaker(model, processor, loss="answers", max_tokens=512)
    source = JsonLines(conversations)
    samples = [source.read(index) for index in range(4)]
    return pack([maker(sample.messages, source=sample.source) for sample in samples])


def shaken(checkpoint: Path, lora: Lora) -> Model:
    """Give a model whose additions do something."""
    model = load_model(checkpoint, dtype="float32")
    add_lora(model, lora, seed=1)
    torch.manual_seed(2)
    for _, layer, _ in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    return model


@pytest.mark.parametrize(
    "lora",
    [
        LORA,
        Lora(rank=2, alpha=8, targets=("all",), parts=("vision", "merger", "language")),
    ],
)
@torch.no_grad()
def test_merged_is_unmerged(checkpoint: Path, conversations: Path, lora: Lora) -> None:
    model = shaken(checkpoint, lora)
    losses = TokenLosses(model, runs_all=False)
    what = packed(model, checkpoint, conversations)
    added = losses(what)
    before = {name: each.clone() for name, each in model.named_parameters()}
    with merged(model):
        torch.testing.assert_close(losses(what), added, rtol=0, atol=1e-4)
    with without_lora(model):
        assert (losses(what) - added).abs().max() > 0.01, "the additions did something"
    assert all(torch.equal(before[name], each) for name, each in model.named_parameters())


def train(recipe: Recipe, checkpoint: Path, tmp_path: Path, name: str = "run") -> Training:
    where = Places(source=checkpoint, run_dir=tmp_path / name, out=tmp_path / f"{name}-model")
    training = Training(recipe, where)
    training.run()
    return training


def lora_recipe(data: Path, stage: Stage = STAGE, **more: object) -> Recipe:
    plain = Recipe(stages=(stage,), data=(Dataset(path=data),), precision="float32")
    return replace(plain, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_the_exported_model_is_the_trained_one(
    checkpoint: Path, conversations: Path, tmp_path: Path, quantize: str | None
) -> None:
    training = train(lora_recipe(conversations, quantize=quantize), checkpoint, tmp_path)
    assert bool(quantized_layers(training.model)) == bool(quantize)
    exported = load_model(training.places.out, dtype="float32")
    what = packed(exported, checkpoint, conversations)
    source = load_model(checkpoint, dtype="float32")
    with torch.no_grad():
        expected, found, before = (
            TokenLosses(model, runs_all=False)(what) for model in (training.model, exported, source)
        )
    # The exported weights are the checkpoint's own, not their codes; both are bfloat16.
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.1)
    assert before.mean() > found.mean() + 0.5


def test_only_the_chosen_layers_change(
    checkpoint: Path, conversations: Path, tmp_path: Path
) -> None:
    training = train(lora_recipe(conversations), checkpoint, tmp_path)
    before = dict(load_model(checkpoint, dtype="float32").named_parameters())
    for name, value in load_model(training.places.out, dtype="float32").named_parameters():
        is_chosen = name.startswith("model.layers") and any(
            name.endswith(f"{target}.weight") for target in LORA.targets
        )
        assert torch.equal(value, before[name]) != is_chosen, name


def test_the_adapter_is_written_as_peft_names_it(
    checkpoint: Path, conversations: Path, tmp_path: Path
) -> None:
    training = train(lora_recipe(conversations), checkpoint, tmp_path)
    folder = training.places.out / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert tensors[name].shape == (4, 64)
    layer = training.model.get_submodule("model.layers.0.self_attn.q_proj")
    assert torch.equal(tensors[name], layer.lora_A)


def test_an_unknown_target_names_those_there_are(checkpoint: Path) -> None:
    model = load_model(checkpoint, dtype="float32")
    with pytest.raises(ConfigError, match="names c_attn; expected some of down_proj"):
        add_lora(model, Lora(targets=("c_attn",)), seed=0)


def test_codes_are_not_trained_themselves(conversations: Path) -> None:
    with pytest.raises(ConfigError, match="weights that are kept in codes"):
        lora_recipe(conversations, replace(STAGE, train=("language",)), quantize="int8")


def test_dropout_is_the_same_after_a_resume(
    checkpoint: Path, conversations: Path, tmp_path: Path
) -> None:
    recipe = lora_recipe(
        conversations, replace(STAGE, lora=replace(LORA, dropout=0.3), save_every=4)
    )
    straight = train(recipe, checkpoint, tmp_path, "straight")
    where = Places(source=checkpoint, run_dir=tmp_path / "cut", out=tmp_path / "cut-model")
    taken: list[Report] = []

    def cut(stage: Stage, report: Report) -> None:
        taken.append(report)
        if len(taken) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Training(recipe, where, on_report=cut).run()
    resumed = Training(recipe, where)
    resumed.run(resume=True)
    expected = dict(straight.model.named_parameters())
    for name, value in resumed.model.named_parameters():
        assert torch.equal(value, expected[name]), name


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Say {word}"},
                {"role": "assistant", "content": word},
            ],
            "rejected": other,
        }
        for word, other in (("red", "green"), ("blue", "red"), ("green", "blue"))
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("lora", [LORA, None])
def test_the_better_answer_gains_on_the_worse_one(
    checkpoint: Path, pairs: Path, tmp_path: Path, lora: Lora | None
) -> None:
    stage = replace(
        STAGE,
        lora=lora,
        train=() if lora else ("language",),
        preference=Preference(beta=0.5),
        rates=Rates(language=1e-2 if lora else 1e-3),
    )
    losses: list[float] = []
    where = Places(source=checkpoint, run_dir=tmp_path / "run", out=tmp_path / "model")
    recipe = lora_recipe(pairs, stage)
    Training(recipe, where, on_report=lambda _, report: losses.append(report.loss)).run()
    assert losses[0] == pytest.approx(0.6931, abs=1e-3), "both models are the same at first"
    assert losses[-1] < 0.5


def test_an_answer_without_a_worse_one_is_no_pair(
    checkpoint: Path, conversations: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = replace(STAGE, preference=Preference())
    with pytest.raises(Exception, match="No sample of the data can be used"):
        train(lora_recipe(conversations, stage), checkpoint, tmp_path)
    assert "is no pair; expected an answer last" in caplog.text


def test_additions_learn_and_nothing_else_is_asked_to(checkpoint: Path) -> None:
    model = load_model(checkpoint, dtype="float32")
    add_lora(model, LORA, seed=0)
    assert all("lora_" in name for name in freeze(model, (), with_lora=True))
    assert not freeze(model, ())
