"""A small checkpoint folder without weights: bytes, a few merges, the official special tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN_ADDED = ("<tool_call>", "</tool_call>")
MERGES = (("t", "h"), ("th", "e"), ("f", "i"), ("r", "e"), ("fi", "re"))
TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{% for call in message.tool_calls or [] %}[{{ call.function | tojson }}]{% endfor %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Give a function that writes the folder, with or without settings for pictures."""

    def make(
        *,
        template: str = TEMPLATE,
        pictures: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> Path:
        pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
        pieces += [first + second for first, second in MERGES]
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(
            [tokenizers.AddedToken(token, normalized=False) for token in SPECIAL]
        )
        backend.add_tokens(
            [tokenizers.AddedToken(token, normalized=False) for token in PLAIN_ADDED]
        )
        backend.save(str(tmp_path / "tokenizer.json"))
        tokens = {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokens | (settings or {})))
        (tmp_path / "chat_template.jinja").write_text(template)
        if pictures is not None:
            (tmp_path / "preprocessor_config.json").write_text(json.dumps(pictures))
        return tmp_path

    return make
