"""Products with large weights by this package's own C++ (`native/products.cpp`).

A few tokens at a time, because then the time is that of reading the weights, which PyTorch's ops do
at half the memory's pace; and the two ends of an int8 product of many tokens, whose middle is
PyTorch's. Activations are bfloat16, and so is what is given back.
"""

from functools import cache

import torch
from torch import Tensor

from qianyan.models import native

FEW_TOKENS = {"bfloat16": 16, "int8": 8, "int4": 8}
"""Most tokens for which a product here is the faster one, by the weight's kind."""
COLUMNS = {"bfloat16": 32, "int8": 64, "int4": 128}
"""The columns of a weight are a multiple of these."""
GROUPS = (32, 64)  # columns of an int4 group, beside multiples of 128
SCALES = (torch.bfloat16, torch.float16, torch.float32)
PROBE_TOLERANCE = 0.01  # of the largest product; bfloat16 rounds by 0.004


def serves(kind: str, columns: int, *, group_size: int | None = None) -> bool:
    """Whether weights of a kind and so many columns (in each int4 group) can be multiplied here."""
    fits = columns % COLUMNS[kind] == 0
    if group_size is not None:
        fits = fits and (group_size % 128 == 0 or group_size in GROUPS)
    return fits and _is_usable()


def is_few(kind: str, hidden: Tensor) -> bool:
    """Whether this is the way for so many tokens."""
    return 0 < len(hidden) <= FEW_TOKENS[kind]


def bfloat16_product(hidden: Tensor, weight: Tensor) -> Tensor:
    """Give hidden @ weight.T: (tokens, in) and (out, in) to (tokens, out)."""
    hidden, out = hidden.contiguous(), _room(hidden, weight)
    native.call("qianyan_bf16_product", hidden, weight, out, *_sizes(hidden, weight))
    return out


def int8_product(hidden: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """Give hidden @ (codes * scales).T: int8 codes (out, in), scales (out,)."""
    hidden, out = hidden.contiguous(), _room(hidden, codes)
    native.call("qianyan_int8_product", hidden, codes, scales.float(), out, *_sizes(hidden, codes))
    return out


def int4_product(hidden: Tensor, codes: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    """Give hidden @ ((codes - zeros) * scales).T.

    Codes are (out, in/2) bytes, even columns in the low halves; zeros and scales (out, groups).
    """
    hidden, out = hidden.contiguous(), _room(hidden, codes)
    group_size = hidden.shape[1] // zeros.shape[1]
    weight, sizes = _int4(codes, zeros, scales), _sizes(hidden, codes)
    native.call("qianyan_int4_product", hidden, *weight, out, *sizes, group_size)
    return out


def widen(codes: Tensor, zeros: Tensor, scales: Tensor, row_scales: Tensor | None = None) -> Tensor:
    """Give int4 weights as bfloat16, or as int8 that are times `row_scales` (out,); (out, in)."""
    rows, columns = len(codes), 2 * codes.shape[1]
    dtype = torch.bfloat16 if row_scales is None else torch.int8
    out = torch.empty(rows, columns, dtype=dtype)
    sizes = rows, columns, columns // zeros.shape[1]
    native.call("qianyan_widen", *_int4(codes, zeros, scales), row_scales, out, *sizes)
    return out


def round_tokens(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round (tokens, in) to int8 numbers times a step each; columns in 16s.

    Gives numbers, steps, and by how much each token's largest number exceeds its root mean square.
    """
    hidden, tokens = hidden.contiguous(), len(hidden)
    numbers = torch.empty(hidden.shape, dtype=torch.int8)
    steps, excess = torch.empty(tokens), torch.empty(tokens)
    native.call("qianyan_round", hidden, numbers, steps, excess, tokens, hidden.shape[1])
    return numbers, steps, excess


def scale_sums(sums: Tensor, steps: Tensor, scales: Tensor, out: Tensor) -> None:
    """Write int32 sums (tokens, rows) times steps (tokens,) and scales (rows,) into `out`."""
    native.call("qianyan_scale", sums, steps, scales, None, out, *sums.shape)


def _room(hidden: Tensor, weight: Tensor) -> Tensor:
    return torch.empty(len(hidden), len(weight), dtype=hidden.dtype)


def _sizes(hidden: Tensor, weight: Tensor) -> tuple[int, int, int]:
    return len(hidden), len(weight), hidden.shape[1]


def _int4(codes: Tensor, zeros: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    return codes, zeros, scales, SCALES.index(scales.dtype)


@cache
def _is_usable() -> bool:
    """Try every product on numbers whose result is known, extreme codes among them."""
    if native.library() is None:
        return False
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 256, generator=random).bfloat16()
    hidden[-1] = 4
    weight = torch.randn(37, 256, generator=random).bfloat16()
    codes = torch.randint(-127, 128, (37, 256), generator=random, dtype=torch.int8)
    codes[0], codes[1] = 127, -127
    scales = torch.linspace(0.01, 0.02, 37)
    packed = torch.randint(0, 256, (37, 128), generator=random, dtype=torch.uint8)
    zeros = torch.arange(37 * 2, dtype=torch.uint8).view(37, 2) % 16
    pair = torch.linspace(0.01, 0.02, 74).view(37, 2).bfloat16()
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).view(37, 2, 128).float()
    fours = ((nibbles - zeros.unsqueeze(-1)) * pair.float().unsqueeze(-1)).flatten(1)
    eights = codes.float() * scales.unsqueeze(1)
    row_scales = fours.abs().amax(1) / 127
    numbers, steps, _ = round_tokens(hidden)
    rounded = torch.empty(5, 37, dtype=torch.bfloat16)
    scale_sums((numbers.int() @ codes.int().t()).contiguous(), steps, scales, rounded)
    return (
        _is_near(bfloat16_product(hidden, weight), hidden, weight.float())
        and _is_near(int8_product(hidden, codes, scales), hidden, eights)
        and _is_near(int4_product(hidden, packed, zeros, pair), hidden, fours)
        and _is_near(rounded, (numbers * steps.unsqueeze(1)), eights)
        and bool(torch.equal(widen(packed, zeros, pair), fours.bfloat16()))
        and _is_near(widen(packed, zeros, pair, row_scales) * row_scales.unsqueeze(1), fours)
    )


def _is_near(own: Tensor, hidden: Tensor, weight: Tensor | None = None) -> bool:
    expected = hidden if weight is None else hidden.float() @ weight.t()
    return bool((own.float() - expected).abs().max() <= PROBE_TOLERANCE * expected.abs().max())
