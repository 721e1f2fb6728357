"""Attention over packed tokens, `(tokens, heads, head_dim)`, and the place of keys and values.

A cache is one method: a layer hands over its query, key and value and gets the attended values
back. Whether keys are kept, where, and for how many sequences, the layer never knows.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qianyan.models import native


class KVCache(Protocol):
    """Where a layer keeps its keys and values."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, window: int | None = None
    ) -> Tensor:
        """Store this step's key and value, then attend causally over all kept.

        Shapes are (tokens, heads, head_dim) for the query and the result, (tokens, kv_heads,
        head_dim) for key and value. With a `window` a token sees itself and the window - 1 tokens
        before it.
        """


class NoCache(KVCache):
    """Whole sequences packed into one pass, each causal on its own; nothing is kept.

    `lengths` are the sequences' token counts in packing order. Differentiable: training and
    scoring go through it.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, window: int | None = None
    ) -> Tensor:
        """Attend inside each sequence; `layer` does not matter here."""
        del layer
        if window is not None and window < max(self.lengths):
            sequences = zip(
                *(torch.split(each, list(self.lengths)) for each in (query, key, value)),
                strict=True,
            )
            return torch.cat(
                [causal_attention(*each, offset=0, window=window) for each in sequences]
            )
        return _attend_within(query, key, value, self.lengths, is_causal=True)


def segment_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attend in both directions inside consecutive segments of the given lengths.

    Tokens of different segments never see each other. Segments of equal length share one call.
    """
    return _attend_within(query, key, value, tuple(lengths), is_causal=False)


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, *, offset: int, window: int | None = None
) -> Tensor:
    """Attend from new tokens over one sequence's past and new keys.

    Args:
        query: (q_tokens, heads, head_dim), the new tokens.
        key: (kv_tokens, kv_heads, head_dim), the whole sequence so far, new tokens last.
        value: as `key`.
        offset: number of tokens before the first new one; new token i sees keys 0 … offset + i.
        window: number of keys that a token sees at most, its own included; None is all.
    """
    new, heads, head_dim = query.shape
    assert len(key) >= offset + new, f"{len(key)} keys for {offset} past and {new} new tokens"
    first = 0 if window is None else max(offset + 1 - window, 0)  # oldest key that counts
    key, value = key[first : offset + new], value[first : offset + new]
    is_windowed = window is not None and window < offset + new - first
    if new > 1 and not is_windowed and native.attends(query, key, value):
        segment = (0, new, 0, len(key), offset - first)
        return native.attend((query, key, value), [segment], is_causal=True)
    if offset == 0 and not is_windowed:
        return _attend_batch(query[None], key[None], value[None], is_causal=True)[0]
    # The heads that share a key become rows of one call. Letting torch group them is up to 15
    # times slower for a few new tokens in bfloat16 on a CPU (measured with torch 2.13).
    rows = query.reshape(new, key.shape[1], -1, head_dim)  # (new, kv_heads, group, head_dim)
    rows = rows.permute(1, 2, 0, 3)  # (kv_heads, group, new, head_dim)
    group = rows.shape[1]
    mask = None  # a single token sees everything
    if new > 1:
        at = torch.arange(offset, offset + new, device=query.device).unsqueeze(1)
        keys = torch.arange(first, offset + new, device=query.device)
        visible = keys <= at  # (new, kv_tokens)
        if window is not None:
            visible &= keys > at - window
        mask = visible.repeat(group, 1)  # (group*new, kv_tokens)
    attended = scaled_dot_product_attention(
        rows.flatten(1, 2).unsqueeze(0),  # (1, kv_heads, group*new, head_dim)
        key.transpose(0, 1).unsqueeze(0),
        value.transpose(0, 1).unsqueeze(0),
        attn_mask=mask,
    )
    attended = attended.view(-1, group, new, head_dim).permute(2, 0, 1, 3)
    return attended.reshape(new, heads, head_dim)


def _attend_within(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], *, is_causal: bool
) -> Tensor:
    """Attend inside each segment, one call per distinct length."""
    assert sum(lengths) == len(query) == len(key), f"segments {lengths} for {len(query)} tokens"
    if len(query) == 0:
        return query
    if native.attends(query, key, value):
        starts = accumulate(lengths, initial=0)
        whole = [(at, n, at, n, 0) for at, n in zip(starts, lengths, strict=False)]
        return native.attend((query, key, value), whole, is_causal=is_causal)
    runs = [(length, len(list(run))) for length, run in groupby(filter(None, lengths))]
    if len(runs) == len({length for length, _ in runs}):  # nothing has to be picked
        attended, start = [], 0
        for length, count in runs:
            stop = start + length * count
            run = (
                each[start:stop].view(count, length, *each.shape[1:])
                for each in (query, key, value)
            )
            attended.append(_attend_batch(*run, is_causal=is_causal).flatten(0, 1))
            start = stop
        return attended[0] if len(attended) == 1 else torch.cat(attended)
    groups, inverse = _by_length(lengths, query.device)
    attended = [
        _attend_batch(query[rows], key[rows], value[rows], is_causal=is_causal).flatten(0, 1)
        for rows in groups
    ]
    return torch.cat(attended)[inverse]


def _attend_batch(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> Tensor:
    """Attend over (batch, seq, heads, head_dim) with grouped key-value heads."""
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    if is_half and query.requires_grad and query.device.type == "cpu":
        # The CPU's half-precision backward kernel is about six times slower than the float32 one.
        with torch.autocast("cpu", enabled=False):
            heads = (query.float(), key.float(), value.float())
            return _attend_batch(*heads, is_causal=is_causal).to(query.dtype)
    # Heads first in memory as well: the CPU's kernel is some 15 % faster than over strides.
    attended = scaled_dot_product_attention(
        query.transpose(1, 2).contiguous(),  # (batch, heads, seq, head_dim)
        key.transpose(1, 2).contiguous(),
        value.transpose(1, 2).contiguous(),
        is_causal=is_causal,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return attended.transpose(1, 2)  # (batch, seq, heads, head_dim)


@lru_cache(maxsize=64)  # every layer of a pass asks for the same grouping
@torch.inference_mode(mode=False)  # a cached inference tensor could not be used in training
def _by_length(lengths: tuple[int, ...], device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
    """Give, per distinct length, the (segments, length) token rows; and the way back."""
    starts = torch.tensor((0, *lengths)).cumsum(0)
    of_length: dict[int, list[int]] = {}
    for start, length in zip(starts.tolist(), lengths, strict=False):
        of_length.setdefault(length, []).append(start)
    groups = [
        torch.tensor(begin).unsqueeze(1) + torch.arange(length)  # (segments, length)
        for length, begin in of_length.items()
        if length
    ]
    inverse = torch.cat([rows.flatten() for rows in groups]).argsort()
    return tuple(rows.to(device) for rows in groups), inverse.to(device)
