"""The Talker's config and checkpoint: official sizes, what is refused, a cache that grows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qianyan.errors import CheckpointError, ConfigError
from qianyan.models.attention import NoCache
from qianyan.models.omni.sequence import FIRST_ROOM, SequenceCache
from qianyan.models.omni.talker import Talker, load_talker, talker_config
from qianyan.models.registry import unfilled
from qianyan.models.weights import initialise

# thinker width, hidden, intermediate, layers, heads, kv heads, head_dim, sections
SIZES = {
    "Qwen2.5-Omni-3B": (2048, 896, 4864, 24, 14, 2, 64, [16, 16, 0]),
    "Qwen2.5-Omni-7B": (3584, 896, 18944, 24, 12, 4, 128, [16, 24, 24]),
}


def official(name: str) -> dict[str, Any]:
    """The config.json of a size, cut to what is read of it."""
    width, hidden, inter, layers, heads, kv, head_dim, sections = SIZES[name]
    return {
        "model_type": "qwen2_5_omni",
        "thinker_config": {"text_config": {"hidden_size": width}},
        "talker_config": {
            "model_type": "qwen2_5_omni_talker",
            "audio_token_index": 151646,
            "embedding_size": width,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": inter,
            "max_position_embeddings": 32768,
            "max_window_layers": layers,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv,
            "rms_norm_eps": 1e-6,
            "rope_scaling": {"mrope_section": sections, "rope_type": "default", "type": "default"},
            "rope_theta": 1e6,
            "sliding_window": 32768,
            "tts_codec_end_token_id": 8294,
            "tts_codec_mask_token_id": 8296,
            "tts_codec_pad_token_id": 8292,
            "tts_codec_start_token_id": 8293,
            "tts_text_end_token_id": 151861,
            "tts_text_pad_token_id": 151859,
            "tts_text_start_token_id": 151860,
            "use_sliding_window": False,
            "vocab_size": 8448,
        },
    }


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    width, hidden, inter, layers, heads, kv, head_dim, _ = SIZES[name]
    out: dict[str, tuple[int, ...]] = {
        "thinker_to_talker_proj.weight": (hidden, width),
        "thinker_to_talker_proj.bias": (hidden,),
        "model.embed_tokens.weight": (8448, width),
        "model.norm.weight": (hidden,),
        "codec_head.weight": (8448, hidden),
    }
    for index in range(layers):
        layer = f"model.layers.{index}"
        for part, count in (("q", heads), ("k", kv), ("v", kv)):
            out[f"{layer}.self_attn.{part}_proj.weight"] = (count * head_dim, hidden)
            out[f"{layer}.self_attn.{part}_proj.bias"] = (count * head_dim,)
        out[f"{layer}.self_attn.o_proj.weight"] = (hidden, heads * head_dim)
        out[f"{layer}.mlp.gate_proj.weight"] = (inter, hidden)
        out[f"{layer}.mlp.up_proj.weight"] = (inter, hidden)
        out[f"{layer}.mlp.down_proj.weight"] = (hidden, inter)
        out[f"{layer}.input_layernorm.weight"] = (hidden,)
        out[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    return out


@pytest.mark.parametrize("name", SIZES)
def test_official_sizes_build_with_the_checkpoints_names_and_shapes(name: str) -> None:
    with unfilled():
        talker = Talker(talker_config(official(name)))
    got = {name: tuple(parameter.shape) for name, parameter in talker.named_parameters()}
    assert got == shapes(name)
    assert not list(talker.buffers())
    assert talker.config.stop_ids == {8292, 8294}


def small() -> dict[str, Any]:
    data = official("Qwen2.5-Omni-7B")
    data["thinker_config"]["text_config"]["hidden_size"] = 32
    data["talker_config"] |= {
        "embedding_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rope_scaling": {"mrope_section": [2, 3, 3], "type": "mrope"},
        "vocab_size": 8300,
    }
    return data


@pytest.fixture
def talker() -> Talker:
    torch.manual_seed(0)
    made = Talker(talker_config(small()))
    initialise(made, std=0.2)
    return made.eval()


@torch.inference_mode()
def test_step_by_step_is_the_same_as_all_at_once(talker: Talker) -> None:
    """Also where the cache's memory has to grow, and after a piece that is longer than it."""
    length = 3 * FIRST_ROOM
    inputs = torch.randn(length, 32)
    positions = torch.arange(length).expand(3, -1)
    expected = talker(inputs, positions, NoCache([length]))
    cache = SequenceCache()
    got, start = [], 0
    for step in (5, *[1] * 20, FIRST_ROOM, *[1] * 9, 2 * FIRST_ROOM - 34):
        stop = start + step
        got.append(talker(inputs[start:stop], positions[:, start:stop], cache))
        start = stop
    assert start == length
    torch.testing.assert_close(torch.cat(got), expected, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_gives_the_talker_alone(talker: Talker, tmp_path: Path) -> None:
    tensors = {f"talker.{name}": value for name, value in talker.state_dict().items()}
    others = {"thinker.lm_head.weight": torch.zeros(2), "token2wav.x": torch.zeros(3)}
    save_file(tensors | others, tmp_path / "model.safetensors")
    how: dict[str, Any] = {"dtype": torch.bfloat16, "device": torch.device("cpu")}
    loaded = load_talker(tmp_path, talker.config, **how)
    for name, value in talker.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16())
    del tensors["talker.codec_head.weight"]
    save_file(tensors | others, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(codec_head.weight\)"):
        load_talker(tmp_path, talker.config, **how)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 8294}, "tts_codec_end_token_id is 8294; expected an id below the Talker's"),
        ({"embedding_size": 16}, "embedding_size is 16; expected the Thinker's hidden_size, 32"),
        ({"embedding_size": 0.5}, "embedding_size is '0.5'; expected an integer"),
        ({"rope_scaling": None}, "talker_config has no mrope_section"),
        ({"tts_text_end_token_id": -1}, "tts_text_end_token_id is -1; expected the id of a token"),
        ({"tts_codec_pad_token_id": "x"}, "tts_codec_pad_token_id is x; expected the id"),
        ({"num_hidden_layers": None}, "has no num_hidden_layers"),
    ],
)
def test_impossible_configs_get_a_sentence(change: dict[str, Any], words: str) -> None:
    data = small()
    data["talker_config"].update(change)
    with pytest.raises(ConfigError, match=words):
        talker_config(data)


def test_a_model_without_a_talker_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no talker_config"):
        talker_config({"model_type": "qwen2_5_omni"})
