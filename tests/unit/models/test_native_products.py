import pytest
import torch
from torch import Tensor

from qianyan.models import kernels, native, native_products
from qianyan.models.layers import Linear
from qianyan.models.quantize import QuantizedLinear, quantize_weight

pytestmark = pytest.mark.skipif(
    native.library() is None, reason="native kernels are not compiled or not for this processor"
)
TOKENS = [1, 2, 3, 4, 5, 7, 33]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def error(own: Tensor, expected: Tensor) -> float:
    return float((own.double() - expected.double()).norm() / expected.double().norm())


def exact(hidden: Tensor, layer: QuantizedLinear) -> Tensor:
    return hidden.double() @ layer.dequantize().double().t()


def quantised(out: int, columns: int, *, bits: int, group: int | None = None) -> QuantizedLinear:
    layer = QuantizedLinear(columns, out, bits=bits, group_size=group or columns)
    parts = quantize_weight(numbers(out, columns), bits=bits, group_size=group or columns)
    for name, value in parts.items():
        setattr(layer, name, value)
    return layer


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("out", "columns"), [(1, 32), (5, 96), (130, 1536)])
def test_bfloat16(tokens: int, out: int, columns: int) -> None:
    hidden, weight = numbers(tokens, columns), numbers(out, columns, seed=1)
    own = native_products.bfloat16_product(hidden, weight)
    assert error(own, hidden.double() @ weight.double().t()) < 3e-3


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("out", "columns"), [(1, 64), (5, 192), (130, 8960)])
def test_int8_is_as_fine_as_bfloat16(tokens: int, out: int, columns: int) -> None:
    codes = torch.randint(-127, 128, (out, columns), dtype=torch.int8)
    codes[0] = 127
    scales = torch.linspace(0.01, 0.02, out)
    hidden = numbers(tokens, columns)
    hidden[0] = hidden.abs().max()  # the largest sums there can be
    own = native_products.int8_product(hidden, codes, scales)
    expected = hidden.double() @ (codes.double() * scales.double().unsqueeze(1)).t()
    assert error(own, expected) < 4e-3


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("group", [32, 64, 128, 384])
@pytest.mark.parametrize("scales", [torch.bfloat16, torch.float16, torch.float32])
def test_int4_is_as_fine_as_bfloat16(tokens: int, group: int, scales: torch.dtype) -> None:
    layer = quantised(37, 384, bits=4, group=group)
    layer.scales = layer.scales.to(scales)
    hidden = numbers(tokens, 384)
    own = native_products.int4_product(hidden, layer.codes, layer.zeros, layer.scales)
    assert error(own, exact(hidden, layer)) < 3e-3
    widened = native_products.widen(layer.codes, layer.zeros, layer.scales)
    assert torch.equal(widened, layer.dequantize().bfloat16())


def test_every_row_and_token_has_its_own_scale() -> None:
    hidden = numbers(50, 256) * torch.logspace(-3, 3, 50).unsqueeze(1).bfloat16()
    layer = quantised(40, 256, bits=8)
    layer.use_kernels(round_activations=True)
    out = layer(hidden)
    expected = exact(hidden, layer)
    for token in range(50):
        assert error(out[token], expected[token]) < 0.02
    assert error(layer(hidden[:4]), expected[:4]) < 4e-3


@pytest.mark.parametrize("bits", [8, 4])
def test_rounded_activations_err_by_about_one_in_a_hundred(bits: int) -> None:
    hidden = numbers(200, 512)
    fine = quantised(96, 512, bits=bits, group=None if bits == 8 else 128)
    fine.use_kernels()
    coarse = quantised(96, 512, bits=bits, group=None if bits == 8 else 128)
    coarse.use_kernels(round_activations=True)
    expected = exact(hidden, fine)
    assert error(fine(hidden), expected) < 4e-3
    assert 4e-3 < error(coarse(hidden), expected) < 0.02
    assert error(coarse(hidden[:1]), expected[:1]) < 4e-3, "few tokens are not rounded"


def test_tokens_that_stand_out_are_not_rounded() -> None:
    hidden = numbers(60, 512)
    hidden[7, 3] = 300.0  # all else would be rounded to nothing
    layer = quantised(64, 512, bits=8)
    layer.use_kernels(round_activations=True)
    weight = layer.dequantize().double()
    own, expected = layer(hidden)[7].double(), hidden[7].double() @ weight.t()
    # seen without the number that stands out
    rest = expected - 300.0 * weight[:, 3]
    assert float((own - expected).norm() / rest.norm()) < 0.1
    numbers_alone, step, excess = native_products.round_tokens(hidden)
    assert excess[7] > kernels.MOST_EXCESS > excess[[0, 20, 59]].max()
    assert numbers_alone[7].count_nonzero() < 256, "half of it is gone"
    assert step[7] == pytest.approx(300 / 127)


def test_nothing_but_zeros_gives_zeros() -> None:
    hidden = torch.zeros(40, 256).bfloat16()
    for bits in (8, 4):
        layer = quantised(64, 256, bits=bits, group=None if bits == 8 else 64)
        layer.use_kernels(round_activations=True)
        assert not layer(hidden).any()
        assert not layer(hidden[:1]).any()


def test_a_linear_layer_is_the_same_for_few_and_many_tokens() -> None:
    layer = Linear(320, 100).bfloat16()
    hidden = numbers(40, 320)
    with torch.no_grad():
        assert error(layer(hidden[:3]), layer(hidden)[:3]) < 4e-3
        assert error(layer(hidden[:3].unsqueeze(0))[0], layer(hidden)[:3]) < 4e-3
    layer(hidden[:3]).sum().backward()
    assert layer.weight.grad is not None


def test_sizes_that_no_kernel_takes_are_computed_otherwise() -> None:
    assert not native_products.serves("bfloat16", 48)
    assert not native_products.serves("int8", 96)
    assert not native_products.serves("int4", 192, group_size=64)
    assert not native_products.serves("int4", 256, group_size=16)
    layer = Linear(48, 10).bfloat16()
    with torch.no_grad():
        assert layer(numbers(2, 48)).shape == (2, 10)
