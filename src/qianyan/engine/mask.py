"""Which tokens may be drawn: the grammar's bitmasks as tensors."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qianyan.engine.request import Request
from qianyan.errors import GrammarError


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
    packed = np.frombuffer(b"".join(masks), dtype=np.uint8).reshape(len(masks), -1)
    # numpy's unpacking is several times faster than shifts and masks of whole vocabularies
    allowed = np.unpackbits(packed, axis=1, bitorder="little")  # (constrained, tokens)
    forbidden = torch.from_numpy(allowed[:, :num_tokens] == 0).to(logits.device)
    for row, own in zip(constrained, forbidden, strict=True):
        logits[row, :num_tokens].masked_fill_(own, -torch.inf)
