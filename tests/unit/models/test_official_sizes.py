"""Every official size builds on the meta device with exactly the checkpoint's names and shapes.

The tables are written from the published config.json files, the shapes from the papers' formulas,
independently of the modules. Qwen2.5-VL's are in test_registry.py, the first generation's in
test_qwen.py.
"""

from typing import Any

import pytest
import torch

from qianyan.models.registry import build_model, find_architecture

Shapes = dict[str, tuple[int, ...]]

# hidden, intermediate, layers, heads, kv heads, tied, vocabulary
QWEN2 = {
    "Qwen2.5-0.5B": (896, 4864, 24, 14, 2, True, 151936),
    "Qwen2.5-1.5B": (1536, 8960, 28, 12, 2, True, 151936),
    "Qwen2.5-3B": (2048, 11008, 36, 16, 2, True, 151936),
    "Qwen2.5-7B": (3584, 18944, 28, 28, 4, False, 152064),
    "Qwen2.5-14B": (5120, 13824, 48, 40, 8, False, 152064),
    "Qwen2.5-32B, QwQ-32B": (5120, 27648, 64, 40, 8, False, 152064),
    "Qwen2.5-72B": (8192, 29568, 80, 64, 8, False, 152064),
}
QWEN3 = {  # the same; heads are 128 wide whatever the hidden size
    "Qwen3-0.6B": (1024, 3072, 28, 16, 8, True, 151936),
    "Qwen3-1.7B": (2048, 6144, 28, 16, 8, True, 151936),
    "Qwen3-4B": (2560, 9728, 36, 32, 8, True, 151936),
    "Qwen3-8B": (4096, 12288, 36, 32, 8, False, 151936),
    "Qwen3-14B": (5120, 17408, 40, 40, 8, False, 151936),
    "Qwen3-32B": (5120, 25600, 64, 64, 8, False, 151936),
}
QWEN3_MOE = {
    "Qwen3-30B-A3B": ((2048, 6144, 48, 32, 4, False, 151936), 768),
    "Qwen3-235B-A22B": ((4096, 12288, 94, 64, 4, False, 151936), 1536),
}
QWEN2_VL = {
    "Qwen2-VL-2B": (1536, 8960, 28, 12, 2, True, 151936),
    "Qwen2-VL-7B": (3584, 18944, 28, 28, 4, False, 152064),
    "Qwen2-VL-72B": (8192, 29568, 80, 64, 8, False, 152064),
}
QWEN2_5_VL_32B = (5120, 27648, 64, 40, 8, False, 152064)
PUBLISHED_PARAMETERS = {  # millions, as the model cards state them, with and without embeddings
    "Qwen2.5-0.5B": 494.0,
    "Qwen2.5-7B": 7615.6,
    "Qwen3-0.6B": 596.0,
    "Qwen3-32B": 32762.1,
    "Qwen3-30B-A3B": 30532.1,
    "Qwen3-235B-A22B": 235093.6,
}


def text_json(model_type: str, size: tuple[Any, ...], **more: Any) -> dict[str, Any]:
    """The flat config.json of a size."""
    hidden, inter, layers, heads, kv, tied, vocab = size
    return {
        "model_type": model_type,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": None,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "sliding_window": 131072,
        "max_window_layers": layers,
        **more,
    }


def decoder_shapes(size: tuple[Any, ...], *, head_dim: int, is_qwen3: bool) -> Shapes:
    """The decoder's tensors, its feed-forwards excepted."""
    hidden, _, layers, heads, kv, tied, vocab = size
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    for index in range(layers):
        layer = f"model.layers.{index}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        for name, width in (("q", heads), ("k", kv), ("v", kv)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (width * head_dim, hidden)
            if not is_qwen3:
                shapes[f"{layer}.self_attn.{name}_proj.bias"] = (width * head_dim,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, heads * head_dim)
        if is_qwen3:
            shapes[f"{layer}.self_attn.q_norm.weight"] = (head_dim,)
            shapes[f"{layer}.self_attn.k_norm.weight"] = (head_dim,)
    return shapes


def mlp_shapes(where: str, hidden: int, inter: int) -> Shapes:
    """One feed-forward's tensors."""
    return {
        f"{where}.gate_proj.weight": (inter, hidden),
        f"{where}.up_proj.weight": (inter, hidden),
        f"{where}.down_proj.weight": (hidden, inter),
    }


def dense_shapes(size: tuple[Any, ...], *, is_qwen3: bool) -> Shapes:
    head_dim = 128 if is_qwen3 else size[0] // size[3]
    shapes = decoder_shapes(size, head_dim=head_dim, is_qwen3=is_qwen3)
    for index in range(size[2]):
        shapes |= mlp_shapes(f"model.layers.{index}.mlp", size[0], size[1])
    return shapes


def assert_builds(data: dict[str, Any], expected: Shapes) -> None:
    """Names and shapes of the built model are those of the file, and it takes no memory."""
    with torch.device("meta"):
        model = build_model(find_architecture(data).read(data))
    got = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert got == expected
    assert not list(model.buffers())
    assert all(parameter.is_meta for parameter in model.parameters())


