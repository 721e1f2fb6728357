"""Embeddings against transformers, float32, on small random checkpoints as it saves them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from qianyan.engine.engine import Engine

TEXTS = ["fire", "人没有戴安全帽", "the red fire in the box on the right of the picture", "a"]
END = "<|endoftext|>"


def add_embedding_files(folder: Path) -> None:
    """Add what sentence-transformers saves, and the end token to the tokenizer."""
    import tokenizers

    path = str(folder / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    tokenizer.save(path)
    (folder / "1_Pooling").mkdir()
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    pooling = {"pooling_mode_lasttoken": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("has_head", [True, False])
def test_vectors_equal_the_pooled_states_of_transformers(
    make_text_checkpoint: Callable[..., Path], tmp_path: Path, has_head: bool, is_tied: bool
) -> None:
    import transformers

    folder = make_text_checkpoint("qwen3", head_dim=32, tie_word_embeddings=is_tied)
    oracle: Any = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    if not has_head:
        oracle.save_pretrained(folder)
        saved = json.loads((folder / "config.json").read_text())
        assert saved["architectures"] == ["Qwen3Model"]
    add_embedding_files(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    expected = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert ids[0, -1] == tokenizer.convert_tokens_to_ids(END)
        with torch.no_grad():
            expected.append(oracle(input_ids=ids).last_hidden_state[0, -1])
    found = Engine(folder, dtype="float32").embed(TEXTS)
    assert_close(found.vectors, normalize(torch.stack(expected), dim=-1), rtol=0, atol=1e-5)
    cut = Engine(folder, dtype="float32").embed(TEXTS, dimensions=16)
    shorter = normalize(torch.stack(expected)[:, :16], dim=-1)
    assert_close(cut.vectors, shorter, rtol=0, atol=1e-5)
