"""What a model is and takes is told from its config, for every architecture, before loading."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qianyan.engine.memory import ModelFacts, describe, total_bytes
from qianyan.engine.pull import pull
from qianyan.errors import CheckpointError, ConfigError
from qianyan.models.registry import load_model

HUB = runpy.run_path(str(Path(__file__).with_name("hub_server.py")))
Repository = HUB["Repository"]
hub, files, shards, own_caches = (HUB[name] for name in ("hub", "files", "shards", "own_caches"))

NAME = "Qwen/Qwen2.5-0.5B-Instruct"


def text_config(model_type: str, **sizes: Any) -> dict[str, Any]:
    return {
        "architectures": ["OfConfig"],
        "model_type": model_type,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
        "vocab_size": 151936,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    } | sizes


QWEN2_5_05B = text_config(
    "qwen2",
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
QWEN2_5_7B = text_config(
    "qwen2",
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152064,
)
QWEN3_30B_A3B = text_config(
    "qwen3_moe",
    hidden_size=2048,
    intermediate_size=6144,
    moe_intermediate_size=768,
    num_experts=128,
    num_experts_per_tok=8,
    norm_topk_prob=True,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
)
QWEN2_VL_2B = text_config(
    "qwen2_vl",
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    tie_word_embeddings=True,
    rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
    vision_config={"hidden_size": 1536, "in_chans": 3, "spatial_patch_size": 14},
    image_token_id=151655,
    video_token_id=151656,
    vision_start_token_id=151652,
)
QWEN2_5_VL_3B = QWEN2_VL_2B | {
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "vision_config": {
        "depth": 32,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_size": 1280,
        "in_chans": 3,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    },
}
QWEN_VL = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "kv_channels": 128,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 8192,
    "no_bias": True,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "seq_length": 2048,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "vocab_size": 151936,
    "visual": {
        "heads": 16,
        "image_size": 448,
        "image_start_id": 151857,
        "layers": 48,
        "mlp_ratio": 4.9231,
        "output_dim": 4096,
        "patch_size": 14,
        "width": 1664,
    },
}


def described(config: dict[str, Any], folder: Path) -> ModelFacts:
    (folder / "config.json").write_text(json.dumps(config))
    return describe(folder)


@pytest.mark.parametrize(
    ("config", "total", "kept"),
    # Totals are of the released safetensors; numbers kept of a token: 2 x layers x heads x dim.
    [
        pytest.param(QWEN2_5_05B, 494_032_768, 2 * 24 * 2 * 64, id="Qwen2.5-0.5B"),
        pytest.param(QWEN2_5_7B, 7_615_616_512, 2 * 28 * 4 * 128, id="Qwen2.5-7B"),
        pytest.param(QWEN3_30B_A3B, 30_532_122_624, 2 * 48 * 4 * 128, id="Qwen3-30B-A3B"),
        pytest.param(QWEN2_VL_2B, 2_208_985_600, 2 * 28 * 2 * 128, id="Qwen2-VL-2B"),
        pytest.param(QWEN2_5_VL_3B, 3_754_622_976, 2 * 36 * 2 * 128, id="Qwen2.5-VL-3B"),
        pytest.param(QWEN_VL, 9_656_935_168, 2 * 32 * 32 * 128, id="Qwen-VL"),
    ],
)
def test_released_sizes_are_told_from_their_configs(
    config: dict[str, Any], total: int, kept: int, tmp_path: Path
) -> None:
    facts = described(config, tmp_path)
    assert sum(facts.num_parameters.values()) == total
    assert facts.weights_bytes["float32"] == 4 * total
    assert facts.weights_bytes["bfloat16"] == 2 * total
    assert facts.kv_bytes_per_token["float32"] == 4 * kept
    assert facts.kv_cache_bytes("bfloat16", 4096) == 2 * kept * 4096
    assert total_bytes(facts, "bfloat16", 4096) == 2 * total + 2 * kept * 4096
    assert total_bytes(facts, "int4", 1) - facts.weights_bytes["int4"] == 2 * kept
    assert facts.max_length == config["max_position_embeddings"]
    assert facts.architecture == config["architectures"][0]
    assert "stored" not in facts.weights_bytes
    assert facts.notes == ("its weights are not on disk, or not all of them",)


def test_a_tower_is_a_part_of_its_own(tmp_path: Path) -> None:
    facts = described(QWEN2_5_VL_3B, tmp_path)
    assert set(facts.num_parameters) == {"text", "vision"}
    assert round(facts.num_parameters["vision"] / 1e6) == 669
    assert round(described(QWEN_VL, tmp_path).num_parameters["vision"] / 1e9, 1) == 1.9
    assert set(described(QWEN2_5_7B, tmp_path).num_parameters) == {"text"}


def test_a_mixture_of_experts_has_few_active_parameters(tmp_path: Path) -> None:
    facts = described(QWEN3_30B_A3B, tmp_path)
    experts = 48 * 128 * 3 * 2048 * 768
    assert facts.num_active_parameters == 30_532_122_624 - experts * 120 // 128
    assert described(QWEN2_5_7B, tmp_path).num_active_parameters is None


def test_quantised_weights_are_smaller_by_what_is_quantised(tmp_path: Path) -> None:
    facts = described(QWEN2_5_7B, tmp_path)
    embedding = 152064 * 3584
    rows = 28 * (3584 * 3 + 512 * 2 + 2 * 18944)  # of the decoder's matrices
    matrices = 28 * (3584 * (3584 * 2 + 512 * 2) + 3 * 3584 * 18944)
    rest = facts.num_parameters["text"] - matrices - embedding  # the output matrix is int8
    output = embedding + 3 * 152064  # a code each; a zero and a scale each row
    assert facts.weights_bytes["int8"] == 2 * rest + output + matrices + 3 * rows
    assert facts.weights_bytes["int4"] == 2 * rest + output + matrices // 2 + matrices // 128 * 3


def test_what_is_stored_is_read_from_the_headers(tiny_checkpoint: Path) -> None:
    facts = describe(tiny_checkpoint)
    model = load_model(tiny_checkpoint)
    held = sum(parameter.nbytes for parameter in model.parameters())
    assert facts.weights_bytes["stored"] == facts.weights_bytes["float32"] == held
    assert facts.kv_bytes_per_token["stored"] == facts.kv_bytes_per_token["float32"]
    assert facts.stored_dtype == "float32"
    assert facts.folder == tiny_checkpoint
    assert facts.notes == ()


def test_a_quantised_checkpoint_says_how(tmp_path: Path) -> None:
    config = QWEN2_5_05B | {
        "torch_dtype": "float16",
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    }
    codes = {"a.qweight": torch.zeros(64, 8, dtype=torch.int32)}
    save_file(codes | {"a.scales": torch.zeros(8, dtype=torch.float16)}, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").rename(tmp_path / "model.safetensors")
    facts = described(config, tmp_path)
    assert facts.quantization == "gptq, 4 bits, groups of 128"
    assert facts.stored_dtype == "float16"
    assert facts.weights_bytes["stored"] == 64 * 8 * 4 + 8 * 2
    assert facts.kv_bytes_per_token["stored"] == facts.kv_bytes_per_token["bfloat16"]
    assert facts.notes == ("int8 and int4 are what quantising the unquantised model would take",)


def test_the_bundled_model_is_described() -> None:
    facts = describe("bundled")
    assert facts.architecture == "Qwen2_5_VLForConditionalGeneration"
    assert round(sum(facts.num_parameters.values()) / 1e6, 1) == 5.0
    assert facts.licence is not None
    assert facts.licence.id == "apache-2.0"


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_of_a_model_on_a_hub_only_the_words_are_fetched(
    hub: Any, files: dict[str, bytes], source: Any, tmp_path: Path
) -> None:
    config = json.dumps(QWEN2_5_05B).encode()
    hub.repositories[NAME] = Repository(files | {"config.json": config})
    facts = describe(NAME, source=source, endpoint=hub.url)
    assert set(hub.sent) == {"config.json", "README.md", "LICENSE"}
    assert sum(facts.num_parameters.values()) == 494_032_768
    weights = [content for name, content in files.items() if name.endswith(".safetensors")]
    assert facts.weights_bytes["stored"] == sum(map(len, weights))
    assert (facts.name, facts.folder) == (NAME, None)
    assert facts.notes == ("not on disk; only its config and licence were fetched",)
    assert facts.licence is not None
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_model_that_was_pulled_is_described_without_asking(
    hub: Any, files: dict[str, bytes]
) -> None:
    config = json.dumps(QWEN2_5_05B).encode()
    hub.repositories[NAME] = Repository(files | {"config.json": config})
    folder = pull(NAME, endpoint=hub.url)
    hub.close()
    facts = describe(NAME)
    assert (facts.name, facts.folder, facts.notes) == (NAME, folder, ())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; expected one of"),
        ({"model_type": None}, "model_type is 'None'; expected one of"),
        ({"hidden_size": -1}, "hidden_size is '-1'; expected an integer"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected at most 1000"),
        ({"hidden_size": 7 * 2**60}, "matrices that cannot exist"),
    ],
)
def test_what_could_not_be_loaded_is_not_described(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        described(QWEN2_5_05B | change, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "\ufeff", '{"model_type": {}}'])
def test_a_broken_config_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"JSON|model_type"):
        describe(tmp_path)


def test_damaged_weights_are_one_sentence(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{"):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
            described(QWEN2_5_05B, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}')
    with pytest.raises(CheckpointError, match="names a weight file outside its folder"):
        describe(tmp_path)


def test_what_is_no_model_is_one_sentence(tmp_path: Path, hub: Any) -> None:
    with pytest.raises(CheckpointError, match="is not a folder; expected a checkpoint folder"):
        describe("nowhere")
    with pytest.raises(ConfigError, match=r"has no config\.json; expected a checkpoint folder"):
        describe(tmp_path)
    with pytest.raises(CheckpointError, match="knows no model"):
        describe(NAME, endpoint=hub.url)


def test_unknown_dtypes_and_lengths_are_one_sentence() -> None:
    facts = describe("bundled")
    with pytest.raises(ConfigError, match="dtype is 'float8'; expected one of float32, bfloat16"):
        total_bytes(facts, "float8", 1)
    with pytest.raises(ConfigError, match="context length is -1; expected no negative number"):
        total_bytes(facts, "bfloat16", -1)
