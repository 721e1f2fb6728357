"""A Qwen2.5-VL of a few thousand numbers, and the config.json object it comes from."""

from typing import Any

import pytest
import torch

from qianyan.models.registry import build_model, qwen2_5_vl_config
from qianyan.models.vision_language import VisionLanguageModel
from qianyan.models.weights import initialise


@pytest.fixture
def tiny_config() -> dict[str, Any]:
    """A flat config.json object, as on the Hub."""
    return {
        "model_type": "qwen2_5_vl",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": False,
        "image_token_id": 60,
        "video_token_id": 61,
        "vision_start_token_id": 62,
        "vision_config": {
            "depth": 2,
            "hidden_size": 16,
            "out_hidden_size": 32,
            "intermediate_size": 24,
            "num_heads": 2,
            "in_chans": 3,
            "spatial_patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
    }


@pytest.fixture
def tiny_model(tiny_config: dict[str, Any]) -> VisionLanguageModel:
    torch.manual_seed(0)
    model = build_model(qwen2_5_vl_config(tiny_config))
    initialise(model, std=0.2)
    return model
