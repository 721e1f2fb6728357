"""A small random Qwen3 that thinks until it is stopped: its prompt opens the reasoning."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from qianyan.models.registry import build_model, qwen3_config
from qianyan.models.weights import initialise, save_checkpoint

A = sorted(pre_tokenizers.ByteLevel.alphabet()).index("a")
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ALWAYS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""As QwQ's: there is no other way."""
BY_SWITCH = ALWAYS.replace(
    "<think>\n",
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}",
)


def write_thinking_model(folder: Path, template: str) -> Path:
    """Write the checkpoint; its prompts are as the chat template makes them."""
    letters = {piece: at for at, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(one, special=True, normalized=False) for one in CONTROLS])
    for mark in ("<think>", "</think>"):
        tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "qwen3",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"eos_token": "<|im_end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(3)
    model = build_model(qwen3_config(config))
    initialise(model, std=0.1)
    save_checkpoint(model, folder)
    return folder
