"""The Thinker's config and checkpoint: official sizes, what is left unread, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qianyan.errors import CheckpointError, ConfigError, InputError
from qianyan.models.attention import NoCache
from qianyan.models.omni.thinker import Thinker, omni_config
from qianyan.models.registry import (
    build_empty,
    find_architecture,
    load_model,
    quantize_checkpoint,
    read_config,
)
from qianyan.models.weights import initialise, save_checkpoint

# hidden, intermediate, layers, heads, kv heads, vocabulary
SIZES = {
    "Qwen2.5-Omni-3B": (2048, 11008, 36, 16, 2, 151936),
    "Qwen2.5-Omni-7B": (3584, 18944, 28, 28, 4, 152064),
}


def official(name: str) -> dict[str, Any]:
    """The config.json of a size, cut to what is read of it, with what the Hub's leave out."""
    hidden, inter, layers, heads, kv, vocab = SIZES[name]
    return {
        "model_type": "qwen2_5_omni",
        "architectures": ["Qwen2_5OmniModel"],
        "enable_audio_output": True,
        "thinker_config": {
            "model_type": "qwen2_5_omni_thinker",
            "audio_config": {"model_type": "qwen2_5_omni_audio_encoder", "output_dim": hidden},
            "audio_end_token_id": 151648,
            "audio_start_token_id": 151647,
            "audio_token_index": 151646,
            "image_token_index": 151655,
            "video_token_index": 151656,
            "vision_start_token_id": 151652,
            "position_id_per_seconds": 25,
            "seconds_per_chunk": 2,
            "text_config": {
                "vocab_size": vocab,
                "hidden_size": hidden,
                "intermediate_size": inter,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": kv,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1e6,
                "rope_scaling": {
                    "mrope_section": [16, 24, 24],
                    "rope_type": "default",
                    "type": "default",
                },
                "use_sliding_window": False,
                "sliding_window": 32768,
                "max_window_layers": layers,
            },
            "vision_config": {"hidden_size": 1280, "out_hidden_size": hidden, "in_chans": 3},
        },
        "talker_config": {"hidden_size": 896},
        "token2wav_config": {},
    }


def linear(name: str, out: int, into: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, size: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,)} | ({f"{name}.bias": (size,)} if bias else {})


def audio_shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    """Whisper-large-v3's encoder, with a map to the decoder's width."""
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (1280, 128, 3),
        "conv1.bias": (1280,),
        "conv2.weight": (1280, 1280, 3),
        "conv2.bias": (1280,),
        "audio_bos_eos_token.weight": (2, hidden),
        **norm("ln_post", 1280, bias=True),
        **linear("proj", hidden, 1280),
    }
    for index in range(32):
        layer = f"layers.{index}"
        for part in ("q", "k", "v", "out"):
            shapes |= linear(f"{layer}.self_attn.{part}_proj", 1280, 1280, bias=part != "k")
        shapes |= linear(f"{layer}.fc1", 5120, 1280) | linear(f"{layer}.fc2", 1280, 5120)
        for part in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= norm(f"{layer}.{part}", 1280, bias=True)
    return {f"audio_tower.{name}": shape for name, shape in shapes.items()}


