import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qianyan.errors import CheckpointError, ConfigError
from qianyan.models.registry import build_model, load_model, qwen2_5_vl_config, read_config
from qianyan.models.weights import save_checkpoint

Change = Callable[[dict[str, Any]], None]


def hub_config(size: str) -> dict[str, Any]:
    """The released config.json of one size, in its own words and with its own omissions."""
    sizes = {
        "3B": {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        "7B": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
        "72B": {
            "hidden_size": 8192,
            "intermediate_size": 29568,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
    }
    vision: dict[str, dict[str, Any]] = {
        "3B": {"out_hidden_size": 2048},  # no intermediate_size
        "7B": {},  # neither intermediate_size nor out_hidden_size
        "72B": {"intermediate_size": 3456, "out_hidden_size": 8192},
    }
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "model_type": "qwen2_5_vl",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "num_heads": 16,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
            **vision[size],
        },
        **sizes[size],
    }


def expected_shapes(
    *, hidden: int, inter: int, layers: int, kv: int, vocab: int, vision_inter: int
) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a released checkpoint, written out one by one."""
    table: dict[str, tuple[int, ...]] = {
        "visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
        "visual.merger.ln_q.weight": (1280,),
        "visual.merger.mlp.0.weight": (5120, 5120),
        "visual.merger.mlp.0.bias": (5120,),
        "visual.merger.mlp.2.weight": (hidden, 5120),
        "visual.merger.mlp.2.bias": (hidden,),
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(32):
        block = f"visual.blocks.{i}"
        table |= {
            f"{block}.norm1.weight": (1280,),
            f"{block}.norm2.weight": (1280,),
            f"{block}.attn.qkv.weight": (3840, 1280),
            f"{block}.attn.qkv.bias": (3840,),
            f"{block}.attn.proj.weight": (1280, 1280),
            f"{block}.attn.proj.bias": (1280,),
            f"{block}.mlp.gate_proj.weight": (vision_inter, 1280),
            f"{block}.mlp.gate_proj.bias": (vision_inter,),
            f"{block}.mlp.up_proj.weight": (vision_inter, 1280),
            f"{block}.mlp.up_proj.bias": (vision_inter,),
            f"{block}.mlp.down_proj.weight": (1280, vision_inter),
            f"{block}.mlp.down_proj.bias": (1280,),
        }
    for i in range(layers):
        layer = f"model.layers.{i}"
        table |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{layer}.self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}.self_attn.q_proj.bias": (hidden,),
            f"{layer}.self_attn.k_proj.weight": (128 * kv, hidden),
            f"{layer}.self_attn.k_proj.bias": (128 * kv,),
            f"{layer}.self_attn.v_proj.weight": (128 * kv, hidden),
            f"{layer}.self_attn.v_proj.bias": (128 * kv,),
            f"{layer}.self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}.mlp.gate_proj.weight": (inter, hidden),
            f"{layer}.mlp.up_proj.weight": (inter, hidden),
            f"{layer}.mlp.down_proj.weight": (hidden, inter),
        }
    return table


SHAPES = {
    "3B": {"hidden": 2048, "inter": 11008, "layers": 36, "kv": 2, "vocab": 151936},
    "7B": {"hidden": 3584, "inter": 18944, "layers": 28, "kv": 4, "vocab": 152064},
    "72B": {"hidden": 8192, "inter": 29568, "layers": 80, "kv": 8, "vocab": 152064},
}


@pytest.mark.parametrize("size", ["3B", "7B", "72B"])
def test_official_configs_build_with_the_released_names_and_shapes(size: str) -> None:
    with torch.device("meta"):
        model = build_model(qwen2_5_vl_config(hub_config(size)))
    expected = expected_shapes(**SHAPES[size], vision_inter=3456 if size == "72B" else 3420)
    if size != "3B":  # the only tied one: its file holds no output matrix
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    got = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert got == expected
    assert not list(model.buffers())
    assert all(parameter.is_meta for parameter in model.parameters())


def test_the_7b_tower_has_its_published_size() -> None:
    with torch.device("meta"):
        model = build_model(qwen2_5_vl_config(hub_config("7B")))
    assert round(sum(p.numel() for p in model.visual.parameters()) / 1e6, 1) == 676.6


def to_nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Rewrite a flat config.json object as newer tools save it."""
    outer = {"model_type", "vision_config", "tie_word_embeddings"}
    outer |= {name for name in flat if name.endswith("_token_id")}
    text = {name: value for name, value in flat.items() if name not in outer}
    theta, rope = text.pop("rope_theta"), dict(text.pop("rope_scaling"))
    kind = rope.pop("type")
    rope |= {"rope_type": "default" if kind == "mrope" else kind, "rope_theta": theta}
    vision = dict(flat["vision_config"])
    vision["in_channels"], vision["patch_size"] = vision.pop("in_chans"), 14
    vision.pop("spatial_patch_size")
    vision["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "axial"}
    return {
        **{name: flat[name] for name in outer},
        "text_config": {**text, "rope_parameters": rope, "model_type": "qwen2_5_vl_text"},
        "vision_config": vision,
    }


@pytest.mark.parametrize("size", ["3B", "7B", "72B"])
def test_flat_and_nested_configs_are_read_alike(size: str) -> None:
    flat = hub_config(size)
    assert qwen2_5_vl_config(to_nested(flat)) == qwen2_5_vl_config(flat)


def test_yarn_is_read_from_either_form(tiny_config: dict[str, Any]) -> None:
    tiny_config["rope_scaling"] = {
        "type": "yarn",
        "mrope_section": [2, 3, 3],
        "factor": 4,
        "original_max_position_embeddings": 32768,
    }
    config = qwen2_5_vl_config(tiny_config)
    assert config == qwen2_5_vl_config(to_nested(tiny_config))
    assert config.text.rope_scaling.rope_type == "yarn"
    assert config.text.rope_scaling.factor == 4


def test_configs_hash_and_stay_as_they_are(tiny_config: dict[str, Any]) -> None:
    config = qwen2_5_vl_config(tiny_config)
    assert len({config, qwen2_5_vl_config(tiny_config)}) == 1
    with pytest.raises(AttributeError):
        config.text.hidden_size = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.pop("rope_theta"), "config.json has no rope_theta; TextConfig needs them"),
        (lambda c: c.pop("vision_config"), "vision_config has no hidden_size, tokens_per_second"),
        (
            lambda c: c.update(vision_config=[1]),
            r"vision_config is '\[1\]'; expected a JSON object",
        ),
        (lambda c: c.pop("rope_scaling"), "rope_scaling has no mrope_section"),
        (lambda c: c.pop("image_token_id"), "config.json has no image_token_id"),
        (lambda c: c.update(image_token_id=64), "image_token_id is 64; expected an id below"),
        (lambda c: c.update(hidden_size="32"), "hidden_size is '32'; expected an integer"),
        (lambda c: c.update(num_hidden_layers=10**9), "is 1000000000; expected at most 1000"),
        (lambda c: c.update(num_hidden_layers=0), "num_hidden_layers is '0'; expected an integer"),
        (lambda c: c.update(rms_norm_eps=-1), "rms_norm_eps is '-1'; expected a number above 0"),
        (lambda c: c.update(num_attention_heads=3), "expected a multiple of num_attention_heads"),
        (lambda c: c.update(num_key_value_heads=3), "num_attention_heads is 2; .* num_key_value"),
        (lambda c: c.update(hidden_act="gelu"), "hidden_act is 'gelu'; expected 'silu'"),
        (lambda c: c.update(tie_word_embeddings="no"), "tie_word_embeddings is 'no'; expected"),
        (lambda c: c.update(use_sliding_window=True), "sliding_window is 'None'; expected an int"),
        (lambda c: c.update(use_sliding_window=1), "use_sliding_window is '1'; expected true or"),
        (lambda c: c.update(layer_types=["sliding_attention"]), "layer_types does not agree"),
        (lambda c: c.update(attention_bias=False), "attention_bias is 'False'; expected true"),
        (lambda c: c["rope_scaling"].update(mrope_section=[2, 3, 4]), "expected a sum of 8, half"),
        (lambda c: c["rope_scaling"].update(type="longrope"), "rope_type is 'longrope'"),
        (lambda c: c["rope_scaling"].update(mscale=2), "rope_scaling has mscale; expected only"),
        (lambda c: c["vision_config"].update(num_heads=3), "hidden_size is 16; expected a multip"),
        (lambda c: c["vision_config"].update(num_heads=8), "vision head_dim is 2 .* multiple of 4"),
        (lambda c: c["vision_config"].update(window_size=50), "window_size is 50; .* of 28"),
        (lambda c: c["vision_config"].update(out_hidden_size=8), "expected the text hidden_size"),
        (lambda c: c["vision_config"].update(fullatt_block_indexes=[2]), "below the depth 2"),
        (lambda c: c["vision_config"].update(fullatt_block_indexes=1), "below the depth 2"),
        (
            lambda c: c["vision_config"].update(rope_parameters={"rope_theta": 500.0}),
            "vision rope_theta is 500.0; expected 10000",
        ),
    ],
)
def test_impossible_configs_get_a_sentence(
    tiny_config: dict[str, Any], change: Change, sentence: str
) -> None:
    change(tiny_config)
    with pytest.raises(ConfigError, match=sentence):
        qwen2_5_vl_config(tiny_config)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "has no config.json; expected a checkpoint folder"),
        ("{", "is not JSON"),
        ("[]", "holds no JSON object"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("{}", "model_type is 'None'; expected one of qwen, "),
        ('{"model_type": "llama"}', "model_type is 'llama'; expected one of qwen, "),
    ],
)
def test_unusable_config_files_get_a_sentence(
    tmp_path: Path, text: str | None, sentence: str
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_config(tmp_path)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_model: Any, tiny_config: dict[str, Any]) -> Path:
    """The tiny model as a folder, bfloat16."""
    save_checkpoint(tiny_model, tmp_path, dtype=torch.bfloat16)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config))
    return tmp_path


