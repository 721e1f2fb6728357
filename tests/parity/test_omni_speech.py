"""Qwen2.5-Omni's speech decoder against transformers, on a small random checkpoint.

The oracle draws weights that leave its output near zero, where every tolerance is met; here they
are large enough for each part to matter and for the waveform to fill its range.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qianyan.models.omni.dit_layers import Stretch
from qianyan.models.omni.flow import evaluation_times, follow, guided, sway_times
from qianyan.models.omni.speakers import Speaker, load_speakers
from qianyan.models.omni.speech_decoder import SpeechDecoder
from qianyan.models.omni.token2wav import Token2Wav, load_token2wav

DIT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
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
}
BIGVGAN = {"mel_dim": 20, "upsample_initial_channel": 64}


def draw_weights(model: nn.Module) -> None:
    """Draw weights under which signals keep their size from layer to layer, to a loud end."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            drawn *= 0.2
        elif "codec_embed" not in name:
            drawn /= parameter[0].numel() ** 0.5
        if "conv_post" in name:
            drawn *= 0.05
        parameter.data.copy_(drawn)


@pytest.fixture(scope="module")
def theirs() -> Any:
    from transformers import Qwen2_5OmniToken2WavConfig, Qwen2_5OmniToken2WavModel

    model = Qwen2_5OmniToken2WavModel(
        Qwen2_5OmniToken2WavConfig(dit_config=DIT, bigvgan_config=BIGVGAN)
    )
    draw_weights(model)
    return model.eval()


@pytest.fixture(scope="module")
def folder(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder's part of a checkpoint as the authors publish it, other parts beside it."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("omni")
    tensors = {f"token2wav.{name}": tensor for name, tensor in theirs.state_dict().items()}
    tensors |= {"thinker.lm_head.weight": torch.zeros(2), "talker.codec_head.weight": torch.ones(2)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "qwen2_5_omni", "token2wav_config": theirs.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(5)
    voice = {
        "cond": torch.randn(1, 12, generator=generator),
        "ref_mel": torch.randn(1, 31, 20, generator=generator),
        "bos_token": 151872,
    }
    torch.save({"Chelsie": voice}, folder / "spk_dict.pt")
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Token2Wav:
    return load_token2wav(folder)


@pytest.fixture(scope="module")
def speaker(folder: Path, ours: Token2Wav) -> Speaker:
    return load_speakers(folder, ours.config.dit)["Chelsie"]


def codes_of(number: int) -> list[int]:
    return torch.randint(0, 190, (number,), generator=torch.Generator().manual_seed(3)).tolist()


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@torch.inference_mode()
def test_a_voice_is_heard_alike(ours: Token2Wav, theirs: Any, speaker: Speaker) -> None:
    encoder = theirs.code2wav_dit_model.input_embed.spk_encoder
    mel = torch.stack([speaker.ref_mel, torch.zeros_like(speaker.ref_mel)])
    expected = encoder(mel)
    assert expected.std() > 0.1
    close(ours.code2wav_dit_model.listen(speaker.ref_mel, speaker.cond).heard, expected)


@torch.inference_mode()
@pytest.mark.parametrize("num_codes", [1, 3, 4, 15, 17])
@pytest.mark.parametrize("time", [0.0, 0.37, 1.0])
def test_velocities_are_equal(
    num_codes: int, time: float, ours: Token2Wav, theirs: Any, speaker: Speaker
) -> None:
    codes = torch.tensor(codes_of(num_codes))
    noisy = torch.randn(2 * num_codes, 20, generator=torch.Generator().manual_seed(num_codes))
    expected = theirs.code2wav_dit_model(
        hidden_states=noisy[None],
        condition_vector=speaker.ref_mel[None],
        speaker_embedding=speaker.cond.expand(1, len(noisy), -1),
        quantized_code=codes[None],
        time_step=torch.tensor(time),
    )
    dit = ours.code2wav_dit_model
    known = dit.know(codes, dit.listen(speaker.ref_mel, speaker.cond))
    (modulation,) = dit.modulate(torch.tensor([time]))
    assert expected.std() > 0.3
    assert (expected[0] - expected[1]).abs().max() > 0.3
    close(dit(noisy, known, modulation, Stretch()), expected)


@torch.inference_mode()
def test_frames_from_the_same_noise_are_equal(
    ours: Token2Wav, theirs: Any, speaker: Speaker
) -> None:
    codes = codes_of(23)
    torch.manual_seed(11)
    expected = theirs.code2wav_dit_model.sample(
        speaker.cond[None], speaker.ref_mel[None], torch.tensor([codes])
    )[0].T
    torch.manual_seed(11)
    noise = torch.randn(46, 20)
    dit, times = ours.code2wav_dit_model, sway_times()
    known = dit.know(torch.tensor(codes), dit.listen(speaker.ref_mel, speaker.cond))
    modulations = dit.modulate(evaluation_times(times))
    mel = follow(
        lambda moment, state: guided(dit(state, known, modulations[moment], Stretch())),
        noise,
        times,
    )
    close(mel, expected)


@torch.inference_mode()
@pytest.mark.parametrize("num_frames", [1, 2, 18, 130])
def test_waveforms_are_equal(num_frames: int, ours: Token2Wav, theirs: Any) -> None:
    mel = 2 * torch.randn(num_frames, 20, generator=torch.Generator().manual_seed(1)) - 2
    expected = theirs.code2wav_bigvgan_model(mel.T[None])
    assert expected.abs().max() > 0.1
    assert len(expected) == 240 * num_frames
    close(ours.code2wav_bigvgan_model(mel), expected)


@torch.inference_mode()
def test_the_waveform_of_an_utterance_is_equal(
    ours: Token2Wav, theirs: Any, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = codes_of(130)
    generator = torch.Generator().manual_seed(9)
    blocks = [torch.randn(6, 20, generator=generator) for _ in range(44)]
    noise = torch.cat(blocks)[None, :260]
    monkeypatch.setattr(torch, "randn", lambda *shape, **kind: noise)
    expected = theirs(torch.tensor([codes]), speaker.cond[None], speaker.ref_mel[None])
    monkeypatch.undo()
    samples = SpeechDecoder(ours, speaker, seed=9).decode(codes)
    assert len(samples) == 130 * 480
    assert 0.1 < expected.std() < expected.abs().max() <= 1
    close(samples, expected, 1e-3)


def test_the_decoder_is_whole_in_shards_and_without_the_other_parts(
    theirs: Any, ours: Token2Wav, folder: Path, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    state = load_token2wav(tmp_path).state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(state[name], tensor)
