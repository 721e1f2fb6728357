"""The speech decoder's config and checkpoint: official sizes, what is left unread and refused."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qianyan.errors import CheckpointError, ConfigError
from qianyan.models.omni.token2wav import Token2Wav, load_token2wav, token2wav_config
from qianyan.models.registry import unfilled

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, into: int, out: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def convolution(name: str, into: int, out: int, size: int) -> Shapes:
    return {f"{name}.weight": (out, into, size), f"{name}.bias": (out,)}


def voice_shapes(at: str) -> Shapes:
    shapes = convolution(f"{at}.blocks.0.conv", 80, 256, 5)
    for n in (1, 2, 3):
        block = f"{at}.blocks.{n}"
        shapes |= convolution(f"{block}.tdnn1.conv", 256, 256, 1)
        shapes |= convolution(f"{block}.res2net_block.blocks.0.conv", 128, 128, 3)
        shapes |= convolution(f"{block}.tdnn2.conv", 256, 256, 1)
        shapes |= convolution(f"{block}.se_block.conv1", 256, 64, 1)
        shapes |= convolution(f"{block}.se_block.conv2", 64, 256, 1)
    shapes |= convolution(f"{at}.mfa.conv", 768, 768, 1)
    shapes |= convolution(f"{at}.asp.tdnn.conv", 3 * 768, 64, 1)
    shapes |= convolution(f"{at}.asp.conv", 64, 768, 1)
    return shapes | convolution(f"{at}.fc", 2 * 768, 128, 1)


def dit_shapes() -> Shapes:
    at = "code2wav_dit_model"
    shapes = linear(f"{at}.time_embed.time_mlp.0", 256, 1024)
    shapes |= linear(f"{at}.time_embed.time_mlp.2", 1024, 1024)
    shapes |= {f"{at}.text_embed.codec_embed.weight": (8194, 512)}
    shapes |= linear(f"{at}.input_embed.proj", 80 + 128 + 512 + 192, 1024)
    shapes |= voice_shapes(f"{at}.input_embed.spk_encoder")
    for n in range(22):
        layer = f"{at}.transformer_blocks.{n}"
        shapes |= linear(f"{layer}.attn_norm.linear", 1024, 6 * 1024)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes |= linear(f"{layer}.attn.{part}", 1024, 1024)
        shapes |= linear(f"{layer}.ff.ff.0", 1024, 2048) | linear(f"{layer}.ff.ff.3", 2048, 1024)
    return shapes | linear(f"{at}.norm_out.linear", 1024, 2048) | linear(f"{at}.proj_out", 1024, 80)


def activation(name: str, channels: int) -> Shapes:
    return {f"{name}.act.alpha": (channels,), f"{name}.act.beta": (channels,)}


def vocoder_shapes() -> Shapes:
    at = "code2wav_bigvgan_model"
    shapes = convolution(f"{at}.conv_pre", 80, 1536, 7)
    channels = 1536
    for stage, size in enumerate((11, 7, 4, 4, 4, 4)):
        half = channels // 2
        shapes |= {
            f"{at}.ups.{stage}.0.weight": (channels, half, size),
            f"{at}.ups.{stage}.0.bias": (half,),
        }
        for index, kernel in enumerate((3, 7, 11)):
            block = f"{at}.resblocks.{3 * stage + index}"
            for n in range(3):
                shapes |= convolution(f"{block}.convs1.{n}", half, half, kernel)
                shapes |= convolution(f"{block}.convs2.{n}", half, half, kernel)
            for n in range(6):
                shapes |= activation(f"{block}.activations.{n}", half)
        channels = half
    shapes |= activation(f"{at}.activation_post", 24)
    return shapes | {f"{at}.conv_post.weight": (1, 24, 7)}


OFFICIAL = {
    "dit_config": {
        "model_type": "qwen2_5_omni_dit",
        "depth": 22,
        "dim": 1024,
        "heads": 16,
        "head_dim": 64,
        "ff_mult": 2,
        "emb_dim": 512,
        "num_embeds": 8193,
        "repeats": 2,
        "block_size": 24,
        "look_ahead_layers": [10],
        "look_backward_layers": [0, 20],
        "mel_dim": 80,
        "enc_emb_dim": 192,
        "enc_dim": 128,
        "enc_channels": [256, 256, 256, 256, 768],
        "enc_kernel_sizes": [5, 3, 3, 3, 1],
        "enc_dilations": [1, 2, 3, 4, 1],
        "enc_attention_channels": 64,
        "enc_res2net_scale": 2,
        "enc_se_channels": 64,
        "dropout": 0.1,
    },
    "bigvgan_config": {
        "model_type": "qwen2_5_omni_bigvgan",
        "mel_dim": 80,
        "upsample_initial_channel": 1536,
        "upsample_rates": [5, 3, 2, 2, 2, 2],
        "upsample_kernel_sizes": [11, 7, 4, 4, 4, 4],
        "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    },
}
BARE = {"dit_config": {"hidden_size": 1024, "rope_parameters": {"rope_theta": 10000.0}}}
"""A file that leaves all to the released sizes, as newer tools' defaults do."""


