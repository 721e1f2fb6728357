import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from qianyan.models import native, native_pointwise
from qianyan.models.layers import MLP, RMSNorm
from qianyan.models.rope import axial_rope, rotate

pytestmark = pytest.mark.skipif(
    native.library() is None, reason="native kernels are not compiled or not for this processor"
)
LAST_BIT = 2**-8  # at most this share of a number is lost by rounding it
SIZES = [(1, 16), (3, 40), (700, 96), (5, 1)]


def numbers(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=random)).bfloat16()


def assert_near(own: Tensor, expected: Tensor, *, bits: int = 1) -> None:
    """Equal, but for a last bit of bfloat16 at each of some roundings."""
    assert own.dtype == torch.bfloat16
    assert own.shape == expected.shape
    gap = (own.double() - expected.double()).abs()
    assert bool((gap <= 2.02 * bits * LAST_BIT * expected.double().abs() + 1e-6).all()), gap.max()


def by_torch(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    mean = hidden.float().square().mean(-1, keepdim=True)
    return (hidden.float() / (mean + eps).sqrt()).bfloat16() * weight


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("scale", [0.0, 1e-3, 3.0, 1e4])
def test_the_norm(shape: tuple[int, int], scale: float) -> None:
    hidden, weight = numbers(*shape, scale=scale), numbers(shape[1], seed=1)
    own = native_pointwise.rms_norm(hidden, weight, 1e-6)
    assert_near(own, by_torch(hidden, weight, 1e-6), bits=2)


@pytest.mark.parametrize("shape", SIZES)
def test_activations(shape: tuple[int, int]) -> None:
    gate, up = numbers(*shape), numbers(*shape, seed=1)
    gate[0, 0] = 0.0
    assert_near(native_pointwise.gated_silu(gate, up), silu(gate) * up)
    expected = gate * (1.702 * gate).sigmoid()
    assert_near(native_pointwise.quick_gelu(gate), expected)


def test_activations_of_very_large_numbers_are_numbers() -> None:
    hidden = torch.tensor([[-3e38, -1e4, -90.0, 90.0, 1e4, 3e38]]).bfloat16()
    ones = torch.ones_like(hidden)
    for own in (
        native_pointwise.gated_silu(hidden, ones),
        native_pointwise.quick_gelu(hidden),
    ):
        assert bool(own.isfinite().all())
        assert_near(own[:, 3:], hidden[:, 3:])
        assert float(own[:, :3].abs().max()) < 1e-3 * 3e38


@pytest.mark.parametrize("tokens", [1, 9, 700])
@pytest.mark.parametrize(("heads", "dim"), [(1, 8), (3, 80), (2, 128)])
def test_rotation_whatever_the_layout(tokens: int, heads: int, dim: int) -> None:
    joint = numbers(tokens, 3, heads, dim)
    at = torch.stack((torch.arange(tokens), torch.arange(tokens) % 7), dim=1)
    rope = axial_rope(at, dim)
    for own in joint.unbind(1):
        first, second = own.float().chunk(2, dim=-1)
        cos, sin = rope
        expected = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        with torch.no_grad():
            turned = rotate(own, *rope)
        gap = (turned.float() - expected).abs()
        size = own.float().abs().amax(-1, keepdim=True)
        assert bool((gap <= 1.5 * LAST_BIT * size).all())  # sums reach 1.41 times the size


def test_layers_give_what_they_give_with_gradients_on() -> None:
    norm, mlp = RMSNorm(64, 1e-6).bfloat16(), MLP(64, 96, bias=True).bfloat16()
    hidden = numbers(50, 64)
    slow_norm, slow_mlp = norm(hidden), mlp(hidden)
    with torch.no_grad():
        assert native_pointwise.takes(hidden)
        assert_near(norm(hidden), slow_norm.detach(), bits=2)
        gap = (mlp(hidden) - slow_mlp.detach()).float().norm() / slow_mlp.detach().float().norm()
        assert float(gap) < 5e-3
    assert not native_pointwise.takes(hidden), "gradients are on"
    with torch.no_grad():
        assert not native_pointwise.takes(hidden.float())


def test_no_rows_stay_no_rows() -> None:
    none = torch.empty(0, 32).bfloat16()
    assert native_pointwise.rms_norm(none, numbers(32), 1e-6).shape == (0, 32)
    assert native_pointwise.gated_silu(none, none).shape == (0, 32)
