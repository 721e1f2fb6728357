"""Write a Qwen2.5-Omni of official widths with random weights that speaks, for timing only.

    python benchmarks/make_omni_checkpoint.py FOLDER
    python benchmarks/make_omni_checkpoint.py FOLDER --thinker-layers 36

Widths are the released 3B's, and so is the half that speaks as a whole; the usual cut is 12 of the
Thinker's 36 layers. With --dit-layers, layers that look past their block keep their places in
proportion. Towers have one layer: a question of text uses none. Its vocabulary is bytes.
No code that ends a speech is ever drawn: an answer has --codes codes, 500 being ten seconds, which
is ours by the Talker's length and others' by a limit. Without arguments nothing is written.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from make_checkpoint import Noise
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from qianyan.models.omni.talker import Talker, talker_config
from qianyan.models.omni.thinker import Thinker, omni_config
from qianyan.models.omni.token2wav import Token2Wav, token2wav_config
from qianyan.models.registry import unfilled

QUESTION = "What is to be seen on the site, and who is in danger?"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = {
    151643: "<|endoftext|>",
    151644: "<|im_start|>",
    151645: "<|im_end|>",
    151646: "<|AUDIO|>",
    151647: "<|audio_bos|>",
    151648: "<|audio_eos|>",
    151652: "<|vision_bos|>",
    151653: "<|vision_eos|>",
    151655: "<|IMAGE|>",
    151656: "<|VIDEO|>",
}
MEDIA = {
    "audio_token_index": 151646,
    "image_token_index": 151655,
    "video_token_index": 151656,
    "audio_start_token_id": 151647,
    "audio_end_token_id": 151648,
    "vision_start_token_id": 151652,
    "position_id_per_seconds": 25,
    "seconds_per_chunk": 2,
}
TEXT = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
}
TALKER = {
    "vocab_size": 8448,
    "embedding_size": 2048,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "tts_codec_pad_token_id": 8292,
    "tts_codec_start_token_id": 8293,
    "tts_codec_end_token_id": 8294,
    "tts_codec_mask_token_id": 8296,
    "tts_text_pad_token_id": 151859,
    "tts_text_start_token_id": 151860,
    "tts_text_end_token_id": 151861,
}
VISION = {
    "depth": 1,
    "hidden_size": 1280,
    "out_hidden_size": 2048,
    "intermediate_size": 3420,
    "num_heads": 16,
    "window_size": 112,
    "fullatt_block_indexes": [0],
}
AUDIO = {
    "num_mel_bins": 128,
    "encoder_layers": 1,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "d_model": 1280,
    "n_window": 100,
    "output_dim": 2048,
}
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5OmniProcessor",
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
}
WHOLE_DIT = 22
NUM_CODES = 8192  # that have a sound and are no end
VOICE = 151872


def mrope(sections: list[int]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}


def make_config(options: argparse.Namespace) -> dict[str, Any]:
    """Give config.json; the Talker has room for the prompt and the codes, no more."""
    prompt = len(make_tokenizer().encode(written(QUESTION)).ids)
    layers = options.dit_layers
    ahead = 10 * layers // WHOLE_DIT
    return {
        "architectures": ["Qwen2_5OmniForConditionalGeneration"],
        "model_type": "qwen2_5_omni",
        "torch_dtype": "bfloat16",
        "enable_audio_output": True,
        "thinker_config": {
            "text_config": TEXT
            | {
                "num_hidden_layers": options.thinker_layers,
                "rope_parameters": mrope([16, 24, 24]),
            },
            "vision_config": VISION,
            "audio_config": AUDIO,
            **MEDIA,
        },
        "talker_config": TALKER
        | {
            "max_position_embeddings": prompt + 1 + options.codes,
            "rope_parameters": mrope([16, 16, 0]),
            **MEDIA,
        },
        "token2wav_config": {
            "dit_config": {
                "num_hidden_layers": layers,
                "look_ahead_layers": [ahead],
                "look_backward_layers": [0, 2 * ahead],
            },
            "bigvgan_config": {},
        },
    }


def written(question: str) -> str:
    """Give what the template makes of one question."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def make_tokenizer() -> Tokenizer:
    """Make one of bytes, with the released ids of special tokens behind as many empty ones."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    fillers = (f"<{number}>" for number in range(len(pieces), min(SPECIAL)))
    vocabulary = {piece: number for number, piece in enumerate((*pieces, *fillers))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = [SPECIAL.get(number, f"<|{number}|>") for number in range(min(SPECIAL), 151657)]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def make_parts(config: dict[str, Any]) -> list[tuple[str, nn.Module, torch.dtype]]:
    """Make each part without weights; the speech decoder is kept in float32."""
    with unfilled():
        return [
            ("thinker", Thinker(omni_config(config)), torch.bfloat16),
            ("talker", Talker(talker_config(config)), torch.bfloat16),
            ("token2wav", Token2Wav(token2wav_config(config)), torch.float32),
        ]


def write_weights(config: dict[str, Any], folder: Path) -> None:
    noise, homes = Noise(), {}
    for number, (part, model, dtype) in enumerate(make_parts(config), 1):
        tensors: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            tensor = noise.draw(name, parameter.shape)
            if name == "codec_head.weight":
                tensor[NUM_CODES:] = 0
            tensors[f"{part}.{name}"] = tensor.to(dtype)
        file = f"model-{number:05d}-of-00003.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        homes |= dict.fromkeys(tensors, file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        print(f"{file}: {part}, {size / 1e9:.2f} GB")
    index = {"metadata": {}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def write_words(config: dict[str, Any], folder: Path) -> None:
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    for name, data in {
        "config.json": config,
        "generation_config.json": {"eos_token_id": 151645},
        "preprocessor_config.json": PREPROCESSOR,
        "tokenizer_config.json": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    }.items():
        (folder / name).write_text(json.dumps(data, indent=1))
    generator = torch.Generator().manual_seed(3)
    voice = {
        "bos_token": VOICE,
        "cond": torch.randn(1, 192, generator=generator),
        "ref_mel": torch.randn(1, 300, 80, generator=generator),
    }
    torch.save({"Chelsie": voice}, folder / "spk_dict.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--codes", type=int, default=500, help="50 for each second of speech")
    parser.add_argument("--thinker-layers", type=int, default=12)
    parser.add_argument("--dit-layers", type=int, default=WHOLE_DIT)
    options = parser.parse_args()
    if options.folder is None:
        print("Nothing is written without a folder.")
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    config = make_config(options)
    write_words(config, options.folder)
    write_weights(config, options.folder)


if __name__ == "__main__":
    main()