@pytest.mark.parametrize("parts", [OFFICIAL, BARE], ids=["3B and 7B", "left to defaults"])
def test_official_sizes_have_the_checkpoints_names_and_shapes(parts: dict[str, Any]) -> None:
    config = token2wav_config({"token2wav_config": parts})
    with unfilled():
        model = Token2Wav(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == dit_shapes() | vocoder_shapes()
    assert config.samples_per_code == 480
    assert (config.dit.block_codes, config.dit.blocks_ahead) == (12, 1)
    assert config.dit.look_backward_layers == (0, 20)


@pytest.fixture
def folder(token2wav: Token2Wav, speaking_json: dict[str, Any], tmp_path: Path) -> Path:
    """The decoder in bfloat16, with what older tools save beside it, and another part."""
    tensors = {
        f"token2wav.{name}": tensor.bfloat16() for name, tensor in token2wav.state_dict().items()
    }
    tensors["token2wav.code2wav_dit_model.rotary_embed.inv_freq"] = torch.ones(8)
    tensors["thinker.lm_head.weight"] = tensors["talker.codec_head.weight"] = torch.ones(2, 3)
    save_file({name: one.clone() for name, one in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(speaking_json))
    return tmp_path


def test_any_checkpoint_becomes_float32(folder: Path, token2wav: Token2Wav) -> None:
    loaded = load_token2wav(folder)
    assert not loaded.training
    state = loaded.state_dict()
    for name, tensor in token2wav.state_dict().items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], tensor.bfloat16().float())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token2wav.code2wav_dit_model.proj_out.bias": None}, r"1 missing \(code2wav_dit_model"),
        ({"token2wav.code2wav_dit_model.more": torch.ones(1)}, r"1 unexpected \(token2wav"),
        ({"token2wav.code2wav_bigvgan_model.conv_pre.bias": torch.ones(3)}, "of another shape"),
        ({"other.weight": torch.ones(1)}, r"1 unexpected \(other.weight\)"),
    ],
)
def test_a_checkpoint_that_is_not_complete_is_refused(
    change: dict[str, torch.Tensor | None], words: str, folder: Path
) -> None:
    changed = {**load_file(folder / "model.safetensors"), **change}
    kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        load_token2wav(folder)


@pytest.mark.parametrize(
    "data",
    [{}, {"token2wav_config": None}, {"token2wav_config": OFFICIAL, "enable_audio_output": False}],
)
def test_a_model_that_does_not_speak_says_so(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot speak"):
        token2wav_config(data)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("dit", {"mel_dim": 79}, "mel_dim is 79 in dit_config and 80"),
        ("dit", {"depth": 0}, "num_hidden_layers is '0'"),
        ("dit", {"depth": 2000}, "num_hidden_layers is 2000"),
        ("dit", {"head_dim": 63}, "head_dim is 63"),
        ("dit", {"block_size": 25}, "block_size 25"),
        ("dit", {"look_ahead_layers": "ten"}, "look_ahead_layers is no list"),
        ("dit", {"look_backward_layers": [0, True]}, "look_backward_layers is no list"),
        ("dit", {"rope_theta": 0}, "rope_theta is '0'"),
        ("dit", {"rope_parameters": [1]}, "rope_parameters is"),
        ("dit", {"enc_channels": [256, 256]}, "enc_channels has to list"),
        ("dit", {"enc_channels": [256, 256, 256, 128, 768]}, "do not describe one encoder"),
        ("dit", {"enc_channels": [256, 256, 256, 256, 512]}, "do not describe one encoder"),
        ("dit", {"enc_dilations": [1, 2, 3, 1]}, "do not describe one encoder"),
        ("dit", {"enc_kernel_sizes": [4, 3, 3, 3, 1]}, "odd sizes"),
        ("dit", {"enc_res2net_scale": 3}, "multiples of"),
        ("bigvgan", {"upsample_initial_channel": 1500}, "multiple of 64"),
        ("bigvgan", {"upsample_rates": [5, 3, 2, 2, 2]}, "as many of both"),
        ("bigvgan", {"upsample_kernel_sizes": [10, 7, 4, 4, 4, 4]}, "plus an even number"),
        ("bigvgan", {"upsample_rates": "fast"}, "upsample_rates is no list"),
        ("bigvgan", {"resblock_kernel_sizes": [3, 6, 11]}, "odd"),
        ("bigvgan", {"resblock_dilation_sizes": [[1, 3, 5]]}, "a list of dilations for each"),
        ("bigvgan", {"resblock_dilation_sizes": [1, 3, 5]}, "no list of lists"),
        ("bigvgan", {"resblock_dilation_sizes": [[0], [1], [1]]}, "resblock_dilation_sizes is '0'"),
    ],
)
def test_an_impossible_config_is_refused(part: str, change: dict[str, Any], words: str) -> None:
    parts = deepcopy(OFFICIAL)
    parts[f"{part}_config"] |= change
    with pytest.raises(ConfigError, match=words):
        token2wav_config({"token2wav_config": parts})
