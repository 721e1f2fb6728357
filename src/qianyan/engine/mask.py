"""Which tokens may be drawn: the grammar's bitmasks as tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qianyan.engine.request import Request
from qianyan.errors import GrammarError

BITS = 32


def forbid(logits: Tensor, requests: Sequence[Request], num_tokens: int) -> None:
    """Set the logits of tokens that may not come next to -inf, in place.

    Logits are (requests, vocab). Rows of the vocabulary matrix past `num_tokens` are padding
    (Qwen pads to a multiple of 128) and belong to no token. A request whose grammar fails gets
    its `error` set and its row left as it is.
    """
    logits[:, num_tokens:] = -torch.inf
    constrained = [i for i, request in enumerate(requests) if request.grammar is not None]
    if not constrained:
        return
    bits = torch.empty(len(constrained), (num_tokens + BITS - 1) // BITS, dtype=torch.int32)
    for row, index in enumerate(constrained):
        request = requests[index]
        assert request.grammar is not None
        try:
            words = bits[row]
            request.grammar.fill_mask(words.data_ptr(), words.nbytes)
        except GrammarError as error:
            request.error = error
            bits[row] = -1
    shifts = torch.arange(BITS, dtype=torch.int32)
    allowed = (bits[:, :, None] >> shifts) & 1  # (constrained, words, bits)
    forbidden = allowed.flatten(1)[:, :num_tokens] == 0  # (constrained, num_tokens)
    rows = torch.tensor(constrained, device=logits.device)
    masked = logits[rows, :num_tokens].masked_fill(forbidden.to(logits.device), -torch.inf)
    logits[rows, :num_tokens] = masked