def vision_shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    """Qwen2.5-VL's tower with separate matrices for query, key and value."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (1280, 3, 2, 14, 14),
        **norm("merger.ln_q", 1280, bias=False),
        **linear("merger.mlp.0", 5120, 5120),
        **linear("merger.mlp.2", hidden, 5120),
    }
    for index in range(32):
        block = f"blocks.{index}"
        for part in ("q", "k", "v", "proj"):
            shapes |= linear(f"{block}.attn.{part}", 1280, 1280)
        for part, out, into in (("gate", 3420, 1280), ("up", 3420, 1280), ("down", 1280, 3420)):
            shapes |= linear(f"{block}.mlp.{part}_proj", out, into)
        for part in ("norm1", "norm2"):
            shapes |= norm(f"{block}.{part}", 1280, bias=False)
    return {f"visual.{name}": shape for name, shape in shapes.items()}


def text_shapes(size: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    hidden, inter, layers, heads, kv, vocab = size
    head_dim = hidden // heads
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        **norm("model.norm", hidden, bias=False),
    }
    for index in range(layers):
        layer = f"model.layers.{index}"
        for part, width in (("q", heads), ("k", kv), ("v", kv)):
            shapes |= linear(f"{layer}.self_attn.{part}_proj", width * head_dim, hidden)
        shapes |= linear(f"{layer}.self_attn.o_proj", hidden, heads * head_dim, bias=False)
        for part, out, into in (
            ("gate", inter, hidden),
            ("up", inter, hidden),
            ("down", hidden, inter),
        ):
            shapes |= linear(f"{layer}.mlp.{part}_proj", out, into, bias=False)
        for part in ("input_layernorm", "post_attention_layernorm"):
            shapes |= norm(f"{layer}.{part}", hidden, bias=False)
    return shapes


@pytest.mark.parametrize("name", SIZES)
def test_official_sizes_build_with_the_checkpoints_names_and_shapes(name: str) -> None:
    data, hidden = official(name), SIZES[name][0]
    model = build_empty(find_architecture(data).read(data))
    got = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert got == text_shapes(SIZES[name]) | audio_shapes(hidden) | vision_shapes(hidden)
    assert not list(model.buffers())
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.max_position_embeddings == 32768


def small_config() -> dict[str, Any]:
    """A whole model's config.json with a Thinker of a few thousand numbers."""
    data = official("Qwen2.5-Omni-7B")
    thinker = data["thinker_config"]
    thinker["text_config"] |= {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"mrope_section": [2, 3, 3], "type": "mrope"},
    }
    thinker["vision_config"] |= {
        "hidden_size": 16,
        "out_hidden_size": 32,
        "intermediate_size": 24,
        "num_heads": 2,
        "depth": 1,
        "fullatt_block_indexes": [0],
    }
    thinker["audio_config"] |= {
        "output_dim": 32,
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_ffn_dim": 24,
        "encoder_attention_heads": 2,
        "n_window": 10,
    }
    ids = {"audio_end_token_id": 62, "audio_start_token_id": 61, "audio_token_index": 60}
    thinker |= ids | {"image_token_index": 59, "video_token_index": 58, "vision_start_token_id": 57}
    return data


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole model as it is published: the Thinker under its prefix, and what speaks."""
    data = small_config()
    (tmp_path / "config.json").write_text(json.dumps(data))
    torch.manual_seed(0)
    model = Thinker(omni_config(data))
    initialise(model)
    save_checkpoint(model, tmp_path)
    plain = load_file(tmp_path / "model.safetensors")
    whole = {f"thinker.{name}": tensor for name, tensor in plain.items()}
    whole |= {"talker.codec_head.weight": torch.zeros(3), "token2wav.x": torch.zeros(2)}
    save_file(whole, tmp_path / "model.safetensors")
    return tmp_path


def rewrite(folder: Path, change: Any) -> None:
    """Change a checkpoint's tensors."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors), path)


def logits(model: Any) -> torch.Tensor:
    ids = [1, 61, 60, 60, 62, 5]
    audio = model.encode_audio(torch.ones(8, 128), [8])
    hidden = model.embed(torch.tensor(ids), None, audio)
    with torch.inference_mode():
        out: torch.Tensor = model(hidden, model.place(ids).prompt, NoCache([len(ids)]))
    return out


