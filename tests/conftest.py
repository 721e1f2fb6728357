"""Fixtures every room may use."""

import json
import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of development data beside the checkout; tests that need it skip without it."""
    folder = Path(os.environ.get("QIANYAN_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("no development data beside this checkout (set QIANYAN_SHARED)")
    return folder


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `--model` folder with an untrained detector that proposes fire, and no judge."""
    import torch

    from qianyan.models.detector import KINDS, Detector, DetectorConfig, save_detector

    torch.manual_seed(0)
    thresholds = {**dict.fromkeys(KINDS, 0.99), "fire": 0.001}
    config = DetectorConfig(
        image_size=64,
        widths=(8, 8, 16, 16),
        depths=(1, 1, 1, 1),
        neck_width=24,
        thresholds=thresholds,
    )
    folder = tmp_path_factory.mktemp("pair")
    save_detector(Detector(config), folder / "detector")
    return folder


@pytest.fixture(scope="session")
def embedding_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint in the form of Qwen3-Embedding, without a head as it is saved."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    from qianyan.models.registry import build_model, qwen3_config

    end = "<|endoftext|>"
    pieces = {piece: at for at, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(end, special=True), AddedToken("<|im_end|>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    config = {
        "model_type": "qwen3",
        "architectures": ["Qwen3Model"],
        "vocab_size": 264,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    folder = tmp_path_factory.mktemp("embedding")
    tokenizer.save(str(folder / "tokenizer.json"))
    modules = "sentence_transformers.models."
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    files = {
        "config.json": config,
        "tokenizer_config.json": {"eos_token": "<|im_end|>", "chat_template": "{{ messages }}"},
        "modules.json": [
            {
                "idx": at,
                "name": str(at),
                "path": path,
                "type": modules + kind,
            }
            for at, (path, kind) in enumerate(kinds)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": 64,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_lasttoken": True,
            "include_prompt": True,
        },
        "config_sentence_transformers.json": {
            "prompts": {"query": "Instruct: find\nQuery:", "document": ""},
            "default_prompt_name": None,
        },
    }
    (folder / "1_Pooling").mkdir()
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data))
    model = build_model(qwen3_config(config))
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_matrix = parameter.dim() > 1
        value = noise * parameter[0].numel() ** -0.5 if is_matrix else 1 + 0.1 * noise
        if name.startswith("model."):
            tensors[name.removeprefix("model.")] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def omni_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Qwen2.5-Omni that hears, sees and speaks briefly."""
    from tests.omni_checkpoint import write_omni_checkpoint

    return write_omni_checkpoint(tmp_path_factory.mktemp("omni"))
