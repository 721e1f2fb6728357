"""A small random Qwen2.5-Omni that hears, sees and speaks, as it is published: a whole folder.

Tests of any room take the fixture `omni_checkpoint`, or write one of their own:

    from tests.omni_checkpoint import write_omni_checkpoint

Its speech has the released rates: 480 samples a code, 24,000 a second. Its Talker never ends by
itself; a few positions keep what it says short.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from qianyan.models.omni.talker import Talker, talker_config
from qianyan.models.omni.thinker import Thinker, omni_config
from qianyan.models.omni.token2wav import Token2Wav, token2wav_config

TEXT_TOKENS = 256
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>"),
    *("<|audio_eos|>", "<|vision_bos|>", "<|vision_eos|>", "<|IMAGE|>", "<|VIDEO|>"),
    *("<tts_pad>", "<tts_text_bos>", "<tts_text_eos>", "<tts_text_bos_single>"),
)
IDS = {token: TEXT_TOKENS + index for index, token in enumerate(SPECIAL)}
NUM_CODES, PAD, START, END, MASK = 190, 190, 191, 192, 193
VOICES = ("Chelsie", "Ethan")
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
MEDIA_IDS = {
    "audio_token_index": IDS["<|AUDIO|>"],
    "image_token_index": IDS["<|IMAGE|>"],
    "video_token_index": IDS["<|VIDEO|>"],
    "audio_start_token_id": IDS["<|audio_bos|>"],
    "audio_end_token_id": IDS["<|audio_eos|>"],
    "vision_start_token_id": IDS["<|vision_bos|>"],
    "position_id_per_seconds": 25,
    "seconds_per_chunk": 2,
}
THINKER = {
    "text_config": {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 128,
        "rms_norm_eps": 1e-6,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "rope_parameters": ROPE,
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "num_heads": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
    "audio_config": {
        "num_mel_bins": 128,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "d_model": 32,
        "n_window": 100,
        "output_dim": 64,
    },
    **MEDIA_IDS,
}
TALKER = {
    "vocab_size": 200,
    "embedding_size": 64,
    "hidden_size": 48,  # its heads are wider together
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "tts_codec_pad_token_id": PAD,
    "tts_codec_start_token_id": START,
    "tts_codec_end_token_id": END,
    "tts_codec_mask_token_id": MASK,
    "tts_text_pad_token_id": IDS["<tts_pad>"],
    "tts_text_start_token_id": IDS["<tts_text_bos>"],
    "tts_text_end_token_id": IDS["<tts_text_eos>"],
    "rope_parameters": ROPE,
    **MEDIA_IDS,
}
TOKEN2WAV = {
    "dit_config": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "head_dim": 16,
        "emb_dim": 16,
        "num_embeds": NUM_CODES,
        "mel_dim": 20,
        "enc_emb_dim": 12,
        "enc_dim": 8,
        "enc_channels": [16, 16, 16, 16, 48],
        "enc_attention_channels": 8,
        "enc_se_channels": 8,
        "block_size": 6,
        "look_ahead_layers": [1],
        "look_backward_layers": [0, 2],
    },
    "bigvgan_config": {"mel_dim": 20, "upsample_initial_channel": 64},
}
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif content['type'] == 'audio' or 'audio' in content or 'audio_url' in content %}"
    "<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 128,
    "chunk_length": 300,
    "hop_length": 160,
    "n_fft": 400,
    "sampling_rate": 16000,
    "n_samples": 4800000,
    "nb_max_frames": 30000,
    "padding_value": 0.0,
    "dither": 0.0,
    "return_attention_mask": True,
    "processor_class": "Qwen2_5OmniProcessor",
}


def write_omni_checkpoint(folder: Path, *, talker_positions: int = 160, **config: Any) -> Path:
    """Write all files of one, its voices VOICES; `config` replaces entries of config.json."""
    talker = TALKER | {"max_position_embeddings": talker_positions}
    data = {
        "architectures": ["Qwen2_5OmniForConditionalGeneration"],
        "model_type": "qwen2_5_omni",
        "torch_dtype": "float32",
        "enable_audio_output": True,
        "enable_talker": True,
        "thinker_config": THINKER,
        "talker_config": talker,
        "token2wav_config": TOKEN2WAV,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(data))
    write_settings(folder)
    write_weights(folder, data)
    torch.save(draw_voices(), folder / "spk_dict.pt")
    return folder


def write_settings(folder: Path) -> None:
    """Write the tokenizer, the chat template, and the settings of pictures, sounds and answers."""
    pieces = {piece: at for at, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    for name, settings in {
        "tokenizer_config.json": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "preprocessor_config.json": PREPROCESSOR,
        "generation_config.json": {"eos_token_id": IDS["<|im_end|>"]},
    }.items():
        (folder / name).write_text(json.dumps(settings))


def write_weights(folder: Path, data: dict[str, Any]) -> None:
    """Write the three parts under their prefixes."""
    talker = Talker(talker_config(data))
    parts = {
        "thinker": Thinker(omni_config(data)),
        "talker": talker,
        "token2wav": Token2Wav(token2wav_config(data)),
    }
    for part in parts.values():
        randomise(part)
    silence(talker)
    tensors = {
        f"{prefix}.{name}": tensor
        for prefix, part in parts.items()
        for name, tensor in part.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def randomise(model: torch.nn.Module) -> None:
    """Draw weights under which every parameter matters: no zero bias, no norm of plain ones.

    What comes out of a speech decoder is loud and not clipped.
    """
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("conv_post.weight"):
                noise *= 0.02
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(1 + 0.1 * noise)


def silence(talker: Any) -> None:
    """Leave what has no sound, and what ends a speech, out of the likeliest codes of a Talker."""
    talker.codec_head.weight.data[NUM_CODES:] = 0


def draw_voices() -> dict[str, dict[str, Any]]:
    """Draw the voices in the form of spk_dict.pt."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: {
            "bos_token": IDS["<tts_text_bos_single>"],
            "cond": torch.randn(1, 12, generator=generator),
            "ref_mel": torch.randn(1, 30, 20, generator=generator),
        }
        for name in VOICES
    }
