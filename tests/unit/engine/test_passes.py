"""A model is watched from outside: its passes, its looks, and nothing is left behind."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.engine.passes import PassLog, find_tower
from qianyan.models.qwen import qwen_config
from qianyan.models.registry import build_model

PICTURE = Image.new("RGB", (112, 84), (90, 20, 10))


def question(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "the box"}]}]


def test_every_pass_and_every_look_is_noted(tiny_checkpoint: Path) -> None:
    engine = Engine(tiny_checkpoint)
    with PassLog(engine.model, "cpu") as log:
        done = engine.chat(question({"type": "image", "image": PICTURE}), max_tokens=5)
    assert [look.grids for look in log.looks] == [((1, 6, 8),)]
    assert log.passes[0].num_tokens == done.usage.prompt_tokens
    assert [one.num_tokens for one in log.passes[1:]] == [1] * (done.usage.forwarded_tokens - 1)
    assert all(one.num_rows == 1 for one in log.passes)
    times = [log.looks[0].started, log.looks[0].stopped]
    times += [time for one in log.passes for time in (one.started, one.stopped)]
    assert times == sorted(times)


def test_nothing_is_watched_after_the_end(tiny_checkpoint: Path) -> None:
    engine = Engine(tiny_checkpoint)
    with PassLog(engine.model, "cpu") as log:
        pass
    engine.chat(question({"type": "image", "image": PICTURE}), max_tokens=2)
    assert log.passes == []
    assert log.looks == []


def test_a_model_that_reads_text_only_has_no_tower(tiny_checkpoint: Path) -> None:
    model = Engine(tiny_checkpoint).model
    assert find_tower(model) is not None
    assert find_tower(model.get_submodule("model")) is None


def test_the_first_generation_looks_at_squares() -> None:
    visual = {
        "heads": 2,
        "image_size": 56,
        "image_start_id": 300,
        "layers": 1,
        "mlp_ratio": 2.0,
        "output_dim": 128,
        "patch_size": 14,
        "width": 32,
        "n_queries": 16,
    }
    config = {
        "vocab_size": 320,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "kv_channels": 32,
        "max_position_embeddings": 64,
        "seq_length": 64,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "visual": visual,
    }
    model = build_model(qwen_config(config))
    with PassLog(model, "cpu") as log, torch.inference_mode():
        model.encode_images(torch.zeros(2, 3, 56, 56), [(1, 4, 4)] * 2)
    assert [look.grids for look in log.looks] == [((1, 4, 4),) * 2]
