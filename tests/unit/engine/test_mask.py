"""Token masks as tensors, unpacked here or on a device."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch.testing import assert_close

from qianyan.engine.grammar import Grammars
from qianyan.engine.mask import forbid, unpack_bits
from qianyan.engine.options import Sampling
from qianyan.engine.reply import Reply
from qianyan.engine.request import Request

STOP = 2
PADDING = 7


class Silent:
    def push(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def test_devices_unpack_as_numpy_does() -> None:
    packed = np.random.default_rng(3).integers(0, 256, (5, 19), dtype=np.uint8)
    expected = np.unpackbits(packed, axis=1, bitorder="little")
    assert_close(unpack_bits(torch.from_numpy(packed)), torch.from_numpy(expected) == 1)


@pytest.mark.parametrize(
    "patterns", [["[0-9]{3}", "[ab]x"], [None, "[0-9]{3}"], ["[ab]x", None, "[0-9]{3}"], [None]]
)
def test_only_allowed_tokens_keep_their_logits(
    tiny_tokenizer: Tokenizer, patterns: list[str | None]
) -> None:
    num_tokens = tiny_tokenizer.get_vocab_size()
    grammars = Grammars(tiny_tokenizer.to_str(), frozenset({STOP}), num_tokens=num_tokens)
    requests = []
    for pattern in patterns:
        grammar = grammars.begin({"type": "regex", "pattern": pattern}) if pattern else None
        requests.append(Request(0, [1], Sampling(max_tokens=9), Reply(Silent()), grammar))
    logits = torch.randn(len(patterns), num_tokens + PADDING)
    before = logits.clone()
    forbid(logits, requests, num_tokens)
    assert bool((logits[:, num_tokens:] == -torch.inf).all())
    for row, old, pattern in zip(logits, before, patterns, strict=True):
        kept = (row[:num_tokens] == old[:num_tokens]).nonzero().flatten().tolist()
        words = {tiny_tokenizer.decode([token]) for token in kept}
        if pattern is None:
            assert len(kept) == num_tokens
        else:
            assert words == ({"a", "b"} if "a" in pattern else {*"0123456789", "12"})