def in_millions(shapes: Shapes) -> float:
    return sum(torch.Size(shape).numel() for shape in shapes.values()) / 1e6


@pytest.mark.parametrize("name", QWEN2)
def test_qwen2_and_qwen2_5(name: str) -> None:
    expected = dense_shapes(QWEN2[name], is_qwen3=False)
    assert_builds(text_json("qwen2", QWEN2[name]), expected)
    if name in PUBLISHED_PARAMETERS:
        assert in_millions(expected) == pytest.approx(PUBLISHED_PARAMETERS[name], abs=0.1)


@pytest.mark.parametrize("name", QWEN3)
def test_qwen3(name: str) -> None:
    data = text_json("qwen3", QWEN3[name], head_dim=128, attention_bias=False)
    expected = dense_shapes(QWEN3[name], is_qwen3=True)
    assert_builds(data, expected)
    if name in PUBLISHED_PARAMETERS:
        assert in_millions(expected) == pytest.approx(PUBLISHED_PARAMETERS[name], abs=0.1)


@pytest.mark.parametrize("name", QWEN3_MOE)
def test_qwen3_with_experts(name: str) -> None:
    size, width = QWEN3_MOE[name]
    data = text_json(
        "qwen3_moe",
        size,
        head_dim=128,
        attention_bias=False,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=width,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )
    expected = decoder_shapes(size, head_dim=128, is_qwen3=True)
    for index in range(size[2]):
        mlp = f"model.layers.{index}.mlp"
        expected[f"{mlp}.gate.weight"] = (128, size[0])
        for expert in range(128):
            expected |= mlp_shapes(f"{mlp}.experts.{expert}", size[0], width)
    assert_builds(data, expected)
    assert in_millions(expected) == pytest.approx(PUBLISHED_PARAMETERS[name], abs=0.1)


def seeing_json(model_type: str, size: tuple[Any, ...], vision: dict[str, Any]) -> dict[str, Any]:
    """The flat config.json of a size that sees, with the Hub's omissions."""
    return text_json(
        model_type,
        size,
        rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_config={"in_chans": 3, "spatial_patch_size": 14, **vision},
    )


def attention_shapes(block: str) -> Shapes:
    """One block's attention in either tower."""
    return {
        f"{block}.attn.qkv.weight": (3840, 1280),
        f"{block}.attn.qkv.bias": (3840,),
        f"{block}.attn.proj.weight": (1280, 1280),
        f"{block}.attn.proj.bias": (1280,),
    }


def merger_shapes(hidden: int) -> Shapes:
    return {
        "visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
        "visual.merger.mlp.0.weight": (5120, 5120),
        "visual.merger.mlp.0.bias": (5120,),
        "visual.merger.mlp.2.weight": (hidden, 5120),
        "visual.merger.mlp.2.bias": (hidden,),
    }


@pytest.mark.parametrize("name", QWEN2_VL)
def test_qwen2_vl(name: str) -> None:
    size = QWEN2_VL[name]
    tower = merger_shapes(size[0])
    tower |= {"visual.merger.ln_q.weight": (1280,), "visual.merger.ln_q.bias": (1280,)}
    for index in range(32):
        block = f"visual.blocks.{index}"
        tower |= attention_shapes(block)
        for part, shape in (("norm1", (1280,)), ("norm2", (1280,))):
            tower |= {f"{block}.{part}.weight": shape, f"{block}.{part}.bias": shape}
        tower |= {
            f"{block}.mlp.fc1.weight": (5120, 1280),
            f"{block}.mlp.fc1.bias": (5120,),
            f"{block}.mlp.fc2.weight": (1280, 5120),
            f"{block}.mlp.fc2.bias": (1280,),
        }
    data = seeing_json("qwen2_vl", size, {"hidden_size": size[0]})
    assert_builds(data, dense_shapes(size, is_qwen3=False) | tower)
    if name == "Qwen2-VL-7B":  # the paper rounds it to 675 million
        assert in_millions(tower) == pytest.approx(675.8, abs=0.1)


def test_qwen2_5_vl_32b() -> None:
    tower = merger_shapes(5120) | {"visual.merger.ln_q.weight": (1280,)}
    for index in range(32):
        block = f"visual.blocks.{index}"
        tower |= attention_shapes(block)
        tower |= {f"{block}.norm1.weight": (1280,), f"{block}.norm2.weight": (1280,)}
        for name, shape in mlp_shapes(f"{block}.mlp", 1280, 3456).items():
            tower |= {name: shape, name.replace("weight", "bias"): shape[:1]}
    vision = {
        "hidden_size": 1280,
        "out_hidden_size": 5120,
        "intermediate_size": 3456,
        "tokens_per_second": 2,
    }
    data = seeing_json("qwen2_5_vl", QWEN2_5_VL_32B, vision)
    assert_builds(data, dense_shapes(QWEN2_5_VL_32B, is_qwen3=False) | tower)
