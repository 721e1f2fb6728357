"""Products of bfloat16 activations with int8 and int4 weights, for processors.

Of a few tokens by our own library where it is (`native_products.py`), else by PyTorch's ops.

The ops are private to PyTorch: a release or a processor may lack one, or compute it wrongly. Each
is tried once a process on numbers whose product is known, the extreme codes among them (without
VNNI, sums of 16 bits can overflow); where it fails, callers multiply floats instead. All ops read
each weight once from memory, so few tokens are limited by bandwidth and many by arithmetic:
measured on 2 cores with AVX512-BF16, 1536 x 8960 and 8960 x 1536
(`benchmarks/linear_kernels.py`), the limits below are where the next way becomes faster.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from qianyan.models import native_products

INT8_PACK, INT8_SUMS = "_weight_int8pack_mm", "_int_mm"
INT4_PACK, INT4_LAYOUT = "_weight_int4pack_mm_for_cpu", "_convert_weight_to_int4pack_for_cpu"
INT8_ZERO = 128  # the code that means 0 where codes are unsigned
PACK_TOKENS = 4  # most tokens for _weight_int8pack_mm
SPLIT_TOKENS = 32  # most tokens for _int_mm on activations of twice 8 bits
INT4_TOKENS = 96  # most tokens for _weight_int4pack_mm_for_cpu
INT4_GROUPS = (32, 64, 128, 256)  # columns that may share a scale
INT4_BLOCKS = (64, 32)  # rows that the packed form interleaves: with AVX-512, and without
FLOAT_WEIGHTS = 2**22  # weights that exist in bfloat16 at one time, 8 MiB
SUMS = 2**22  # int32 sums that exist at one time, 16 MiB
MOST_EXCESS = 12.0
"""How far a token's largest number may exceed its root mean square to be rounded to 8 bits.

