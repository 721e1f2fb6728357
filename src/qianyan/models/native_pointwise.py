"""Norms, rotations and activations of bfloat16 rows by our own C++ (`native/pointwise.cpp`).

One pass over memory where PyTorch makes three to seven; for the few tokens of a decoding step, one
call instead of as many. Each gives what PyTorch's operations give, but for a last bit.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from qianyan.models import native

PROBE_TOLERANCE = 0.01  # bfloat16 rounds by 0.004
QUICK = 1.702  # of the quick GELU


def takes(*tensors: Tensor) -> bool:
    """Whether these are rows for the library: bfloat16 on a processor, and no gradient wanted."""
    return (
        not torch.is_grad_enabled()
        and all(each.is_cpu and each.dtype == torch.bfloat16 for each in tensors)
        and _is_usable()
    )


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last axis of (..., size), round, and multiply by weight (size,)."""
    rows = hidden.contiguous()
    out = torch.empty_like(rows)
    size = rows.shape[-1]
    native.call("qianyan_rms_norm", rows, weight, out, rows.numel() // size, size, size, float(eps))
    return out


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (tokens, heads, head_dim) by float32 cosines and sines (tokens, 1, head_dim/2)."""
    if heads.stride(-1) != 1:
        heads = heads.contiguous()
    out = torch.empty(heads.shape, dtype=heads.dtype)
    turn = cos.contiguous(), sin.contiguous()
    native.call("qianyan_rotate", heads, *turn, out, *heads.shape, *heads.stride()[:2])
    return out


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """Give silu(gate) * up."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    native.call("qianyan_gated_silu", gate, up, out, gate.numel())
    return out


def quick_gelu(hidden: Tensor) -> Tensor:
    """Give hidden * sigmoid(1.702 hidden)."""
    hidden = hidden.contiguous()
    out = torch.empty_like(hidden)
    native.call("qianyan_quick_gelu", hidden, out, hidden.numel())
    return out


@cache
def _is_usable() -> bool:
    """Try everything once beside PyTorch's operations, on a size that fills no register."""
    if native.library() is None:
        return False
    random = torch.Generator().manual_seed(0)
    one, other = (4 * torch.randn(7, 3, 44, generator=random).bfloat16() for _ in range(2))
    weight = torch.rand(44, generator=random).bfloat16()
    cos, sin = (torch.rand(7, 1, 22, generator=random) for _ in range(2))
    first, second = one.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    normed = functional.rms_norm(one.float(), (44,), eps=1e-6)
    return (
        _is_near(rms_norm(one, weight, 1e-6), normed * weight)
        and _is_near(rotate(one, cos, sin), turned)
        and _is_near(gated_silu(one, other), functional.silu(one.float()) * other)
        and _is_near(quick_gelu(one), one.float() * torch.sigmoid(QUICK * one.float()))
    )


def _is_near(own: Tensor, expected: Tensor) -> bool:
    return bool((own - expected).abs().max() <= PROBE_TOLERANCE * expected.abs().max())