def test_a_folder_loads_in_the_dtype_it_was_saved_in(checkpoint: Path, tiny_model: Any) -> None:
    model = load_model(checkpoint)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training
    expected = tiny_model.lm_head.weight.bfloat16()
    assert torch.equal(model.lm_head.weight, expected)


@pytest.mark.parametrize("dtype", ["float32", torch.float32])
def test_a_folder_loads_in_the_dtype_asked_for(checkpoint: Path, dtype: Any) -> None:
    model = load_model(checkpoint, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_an_unknown_dtype_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="dtype is 'int3'; expected auto, float32, bfloat16"):
        load_model(checkpoint, dtype="int3")


def test_newer_prefixes_are_accepted(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    before = load_model(checkpoint).state_dict()
    newer = {"visual": "model.visual", "model": "model.language_model", "lm_head": "lm_head"}
    tensors = {}
    for name, tensor in load_file(path).items():
        first, rest = name.split(".", 1)
        tensors[f"{newer[first]}.{rest}"] = tensor
    save_file(tensors, path)
    after = load_model(checkpoint).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_tied_model_accepts_a_second_copy_of_its_matrix(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    model = load_model(checkpoint)  # the file was saved untied: lm_head.weight is in it
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_leftovers_on_both_sides_are_named(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.gate.weight"] = tensors.pop("model.layers.0.mlp.gate_proj.weight")
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        load_model(checkpoint)
    assert "1 missing (model.layers.0.mlp.gate_proj.weight)" in str(caught.value)
    assert "1 unexpected (model.layers.0.mlp.gate.weight)" in str(caught.value)


def test_a_checkpoint_of_another_size_is_refused(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    with pytest.raises(CheckpointError, match="6 of another shape"):
        load_model(checkpoint)
