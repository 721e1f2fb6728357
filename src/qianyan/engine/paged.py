"""Attention of many requests at once that go on behind what they have kept.

One call a layer instead of one for each request: a device waits for its launches where eight
requests of 28 layers make 224 of them. The rows of all requests are gathered from the blocks into
one padded tensor and attended under a mask. That reads keys and values three times instead of
once; kernels that read blocks in place either take pages of at least 256 tokens
(`torch.nn.attention.varlen` with FlashAttention 2) or have to be compiled (FlexAttention).
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qianyan.engine.blocks import BLOCK_SIZE

MAX_NEW_TOKENS = 16
"""New tokens of a request in a batch: one, and a few that a format forces or that are tried."""

MAX_GATHERED_ROWS = 2**18
"""Rows that are gathered at one time, padding included: 128 MiB of keys with two heads of 128."""


class Batch:
    """Requests with a few new tokens each, packed one after another, with the same number of rows.

    Where a request has fewer new tokens its last one stands several times: it is written to the
    same place and sees the same keys. Everything is computed on the device from two small tensors,
    without a look at their contents: a CUDA graph can record it.
    """

    def __init__(self, block_tables: Tensor, at: Tensor) -> None:
        """Place the new tokens and find what they look back at.

        Args:
            block_tables: (requests, blocks) of each request, short ones padded with any block.
            at: (requests, count), the place of each new token in its sequence, ascending.
        """
        offsets = torch.arange(BLOCK_SIZE, device=at.device)
        rows = (block_tables.unsqueeze(-1) * BLOCK_SIZE + offsets).flatten(1)  # (requests, keys)
        self._at = at
        self._key_at = torch.arange(rows.shape[1], device=at.device)  # (keys,)
        self.written = rows.gather(1, at).flatten()  # (requests*count,)
        # Rows beyond a request are not its own and may hold anything: a NaN among the values is
        # not silenced by a weight of 0. The request's first row stands in for them.
        self._read = torch.where(self._key_at <= at[:, -1:], rows, rows[:, :1])  # (requests, keys)
        self._visible: dict[tuple[int, int | None], Tensor] = {}

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, window: int | None = None
    ) -> Tensor:
        """Attend over what each request has kept, its new tokens included.

        `keys` and `values` are the whole storage, (rows, kv_heads, head_dim); `query` and the
        result are (requests*count, heads, head_dim).
        """
        requests, count = self._at.shape
        kv_heads, head_dim = keys.shape[1:]
        rows = query.view(requests, count, kv_heads, -1, head_dim).permute(0, 2, 3, 1, 4)
        group = rows.shape[2]
        attended = scaled_dot_product_attention(
            rows.flatten(2, 3),  # (requests, kv_heads, group*count, head_dim)
            keys[self._read].transpose(1, 2),  # (requests, kv_heads, keys, head_dim)
            values[self._read].transpose(1, 2),
            attn_mask=self._visible_to(group, window),
        )
        attended = attended.view(requests, kv_heads, group, count, head_dim).permute(0, 3, 1, 2, 4)
        return attended.reshape(query.shape)  # (requests*count, heads, head_dim)

    def _visible_to(self, group: int, window: int | None) -> Tensor:
        """Say which keys each row of a call sees, (requests, 1, group*count, keys).

        The layers of one pass share it.
        """
        known = self._visible.get((group, window))
        if known is None:
            at = self._at.unsqueeze(-1)
            known = self._key_at <= at  # (requests, count, keys)
            if window is not None:
                known = known & (self._key_at > at - window)
            known = self._visible[group, window] = known.repeat(1, group, 1).unsqueeze(1)
        return known
