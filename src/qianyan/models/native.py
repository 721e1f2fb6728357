"""This package's own C++ (`qianyan/native`), where it was compiled and the processor can run it.

The library is compiled at install when a C++ compiler is there (`hatch_build.py`) and computes with
torch's own threads. It is tried once a process on numbers whose result is known; where it is
absent, does not fit or computes wrongly, callers take PyTorch's ops. QIANYAN_NATIVE=0 turns it off.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from qianyan.settings import wants_native

LIBRARY = Path(__file__).resolve().parents[1] / "native" / "libqianyan.so"
VERSION = 3  # of native/attention.cpp
NEEDED = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_bf16", "avx512_vnni")
LANES = 16  # numbers of a register
MAX_HEAD_DIM = 128
PROBE_TOLERANCE = 0.02

Heads = tuple[Tensor, Tensor, Tensor]
"""Query (tokens, heads, head_dim), key and value (tokens, kv_heads, head_dim)."""
Segment = tuple[int, int, int, int, int]
"""First query and count, first key and count, and the number of keys before the first query's."""


@cache
def library() -> ctypes.CDLL | None:
    """Load and try the library; None where it cannot be used."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if not wants_native() or not all(capabilities.get(feature) for feature in NEEDED):
        return None
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
    except OSError:  # not compiled, or this torch brings another OpenMP
        return None
    if loaded.qianyan_native_version() != VERSION:
        return None
    return loaded if _is_right(loaded) else None


def call(name: str, *given: Tensor | int | float | None) -> None:
    """Call a function of the library with torch's number of threads as its last argument.

    Tensors are contiguous, or their strides are among the arguments.
    """
    loaded = library()
    assert loaded is not None
    if getattr(loaded, name)(*map(_as_c, given), torch.get_num_threads()):
        raise MemoryError("There is no memory left for a product.")


def _as_c(given: Tensor | int | float | None) -> object:
    if isinstance(given, Tensor):
        return ctypes.c_void_p(given.data_ptr())
    if isinstance(given, float):
        return ctypes.c_float(given)
    return given if given is None else ctypes.c_int64(given)


def attends(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attend` takes these (tokens, heads, head_dim); it has no gradient."""
    if torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value)):
        return False
    head_dim = query.shape[-1]
    fits = head_dim % LANES == 0 and head_dim <= MAX_HEAD_DIM and len(query) > 0
    return (
        fits
        and all(
            each.is_cpu and each.dtype == torch.bfloat16 and each.stride(-1) == 1
            for each in (query, key, value)
        )
        and library() is not None
    )


def attend(
    heads: Heads,
    segments: Sequence[Segment],
    *,
    is_causal: bool,
    key_rows: Tensor | None = None,
) -> Tensor:
    """Attend inside segments and give (tokens, heads, head_dim), queries of no segment undefined.

    Query i of a causal segment sees its keys 0 … offset + i. `key_rows` (int64) say where the keys
    that segments count lie in key and value; None is one after another.
    """
    loaded = library()
    assert loaded is not None
    return _attend(loaded, heads, segments, is_causal=is_causal, key_rows=key_rows)


def _attend(
    loaded: ctypes.CDLL,
    heads: Heads,
    segments: Sequence[Segment],
    *,
    is_causal: bool,
    key_rows: Tensor | None = None,
) -> Tensor:
    query, key, _ = heads
    out = torch.empty(query.shape, dtype=query.dtype)
    strides = [step for each in heads for step in each.stride()[:2]]
    sizes = [query.shape[1], key.shape[1], query.shape[2]]
    failed = loaded.qianyan_attend(
        *(ctypes.c_void_p(each.data_ptr()) for each in (*heads, out)),
        (ctypes.c_int64 * 6)(*strides),
        None if key_rows is None else ctypes.c_void_p(key_rows.data_ptr()),
        (ctypes.c_int64 * 3)(*sizes),
        (ctypes.c_int64 * (5 * len(segments)))(*(n for segment in segments for n in segment)),
        ctypes.c_int64(len(segments)),
        int(is_causal),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError("There is no memory left for attention.")
    return out


def _is_right(loaded: ctypes.CDLL) -> bool:
    """Hold attention against float32, causal, with shared heads and a part of a block."""
    random = torch.Generator().manual_seed(0)
    query = torch.randn(40, 4, 80, generator=random).bfloat16()
    key, value = (torch.randn(300, 2, 80, generator=random).bfloat16() for _ in range(2))
    own = _attend(loaded, (query, key, value), [(0, 40, 0, 300, 260)], is_causal=True).float()
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.float().transpose(0, 1),
        key.float().transpose(0, 1),
        value.float().transpose(0, 1),
        attn_mask=torch.arange(300) <= 260 + torch.arange(40).unsqueeze(1),
        enable_gqa=True,
    ).transpose(0, 1)
    return bool((own - expected).abs().max() <= PROBE_TOLERANCE * expected.abs().max())
