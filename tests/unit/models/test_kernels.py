"""The kernels against float32 products; without them the module must give the same answers."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from qianyan.models import kernels

TOKENS = (1, 3, 4, 5, 32, 33, 96, 97, 200)  # both sides of every limit
PROBES = (kernels.has_int8pack, kernels.has_int_mm, kernels.int4_block)


@pytest.fixture(autouse=True)
def fresh_probes() -> Iterator[None]:
    yield
    for probe in PROBES:
        probe.cache_clear()


def relative_error(product: Tensor, exact: Tensor) -> float:
    return float((product.float() - exact).norm() / exact.norm())


def int8_case(rows: int = 192, columns: int = 320) -> tuple[Tensor, Tensor, Tensor]:
    """Give codes with both extremes, bfloat16 scales over four decades, and the exact weight."""
    random = torch.Generator().manual_seed(rows)
    codes = torch.randint(-127, 128, (rows, columns), generator=random, dtype=torch.int8)
    codes[0], codes[1], codes[2] = 127, -127, 0
    scales = torch.logspace(-4, 0, rows).bfloat16()
    return codes, scales, codes.float() * scales.float().unsqueeze(1)


def int4_case(rows: int = 192, columns: int = 256, size: int = 64) -> tuple[Tensor, ...]:
    """Give codes, zeros, scales and the exact weight."""
    random = torch.Generator().manual_seed(size)
    codes = torch.randint(16, (rows, columns), generator=random, dtype=torch.uint8)
    zeros = torch.randint(16, (rows, columns // size), generator=random, dtype=torch.uint8)
    zeros[0], zeros[1] = 0, 15
    scales = (torch.rand(zeros.shape, generator=random) + 0.01).half()
    distances = codes.view(rows, -1, size).float() - zeros.float().unsqueeze(-1)
    return codes, zeros, scales, (distances * scales.float().unsqueeze(-1)).flatten(1)


def activations(tokens: int, columns: int) -> Tensor:
    """Draw activations with an outlier, as real ones have."""
    hidden = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens))
    hidden[0, 0] = 100
    return hidden.bfloat16()


@pytest.mark.parametrize("tokens", TOKENS)
def test_int8_products_err_no_more_than_bfloat16(tokens: int) -> None:
    codes, scales, weight = int8_case()
    hidden = activations(tokens, weight.shape[1])
    product = kernels.int8_product(hidden, codes, scales)
    assert product.dtype == torch.bfloat16
    assert relative_error(product, hidden.float() @ weight.t()) < 0.004


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("size", kernels.INT4_GROUPS)
def test_int4_products_err_no_more_than_bfloat16(tokens: int, size: int) -> None:
    if not kernels.int4_block():
        pytest.skip("no int4 kernel in this PyTorch")
    codes, zeros, scales, weight = int4_case(size=size)
    hidden = activations(tokens, weight.shape[1])
    packed = kernels.pack_int4(codes, kernels.int4_block())
    product = kernels.int4_product(hidden, packed, kernels.int4_scales(zeros, scales))
    assert relative_error(product, hidden.float() @ weight.t()) < 0.006


@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize("value", [0.0, 1e-38, 1e30])
def test_extreme_activations_stay_numbers(tokens: int, value: float) -> None:
    codes, _, _ = int8_case()
    hidden = torch.full((tokens, codes.shape[1]), value).bfloat16()
    product = kernels.int8_product(hidden, codes, torch.full((len(codes),), 1e-5).bfloat16())
    expected = (hidden.float() @ codes.float().t()) * 1e-5
    assert bool(product.isfinite().all())
    assert_close(product.float(), expected, rtol=0.02, atol=1e-38)


@pytest.mark.parametrize("block", kernels.INT4_BLOCKS)
def test_codes_interleaved_lie_where_the_layout_says(block: int) -> None:
    codes, *_ = int4_case(rows=2 * block, columns=32, size=32)
    packed = kernels.pack_int4(codes, block).view(2, 32, block // 2)
    for row in (0, 1, block // 2, block - 1, block, 2 * block - 1):
        half, lane = divmod(row % block, block // 2)
        assert torch.equal((packed[row // block, :, lane] >> (4 * half)) & 15, codes[row])


def test_codes_interleaved_and_back_are_the_same() -> None:
    if not kernels.int4_block():
        pytest.skip("no int4 kernel in this PyTorch")
    codes, *_ = int4_case()
    packed = kernels.pack_int4(codes, kernels.int4_block())
    assert torch.equal(kernels.unpack_int4(packed), codes)


@pytest.mark.parametrize("tokens", [1, 8, 50])
def test_without_the_ops_products_are_the_same(
    monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    codes, scales, weight = int8_case()
    hidden = activations(tokens, weight.shape[1])
    for name in ("INT8_PACK", "INT8_SUMS", "INT4_PACK"):
        monkeypatch.setattr(kernels, name, "no_such_op")
    for probe in PROBES:
        probe.cache_clear()
        assert not probe()
    product = kernels.int8_product(hidden, codes, scales)
    assert relative_error(product, hidden.float() @ weight.t()) < 0.004


def test_an_op_that_computes_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products with the largest codes are wrong, as where sums of 16 bits overflow."""
    real = kernels._call

    def overflow(name: str, *given: Tensor | int) -> Tensor:
        product = real(name, *given)
        if name != kernels.INT4_LAYOUT:
            product[:, 0] = 0  # the row of the largest codes
        return product

    for probe in PROBES:
        probe.cache_clear()
    monkeypatch.setattr(kernels, "_call", overflow)
    assert not any(probe() for probe in PROBES)


def test_only_bfloat16_activations_without_gradients_are_taken() -> None:
    hidden = torch.zeros(1, 4, dtype=torch.bfloat16)
    assert kernels.takes(hidden)
    assert not kernels.takes(hidden.float())
    assert not kernels.takes(hidden.to("meta"))
    assert not kernels.takes(hidden.requires_grad_())
    with torch.no_grad():
        assert kernels.takes(hidden)
