"""A speech decoder of some thousand numbers whose every part can be heard, and a voice for it."""

from typing import Any

import pytest
import torch

from qianyan.models.omni.speakers import Speaker
from qianyan.models.omni.token2wav import Token2Wav, token2wav_config


@pytest.fixture(scope="session")
def speaking_json() -> dict[str, Any]:
    """What config.json says of the decoder, in the names of older files."""
    return {
        "model_type": "qwen2_5_omni",
        "enable_audio_output": True,
        "token2wav_config": {
            "dit_config": {
                "dim": 32,
                "depth": 4,
                "heads": 2,
                "head_dim": 16,
                "emb_dim": 16,
                "block_size": 6,
                "look_ahead_layers": [1],
                "look_backward_layers": [0, 2],
                "num_embeds": 190,
                "mel_dim": 20,
                "enc_emb_dim": 12,
                "enc_dim": 8,
                "enc_channels": [16, 16, 16, 16, 48],
                "enc_attention_channels": 8,
                "enc_se_channels": 8,
                "dropout": 0.1,
            },
            "bigvgan_config": {
                "mel_dim": 20,
                "upsample_initial_channel": 64,
                "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
            },
        },
    }


@pytest.fixture(scope="session")
def token2wav(speaking_json: dict[str, Any]) -> Token2Wav:
    """The decoder; of its vocoder only the widths are smaller than released."""
    return drawn(speaking_json)


@pytest.fixture(scope="session")
def quick_token2wav(speaking_json: dict[str, Any]) -> Token2Wav:
    """The decoder with a vocoder of two stages, 8 samples a frame."""
    parts = speaking_json["token2wav_config"]
    vocoder = {
        "mel_dim": 20,
        "upsample_initial_channel": 16,
        "upsample_rates": [4, 2],
        "upsample_kernel_sizes": [8, 4],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
    }
    return drawn({"token2wav_config": {**parts, "bigvgan_config": vocoder}})


def drawn(data: dict[str, Any]) -> Token2Wav:
    """Draw weights under which signals keep their size, to a loud end."""
    model = Token2Wav(token2wav_config(data))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            values *= 0.2
        elif "codec_embed" not in name:
            values /= parameter[0].numel() ** 0.5
        if "conv_post" in name:
            values *= 0.05
        parameter.data.copy_(values)
    return model.eval()


@pytest.fixture(scope="session")
def speaker() -> Speaker:
    """A voice."""
    generator = torch.Generator().manual_seed(5)
    return Speaker(
        name="Chelsie",
        cond=torch.randn(12, generator=generator),
        ref_mel=torch.randn(31, 20, generator=generator),
        bos_token=151872,
    )
