from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.testing import assert_close

import qianyan.models.quantize as quantize
from qianyan.errors import CheckpointError, ConfigError
from qianyan.models.quantize import QuantizedLinear, pack_codes, unpack_codes
from qianyan.models.weights import load_weights, save_checkpoint


def random_layer(
    in_features: int = 64,
    out_features: int = 24,
    *,
    bits: int = 4,
    group_size: int = 16,
    bias: bool = True,
    act_order: bool = False,
) -> tuple[QuantizedLinear, Tensor]:
    """Give a filled layer and its weight, worked out one number at a time."""
    random = torch.Generator().manual_seed(in_features + out_features + bits + group_size)
    layer = QuantizedLinear(
        in_features,
        out_features,
        bits=bits,
        group_size=group_size,
        bias=bias,
        act_order=act_order,
    )
    shape = (out_features, in_features)
    codes = torch.randint(2**bits, shape, generator=random, dtype=torch.uint8)
    order = torch.randperm(in_features, generator=random) if act_order else torch.arange(shape[1])
    layer.codes.copy_(pack_codes(codes, bits))
    layer.zeros.copy_(torch.randint(2**bits, layer.zeros.shape, generator=random))
    layer.scales = torch.rand(layer.scales.shape, generator=random).half() * 0.1
    if layer.order is not None:
        layer.order.copy_(order)
    if layer.bias is not None:
        layer.bias.data = torch.randn(out_features, generator=random)
    weight = torch.zeros(shape)
    for row in range(out_features):
        for stored in range(in_features):
            group = stored // group_size
            distance = int(codes[row, stored]) - int(layer.zeros[row, group])
            weight[row, order[stored]] = distance * layer.scales[row, group].float()
    return layer, weight


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 16), (8, 16), (4, 64), (8, 64), (4, 2)])
def test_the_weight_is_code_minus_zero_times_scale(
    bits: int, group_size: int, act_order: bool
) -> None:
    layer, weight = random_layer(bits=bits, group_size=group_size, act_order=act_order)
    assert torch.equal(layer.dequantize(), weight)
    assert torch.equal(layer.dequantize(torch.bfloat16), weight.bfloat16())


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_pass_is_a_linear_with_the_dequantised_weight(
    dtype: torch.dtype, act_order: bool
) -> None:
    layer, weight = random_layer(act_order=act_order)
    assert layer.bias is not None
    layer.bias.data = layer.bias.data.to(dtype)
    hidden = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = linear(hidden, weight.to(dtype), layer.bias)
    assert layer(hidden).dtype == dtype
    assert_close(layer(hidden), expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("block_weights", [1, 64, 200, 24 * 64])
def test_a_large_weight_is_used_in_row_blocks(
    monkeypatch: pytest.MonkeyPatch, block_weights: int, bias: bool
) -> None:
    monkeypatch.setattr(quantize, "BLOCK_WEIGHTS", block_weights)
    layer, weight = random_layer(bias=bias, act_order=True)
    heights: list[int] = []
    stored_rows = layer._stored_rows

    def watch(rows: slice) -> Tensor:
        heights.append(rows.stop - rows.start)
        return stored_rows(rows)

    monkeypatch.setattr(layer, "_stored_rows", watch)
    hidden = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    assert_close(layer(hidden), linear(hidden, weight, layer.bias))
    assert sum(heights) == 24
    assert max(heights) <= max(1, block_weights // 64)
    assert torch.equal(layer.dequantize(), weight)


def test_gradients_reach_what_lies_before_a_quantised_layer() -> None:
    layer, weight = random_layer(act_order=True)
    hidden = torch.randn(7, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    layer(hidden).sum().backward()
    assert hidden.grad is not None
    assert_close(hidden.grad, weight.sum(0).expand(7, 64))


@given(data=st.data(), bits=st.sampled_from([4, 8]), rows=st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_codes_packed_and_unpacked_are_the_same(data: st.DataObject, bits: int, rows: int) -> None:
    columns = 2 * data.draw(st.integers(1, 9))
    values = data.draw(
        st.lists(st.integers(0, 2**bits - 1), min_size=rows * columns, max_size=rows * columns)
    )
    codes = torch.tensor(values, dtype=torch.uint8).view(rows, columns)
    packed = pack_codes(codes, bits)
    assert packed.shape == (rows, columns * bits // 8)
    assert torch.equal(unpack_codes(packed, bits), codes)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"bits": 3, "group_size": 16}, "bits is 3; expected 4 or 8"),
        ({"bits": 4, "group_size": 24}, "group_size is 24; expected a divisor of in_features"),
        ({"bits": 4, "group_size": 0}, "group_size is 0; expected a divisor of in_features"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, int], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        QuantizedLinear(64, 8, **sizes)


def test_an_odd_width_is_refused_with_four_bits() -> None:
    with pytest.raises(ConfigError, match="in_features is 5; expected an even number at 4 bits"):
        QuantizedLinear(5, 8, bits=4, group_size=5)


def test_four_bits_take_an_eighth_of_float32() -> None:
    layer = QuantizedLinear(256, 64, bits=4, group_size=128)
    assert layer.codes.nbytes * 8 == 256 * 64 * 4


def test_printing_says_how_the_weight_is_kept() -> None:
    assert "in_features=64, out_features=24, bias=True, bits=4, group_size=16" in str(
        random_layer()[0]
    )


def test_a_chosen_dtype_leaves_the_scales_as_they_were_published() -> None:
    layer, weight = random_layer()
    stored = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with torch.device("meta"):
        model = nn.Sequential(QuantizedLinear(64, 24, bits=4, group_size=16, bias=True))
    tensors = {f"0.{name}": tensor for name, tensor in stored.items()}
    load_weights(model, tensors.items(), dtype=torch.bfloat16)
    loaded = model[0]
    assert isinstance(loaded, QuantizedLinear)
    assert loaded.scales.dtype == torch.float16
    assert loaded.bias is not None
    assert loaded.bias.dtype == torch.bfloat16
    assert torch.equal(loaded.dequantize(), weight)


def test_a_model_with_quantised_layers_is_not_saved_as_if_it_were_plain(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), QuantizedLinear(8, 8, bits=8, group_size=8))
    with pytest.raises(CheckpointError, match=r"1 layers are quantised \(1\); expected plain"):
        save_checkpoint(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
