"""Who learns at which rate, and how rates rise and fall."""

from pathlib import Path

import pytest
import torch

from qianyan.models.registry import build_empty, load_model, read_config
from qianyan.train.parts import freeze, part_of, tower_block
from qianyan.train.rates import make_optimizer, rate_share, set_rates
from qianyan.train.recipe import Rates, Stage


def test_rates_rise_to_the_highest_and_fall_to_the_floor() -> None:
    rates = Rates(warmup_steps=10, floor=0.1)
    shares = [rate_share(rates, step, 110) for step in range(111)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[10] == max(shares) == 1.0
    assert shares[60] == pytest.approx(0.55)
    assert shares[110] == pytest.approx(0.1)
    assert shares[10:] == sorted(shares[10:], reverse=True)


def test_parts_and_blocks_have_rates_of_their_own_and_norms_do_not_decay(checkpoint: Path) -> None:
    model = load_model(checkpoint, dtype="float32")
    freeze(model, ("vision", "merger", "language"))
    rates = Rates(language=1e-4, vision=1e-5, merger=1e-3, layer_decay=0.5)
    stage = Stage(name="a", train=("vision",), rates=rates)
    optimizer = make_optimizer(model.named_parameters(), stage)
    set_rates(optimizer, 1.0)
    found = {
        id(each): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for each in group["params"]
    }
    of = {name: found.get(id(each)) for name, each in model.named_parameters()}
    assert of["visual.blocks.1.attn.proj.weight"] == (1e-5, 0.05)
    assert of["visual.blocks.0.attn.proj.weight"] == (5e-6, 0.05)
    assert of["visual.patch_embed.proj.weight"] == (2.5e-6, 0.05)
    assert of["visual.merger.mlp.0.weight"] == (1e-3, 0.05)
    assert of["visual.merger.mlp.0.bias"] == (1e-3, 0.0)
    assert of["model.layers.0.input_layernorm.weight"] == (1e-4, 0.0)
    assert of["model.embed_tokens.weight"] is None


def test_every_parameter_of_the_first_generation_has_its_part(shared: Path) -> None:
    model = build_empty(read_config(shared / "golden/qwen_vl"))
    names = [name for name, _ in model.named_parameters()]
    by_part = {part: {n for n in names if part_of(n) == part} for part in map(part_of, names)}
    assert by_part["embeddings"] == {"transformer.wte.weight", "lm_head.weight"}
    assert all(".visual." in name for name in by_part["merger"] | by_part["vision"])
    assert "transformer.visual.proj" in by_part["merger"]
    assert "transformer.visual.attn_pool.query" in by_part["merger"]
    assert "transformer.visual.ln_pre.weight" in by_part["vision"]
    assert tower_block("transformer.visual.transformer.resblocks.1.ln_1.weight") == 1


def test_sums_of_a_schedule_need_no_device() -> None:
    optimizer = torch.optim.AdamW([{"params": [torch.zeros(1)], "peak": 2.0}], lr=2.0)
    set_rates(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_each_tower_has_its_own_rate_and_decays_from_its_own_top() -> None:
    """The tower that hears may have more blocks than the one that sees, or no rate of its own."""
    names = (
        "visual.blocks.0.attn.proj.weight",
        "visual.merger.mlp.0.weight",
        "audio_tower.layers.1.fc1.weight",
        "audio_tower.layers.0.fc1.weight",
        "audio_tower.conv1.weight",
        "audio_tower.proj.weight",
    )
    named = [(name, torch.nn.Parameter(torch.zeros(2, 2))) for name in names]
    for own, expected in (
        ({}, (1e-5, 1e-3, 1e-5, 5e-6, 2.5e-6, 1e-3)),
        ({"audio": 4e-5, "projector": 2e-3}, (1e-5, 1e-3, 4e-5, 2e-5, 1e-5, 2e-3)),
    ):
        rates = Rates(language=1e-4, vision=1e-5, merger=1e-3, layer_decay=0.5, **own)
        optimizer = make_optimizer(named, Stage(name="a", train=("audio",), rates=rates))
        peaks = {
            id(each): group["peak"] for group in optimizer.param_groups for each in group["params"]
        }
        assert tuple(peaks[id(each)] for _, each in named) == pytest.approx(expected)
