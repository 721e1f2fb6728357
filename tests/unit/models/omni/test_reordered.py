"""Weights in the processor's own order: the same products, and the same state."""

import pytest
import torch
from torch.nn.functional import gelu, linear

from qianyan.models.omni import reordered
from qianyan.models.omni.reordered import ReorderedLinear


@pytest.mark.parametrize("has_gelu", [False, True])
@pytest.mark.parametrize("rows", [1, 48, 130])
@torch.inference_mode()
def test_products_are_those_of_the_plain_map(rows: int, has_gelu: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    layer = ReorderedLinear(72, 40, gelu=has_gelu)
    layer.weight.data.copy_(torch.randn(40, 72, generator=generator))
    weight = layer.weight.data.clone()
    hidden = torch.randn(2, rows, 72, generator=generator)
    expected = linear(hidden, weight, layer.bias)
    expected = gelu(expected, approximate="tanh") if has_gelu else expected
    torch.testing.assert_close(layer(hidden), expected)
    layer.reorder()
    torch.testing.assert_close(layer(hidden), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(layer.state_dict()["weight"], weight)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_the_weight_is_there_once() -> None:
    layer = ReorderedLinear(64, 64)
    layer.reorder()
    assert sum(parameter.numel() for parameter in layer.parameters()) == 64


def test_without_the_operations_everything_stays_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reordered, "_is_usable", lambda: False)
    layer = ReorderedLinear(8, 8)
    layer.reorder()
    assert layer.weight.shape == (8, 8)
    assert layer(torch.ones(1, 8)).requires_grad