Rounding then errs by at most 3 % of the root mean square; what exceeds it is multiplied as twice 8
bits. Numbers drawn from a bell curve exceed theirs by 4.
"""
LOW_STEPS = 254  # what is left of an activation after its first 8 bits is at most 127 of these
ABSENT = (AttributeError, RuntimeError, TypeError)  # no such op, not built here, other arguments
PROBE_TOLERANCE = 0.02  # of the largest product; bfloat16 rounds by 0.004


def takes(hidden: Tensor) -> bool:
    """Whether the products here serve these activations; none has a gradient."""
    is_trained = torch.is_grad_enabled() and hidden.requires_grad
    return hidden.is_cpu and hidden.dtype == torch.bfloat16 and not is_trained


def int8_product(hidden: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """Give hidden @ (codes * scales).T, (tokens, out): codes int8 (out, in), scales (out,)."""
    tokens = len(hidden)
    if native_products.is_few("int8", hidden) and native_products.serves("int8", hidden.shape[1]):
        return native_products.int8_product(hidden, codes, scales)
    if 0 < tokens <= PACK_TOKENS and has_int8pack():
        return _call(INT8_PACK, hidden.contiguous(), codes, scales.to(hidden.dtype))
    if 0 < tokens <= SPLIT_TOKENS and has_int_mm():
        return _split_product(hidden, codes, scales)
    out = hidden.new_empty(tokens, len(codes))
    for rows in _float_blocks(codes.shape):
        # Codes are exact in bfloat16, and there are fewer products than weights to scale.
        out[:, rows] = linear(hidden, codes[rows].to(hidden.dtype)) * scales[rows].to(hidden.dtype)
    return out


def rounded_product(hidden: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """Do the same with activations of many tokens rounded to 8 bits, each token by its own step.

    A token with numbers that stand out (`MOST_EXCESS`) is multiplied as finely as elsewhere.
    """
    numbers, steps, excess = _round_tokens(hidden)
    out = hidden.new_empty(len(hidden), len(codes))
    for rows in _row_blocks(len(hidden), SUMS // len(codes)):
        sums = _call(INT8_SUMS, numbers[rows], codes.t())
        if native_products.serves("int8", hidden.shape[1]):
            native_products.scale_sums(sums, steps[rows], scales.float(), out[rows])
        else:
            out[rows] = (sums * steps[rows].unsqueeze(1) * scales.float()).to(hidden.dtype)
    coarse = (excess > MOST_EXCESS).nonzero().squeeze(1)
    for some in torch.split(coarse, max(1, SUMS // len(codes) // 2)):
        out[some] = _split_product(hidden[some], codes, scales)
    return out


def _round_tokens(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if native_products.serves("int8", hidden.shape[1]):
        return native_products.round_tokens(hidden)
    values = hidden.float()
    largest = values.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    steps = largest / 127
    numbers = (values / steps.unsqueeze(1)).round().to(torch.int8)
    return numbers, steps, largest / values.square().mean(1).sqrt()


def _call(name: str, *given: Tensor | int) -> Tensor:
    product: Tensor = getattr(torch.ops.aten, name)(*given)
    return product


def _split_product(hidden: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """Multiply activations as two int8 numbers each; together finer than bfloat16."""
    values = hidden.float()
    step = (values.abs().amax(1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    values /= step  # (tokens, in), -127 to 127
    high = values.round()
    low = ((values - high) * LOW_STEPS).round()
    products = _call(INT8_SUMS, torch.cat((high, low)).to(torch.int8), codes.t()).float()
    highs, lows = products.chunk(2)  # (tokens, out) each
    return ((highs + lows / LOW_STEPS) * step * scales.float()).to(hidden.dtype)


def int4_row_scales(zeros: Tensor, scales: Tensor) -> Tensor:
    """Give for each row the step of int8 numbers that its 4-bit weights fit into, (out,)."""
    farthest = torch.maximum(zeros, 15 - zeros).float() * scales.float()
    return (farthest.amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)


def int4_rows_product(
    hidden: Tensor, codes: Tensor, zeros: Tensor, scales: Tensor, row_scales: Tensor | None
) -> Tensor:
    """Give hidden times a weight of 4-bit codes as they are stored, (out, in/2), by our library.

    Many tokens meet weights made bfloat16 some rows at a time; or, with `row_scales`, int8 ones
    and rounded activations, which errs much less than the 4 bits do.
    """
    if native_products.is_few("int4", hidden):
        return native_products.int4_product(hidden, codes, zeros, scales)
    is_rounded = row_scales is not None and len(hidden) > SPLIT_TOKENS and has_int_mm()
    pieces = []
    for rows in _float_blocks((len(codes), hidden.shape[1])):
        own = codes[rows], zeros[rows], scales[rows]
        if is_rounded and row_scales is not None:
            weight = native_products.widen(*own, row_scales[rows])
            pieces.append(rounded_product(hidden, weight, row_scales[rows]))
        else:
            pieces.append(linear(hidden, native_products.widen(*own)))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def int4_product(hidden: Tensor, packed: Tensor, scales_and_zeros: Tensor) -> Tensor:
    """Give hidden times a weight of `pack_int4`, (tokens, out).

    `scales_and_zeros` is (groups, out, 2) of `int4_scales`.
    """
    if 0 < len(hidden) <= INT4_TOKENS:
        return _multiply_int4(hidden, packed, scales_and_zeros)
    out = hidden.new_empty(len(hidden), len(packed))
    for rows in _float_blocks((len(packed), hidden.shape[1])):
        scale, zero = scales_and_zeros[:, rows].permute(2, 1, 0).unsqueeze(-1)  # (rows, groups, 1)
        codes = unpack_int4(packed[rows]).view(torch.int8).view(*scale.shape[:2], -1)
        weight = (codes - 8).to(hidden.dtype) * scale + zero
        out[:, rows] = linear(hidden, weight.flatten(-2))
    return out


def _multiply_int4(hidden: Tensor, packed: Tensor, pair: Tensor) -> Tensor:
    size = hidden.shape[1] // len(pair)
    return _call(INT4_PACK, hidden.contiguous(), packed, size, pair)


def _float_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut (out, in) into runs of rows that are small enough as floats."""
    height = max(1, FLOAT_WEIGHTS // shape[1] // INT4_BLOCKS[0]) * INT4_BLOCKS[0]
    yield from _row_blocks(shape[0], height)


def _row_blocks(rows: int, height: int) -> Iterator[slice]:
    for top in range(0, rows, max(1, height)):
        yield slice(top, min(top + max(1, height), rows))


def int4_scales(zeros: Tensor, scales: Tensor) -> Tensor:
    """Give (groups, out, 2) bfloat16 for zeros and scales, (out, groups): scale, and what 8 means.

    The kernel's weight is (code - 8) * scale + zero. Rounding the second number errs by no more
    than rounding the largest weights of the group to bfloat16 does.
    """
    floats = scales.float()
    shift = (8 - zeros.float()) * floats
    return torch.stack((floats.t(), shift.t()), dim=-1).to(torch.bfloat16).contiguous()


def pack_int4(codes: Tensor, block: int) -> Tensor:
    """Interleave uint8 codes (out, in), out a multiple of `block`: (out, in/2) bytes.

    The bytes of a column lie together: row i of the upper half block in the low bits, row i of the
    lower one in the high bits (`weight_to_int4pack_kernel` of PyTorch's int4mm_kernel.cpp).
    """
    halves = codes.view(-1, 2, block // 2, codes.shape[1])  # (blocks, 2, half, in)
    pairs = halves[:, 0] | (halves[:, 1] << 4)  # (blocks, half, in)
    return pairs.transpose(1, 2).reshape(len(codes), -1)


def unpack_int4(packed: Tensor) -> Tensor:
    """Give back the codes, uint8 (out, in), of whole blocks."""
    block = int4_block()
    pairs = packed.view(-1, 2 * packed.shape[1], block // 2)  # (blocks, in, half)
    codes = torch.stack((pairs & 15, pairs >> 4), dim=2).flatten(2)  # (blocks, in, block)
    return codes.transpose(1, 2).reshape(len(packed), -1)


@cache
def has_int8pack() -> bool:
    """Whether `_weight_int8pack_mm` is here and right."""
    codes, scales = _probe_codes(), torch.linspace(0.01, 0.02, 128).bfloat16()
    weight = codes.float() * scales.float().unsqueeze(1)
    return all(
        _is_right(lambda x: _call(INT8_PACK, x, codes, scales), weight, tokens)
        for tokens in (1, PACK_TOKENS)
    )


@cache
def has_int_mm() -> bool:
    """Whether `_int_mm` is here and right, its extreme sums included."""
    codes, scales = _probe_codes(), torch.linspace(0.01, 0.02, 128)
    weight = codes.float() * scales.unsqueeze(1)
    return all(
        _is_right(lambda x: _split_product(x, codes, scales), weight, tokens)
        for tokens in (1, SPLIT_TOKENS)
    )


@cache
def int4_block() -> int:
    """Give the rows that `_weight_int4pack_mm_for_cpu` interleaves; 0 where it cannot be used."""
    codes = (_probe_codes().view(torch.uint8) + INT8_ZERO) >> 4  # (128, 256)
    scales = torch.linspace(0.01, 0.02, 2 * len(codes)).view(-1, 2)
    zeros = torch.arange(2 * len(codes), dtype=torch.uint8).view(-1, 2) % 16
    distances = codes.view(len(codes), 2, -1).float() - zeros.float().unsqueeze(-1)
    weight = (distances * scales.unsqueeze(-1)).flatten(1)
    pair = int4_scales(zeros, scales)
    try:
        theirs = _call(INT4_LAYOUT, codes.int(), 1)
    except ABSENT:
        return 0
    for block in INT4_BLOCKS:
        packed = pack_int4(codes, block)
        if torch.equal(packed, theirs) and all(
            _is_right(partial(_multiply_int4, packed=packed, pair=pair), weight, tokens)
            for tokens in (1, 4, INT4_TOKENS)
        ):
            return block
    return 0


def _probe_codes() -> Tensor:
    """Draw int8 codes (128, 256), whole rows of the extremes among them."""
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (128, 256), generator=random, dtype=torch.int8)
    codes[0], codes[1] = 127, -127
    return codes


def _is_right(multiply: Callable[[Tensor], Tensor], weight: Tensor, tokens: int) -> bool:
    """Hold a kernel against float32 on random activations, the last all as large as possible."""
    random = torch.Generator().manual_seed(1)
    hidden = torch.randn(tokens, weight.shape[1], generator=random).bfloat16()
    hidden[-1] = 4
    try:
        product = multiply(hidden).float()
    except ABSENT:
        return False
    expected = hidden.float() @ weight.t()
    error = (product - expected).abs().amax(1)
    return bool((error <= PROBE_TOLERANCE * expected.abs().amax(1)).all())
