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
    masks: list[bytes] = []
    constrained: list[int] = []
    for index, request in enumerate(requests):
        if request.grammar is not None and request.is_constrained:
            try:
                masks.append(request.grammar.mask())
                constrained.append(index)
            except GrammarError as error:
                request.error = error
    if not masks:
        return
    words = torch.frombuffer(bytearray(b"".join(masks)), dtype=torch.int32)
    words = words.view(len(masks), -1, 1)  # (constrained, words, 1)
    allowed = (words >> torch.arange(BITS, dtype=torch.int32)) & 1  # (constrained, words, bits)
    forbidden = allowed.flatten(1)[:, :num_tokens] == 0  # (constrained, num_tokens)
    rows = torch.tensor(constrained, device=logits.device)
    masked = logits[rows, :num_tokens].masked_fill(forbidden.to(logits.device), -torch.inf)
    logits[rows, :num_tokens] = masked
