"""Which tokens may be drawn: the grammar's bitmasks as tensors."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
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
    forbidden = _unpack(packed, logits.device)[:, :num_tokens] == 0
    if len(constrained) == len(requests):
        logits[:, :num_tokens].masked_fill_(forbidden, -torch.inf)
        return
    for row, own in zip(constrained, forbidden, strict=True):
        logits[row, :num_tokens].masked_fill_(own, -torch.inf)


def _unpack(packed: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Give each bit of (requests, bytes), the lowest first, as a value of its own on the device."""
    if device.type == "cpu":
        # numpy's unpacking is several times faster than shifts and masks of whole vocabularies
        return torch.from_numpy(np.unpackbits(packed, axis=1, bitorder="little"))
    return unpack_bits(torch.from_numpy(packed.copy()).to(device))


def unpack_bits(packed: Tensor) -> Tensor:
    """Give (rows, 8*bytes) truth values for (rows, bytes): an eighth is brought to a device."""
    bits = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-1) & bits).ne(0).flatten(1)