def test_what_speaks_is_left_unread(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    assert isinstance(model, Thinker)
    assert not any("talker" in name or "token2wav" in name for name in model.state_dict())


def test_a_thinker_alone_is_the_same_model(checkpoint: Path) -> None:
    before = logits(load_model(checkpoint))
    thinker = json.loads((checkpoint / "config.json").read_text())["thinker_config"]
    (checkpoint / "config.json").write_text(json.dumps(thinker))
    rewrite(
        checkpoint,
        lambda tensors: {
            name.removeprefix("thinker."): tensor
            for name, tensor in tensors.items()
            if name.startswith("thinker.")
        },
    )
    assert torch.equal(logits(load_model(checkpoint)), before)


def test_an_output_matrix_that_is_not_saved_is_the_embeddings(checkpoint: Path) -> None:
    """Whether it is shared is not to be told from the released config.json files."""
    assert not read_config(checkpoint).text.tie_word_embeddings  # type: ignore[union-attr]
    rewrite(
        checkpoint,
        lambda tensors: {name: t for name, t in tensors.items() if "lm_head" not in name},
    )
    model = load_model(checkpoint)
    assert isinstance(model, Thinker)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_missing_tensor_of_the_ears_is_named(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda tensors: {n: t for n, t in tensors.items() if "fc1.bias" not in n})
    with pytest.raises(CheckpointError, match=r"1 missing \(audio_tower.layers.0.fc1.bias\)"):
        load_model(checkpoint)


def test_quantised_and_saved_it_is_a_thinker_alone(checkpoint: Path) -> None:
    data = json.loads((checkpoint / "config.json").read_text())
    data["thinker_config"]["text_config"] |= {"vocab_size": 256, "hidden_size": 128}
    data["thinker_config"]["text_config"]["rope_scaling"]["mrope_section"] = [8, 12, 12]
    data["thinker_config"]["vision_config"]["out_hidden_size"] = 128
    data["thinker_config"]["audio_config"]["output_dim"] = 128
    (checkpoint / "config.json").write_text(json.dumps(data))
    model = Thinker(omni_config(data))
    initialise(model)
    save_checkpoint(model, checkpoint)
    rewrite(checkpoint, lambda plain: {f"thinker.{name}": one for name, one in plain.items()})
    made = quantize_checkpoint(checkpoint, "int8")
    assert made.config["model_type"] == "qwen2_5_omni_thinker"
    assert "thinker_config" not in made.config
    assert dict(made.tensors).keys() == made.specs.keys()
    assert "model.layers.0.mlp.gate_proj.codes" in made.specs
    assert isinstance(load_model(checkpoint, quantize="int8"), Thinker)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("audio_config", {"output_dim": 16}, "audio output_dim is 16; expected the text hidden"),
        ("audio_config", {"d_model": 18, "encoder_attention_heads": 4}, "expected a multiple"),
        ("audio_config", {"d_model": 2}, "d_model is 2; expected an even number of at least 4"),
        ("audio_config", {"n_window": 7}, "n_window is 7; expected an even number"),
        ("audio_config", {"activation_function": "relu"}, "expected 'gelu' and false"),
        ("audio_config", {"encoder_layers": 100_000}, "encoder_layers is 100000; expected at most"),
        ("vision_config", {"out_hidden_size": 16}, "vision out_hidden_size is 16"),
        (None, {"audio_token_index": 64}, "audio_token_id is 64; expected an id below vocab_size"),
        (None, {"position_id_per_seconds": 0}, "tokens_per_second is '0'; expected a number"),
        (None, {"audio_config": {}}, "audio_config has no output_dim"),
    ],
)
def test_impossible_configs_get_a_sentence(
    part: str | None, change: dict[str, Any], words: str
) -> None:
    data = small_config()
    thinker = data["thinker_config"]
    (thinker if part is None else thinker[part]).update(change)
    with pytest.raises(ConfigError, match=words):
        omni_config(data)


def test_a_whole_model_without_a_thinker_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no thinker_config"):
        omni_config({"model_type": "qwen2_5_omni"})


def test_features_that_do_not_fit_are_refused() -> None:
    model = Thinker(omni_config(small_config()))
    with pytest.raises(InputError, match=r"is \(9, 128\); expected \(8, 128\) for 1 sounds"):
        model.encode_audio(torch.ones(9, 128), [8])
    with pytest.raises(InputError, match="has 2 mel frames; expected at least 3"):
        model.encode_audio(torch.ones(10, 128), [8, 2])
    with pytest.raises(InputError, match="holds 3 places for features; expected 2"):
        model.embed(torch.tensor([60, 60, 60]), None, torch.ones(2, 32))
