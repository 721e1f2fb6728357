"""The bundled judge as a folder in the official file format of Qwen2.5-VL.

The architecture is unchanged, only small: about 5 million parameters in bfloat16.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from qianyan.inputs.patches import PatchConfig
from qianyan.models.weights import save_checkpoint
from qianyan.train.bundled.vocabulary import write_vocabulary

# The limits leave exactly one size for a square picture, 112 x 112, whatever its own size; they
# keep a little room on both sides of 112² because smart_resize divides and floors.
SEEN_SIDE = 112
MIN_PIXELS, MAX_PIXELS = 12_000, 13_000


def judge_config(tokenizer: Tokenizer, *, width: int = 192, depth: int = 6) -> dict[str, Any]:
    """Give config.json in the Hub's flat form; heads are 64 wide, `depth` is the tower's."""
    if width % 64:
        raise ValueError(f"width is {width}; expected a multiple of 64")
    heads = width // 64
    ids = {token: tokenizer.token_to_id(token) for token in _ID_FIELDS.values()}
    vision = {
        "depth": depth,
        "fullatt_block_indexes": sorted({depth // 2 - 1, depth - 1}),
        "hidden_act": "silu",
        "hidden_size": width,
        "in_chans": 3,
        "intermediate_size": width * 8 // 3,
        "num_heads": heads,
        "out_hidden_size": width,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    }
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": width * 8 // 3,
        "max_position_embeddings": 2048,
        "num_attention_heads": heads,
        "num_hidden_layers": max(1, depth // 2),
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": tokenizer.get_vocab_size(),
        **{field: ids[token] for field, token in _ID_FIELDS.items()},
        "vision_config": {"model_type": "qwen2_5_vl", **vision},
    }


_ID_FIELDS = {
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": "<|im_end|>",
    "pad_token_id": "<|endoftext|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "vision_token_id": "<|vision_pad|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}


def patch_config() -> PatchConfig:
    """Say how the judge wants its pictures."""
    return PatchConfig(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)


def write_judge(
    model: nn.Module, tokenizer: Tokenizer, config: dict[str, Any], folder: Path
) -> None:
    """Write every file of the judge's folder; the weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    write_vocabulary(tokenizer, folder)
    pixels = patch_config()
    preprocessor = {
        "min_pixels": pixels.min_pixels,
        "max_pixels": pixels.max_pixels,
        "patch_size": pixels.patch_size,
        "temporal_patch_size": pixels.temporal_patch_size,
        "merge_size": pixels.merge_size,
        "image_mean": list(pixels.image_mean),
        "image_std": list(pixels.image_std),
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    generation = {
        "bos_token_id": config["bos_token_id"],
        "do_sample": False,
        "eos_token_id": [config["eos_token_id"], config["bos_token_id"]],
        "pad_token_id": config["pad_token_id"],
        "repetition_penalty": 1.0,
    }
    for name, content in (
        ("config.json", config),
        ("preprocessor_config.json", preprocessor),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_checkpoint(model, folder, dtype=torch.bfloat16)
