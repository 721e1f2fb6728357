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
from qianyan.models import native, native_products
from qianyan.models.quantize import (
    QuantizedLinear,
    pack_codes,
    quantize_weight,
    swap_plain,
    unpack_codes,
)
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


# Plain weights become codes


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def quantized(weight: Tensor, *, bits: int, group_size: int) -> QuantizedLinear:
    rows, columns = weight.shape
    layer = QuantizedLinear(columns, rows, bits=bits, group_size=group_size)
    for name, value in quantize_weight(weight, bits=bits, group_size=group_size).items():
        assert getattr(layer, name).shape == value.shape
        setattr(layer, name, value)
    return layer


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("bits", "group_size", "bound"), [(8, 512, 0.9999), (4, 128, 0.994)])
@pytest.mark.parametrize("tokens", [1, 8, 64, 128])
@pytest.mark.parametrize("rounds", [False, True])
def test_a_quantised_layer_points_where_the_plain_one_does(
    bits: int, group_size: int, bound: float, tokens: int, rounds: bool, seed: int
) -> None:
    """The bound that docs/decisions/0010 states, on random weights, with kernels and without."""
    weight = gaussian(256, 512, seed).bfloat16()
    hidden = torch.randn(tokens, 512, generator=torch.Generator().manual_seed(9)).bfloat16()
    expected = hidden.float() @ weight.float().t()
    layer = quantized(weight, bits=bits, group_size=group_size)
    assert cosine(layer(hidden).float(), expected) >= bound
    layer.use_kernels(round_activations=rounds)
    assert cosine(layer(hidden).float(), expected) >= bound - rounds * 0.0002


@pytest.mark.parametrize(("bits", "group_size"), [(8, 96), (4, 32)])
def test_every_weight_is_within_its_step_of_what_it_was(bits: int, group_size: int) -> None:
    weight = gaussian(40, 96)
    weight[3] = weight[3].abs()  # one side of zero only
    weight[4] = -weight[4].abs()
    layer = quantized(weight, bits=bits, group_size=group_size)
    error = (layer.dequantize() - weight).abs().view(40, -1, group_size)
    # Half a step by rounding; the ends also by what bfloat16 took off the scale and the zero.
    assert bool((error <= 1.1 * layer.scales.float().unsqueeze(-1)).all())
    assert float((error / layer.scales.float().unsqueeze(-1)).mean()) < 0.27  # evenly spread: 0.25


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_zero_stay_zero(bits: int) -> None:
    layer = quantized(torch.zeros(64, 64), bits=bits, group_size=64)
    assert torch.equal(layer.dequantize(), torch.zeros(64, 64))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_weight_that_is_no_number_is_refused(bits: int, value: float) -> None:
    weight = gaussian(8, 64)
    weight[5, 7] = value
    with pytest.raises(CheckpointError, match="not a finite number"):
        quantize_weight(weight, bits=bits, group_size=64)


# The same layer as kernels read it


@pytest.fixture
def has_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether our own library is used; tests ask for both, as machines differ."""
    if not request.param:
        monkeypatch.setattr(native_products, "serves", lambda *_, **__: False)
    elif native.library() is None:
        pytest.skip("native kernels are not compiled or not for this processor")
    return bool(request.param)


both_ways = pytest.mark.parametrize("has_library", [True, False], indirect=True)


@both_ways
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_another_layout_keeps_the_weight_and_the_slow_product(
    bits: int, act_order: bool, has_library: bool
) -> None:
    layer, weight = random_layer(
        256, 192, bits=bits, group_size=64 if bits == 4 else 256, act_order=act_order
    )
    if bits == 8:
        layer.zeros.fill_(128)
        weight = layer.dequantize()
    hidden = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(1))
    expected = layer(hidden).detach()
    layer.use_kernels()
    int4_layout = "native" if has_library else "interleaved"
    assert layer.layout == ("signed" if bits == 8 else int4_layout)
    assert torch.equal(layer.dequantize(), weight)
    assert torch.equal(layer(hidden), expected), "float32 keeps to the exact product"
    assert layer.bias is not None
    layer.bias.data = layer.bias.data.bfloat16()
    fast = layer(hidden.bfloat16()).detach()
    assert fast.dtype == torch.bfloat16
    assert fast.shape == expected.shape
    assert float((fast.float() - expected).norm() / expected.norm()) < 0.01
    layer.use_kernels()
    assert torch.equal(layer.dequantize(), weight), "done twice is done once"


@pytest.mark.parametrize("has_library", [False], indirect=True)
def test_row_blocks_of_an_interleaved_layer_are_whole(
    has_library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, weight = random_layer(256, 192, group_size=64)
    layer.use_kernels()
    monkeypatch.setattr(quantize, "BLOCK_WEIGHTS", 100)
    assert torch.equal(layer.dequantize(), weight)


@pytest.mark.parametrize(
    ("sizes", "bits", "group_size"),
    [((64, 24), 4, 16), ((256, 100), 4, 64), ((256, 192), 8, 64), ((256, 192), 8, 256)],
    ids=["group of 16", "100 rows", "groups of int8", "zeros off the middle"],
)
@pytest.mark.parametrize("has_library", [False], indirect=True)
def test_a_layer_that_no_kernel_takes_stays_as_it_is(
    sizes: tuple[int, int], bits: int, group_size: int, has_library: bool
) -> None:
    layer, weight = random_layer(*sizes, bits=bits, group_size=group_size)
    layer.use_kernels()
    assert layer.layout == "rows"
    assert torch.equal(layer.dequantize(), weight)


@both_ways
def test_gradients_pass_a_layer_with_kernels(has_library: bool) -> None:
    layer, weight = random_layer(256, 192, group_size=64)
    assert layer.bias is not None
    layer.bias.data = layer.bias.data.bfloat16()
    layer.use_kernels()
    hidden = torch.randn(1, 256).bfloat16().requires_grad_()
    layer(hidden).sum().backward()
    assert hidden.grad is not None
    assert_close(hidden.grad.float(), weight.sum(0, keepdim=True), rtol=0.02, atol=0.05)


# Which layers


def test_the_decoder_takes_the_kind_and_tower_and_output_take_int8() -> None:
    model = nn.ModuleDict(
        {
            "visual": nn.ModuleDict({"qkv": nn.Linear(128, 384)}),
            "mlp": nn.ModuleDict({"up_proj": nn.Linear(128, 64), "gate": nn.Linear(128, 64)}),
            "narrow": nn.Linear(96, 64, bias=False),
            "odd": nn.Linear(100, 64),
            "small": nn.Linear(32, 32),
            "lm_head": nn.Linear(128, 256),
        }
    )
    swapped = swap_plain(model, "int4")
    forms = {
        path: (part.bits, part.group_size, part.bias is not None)
        for path, part in model.named_modules()
        if isinstance(part, QuantizedLinear)
    }
    assert forms == {
        "visual.qkv": (8, 128, True),
        "mlp.up_proj": (4, 128, True),
        "narrow": (4, 32, False),
        "odd": (8, 100, True),
        "lm_head": (8, 128, True),
    }
    assert swapped == {f"{path}.weight": path for path in forms}


def test_the_output_matrix_of_a_tied_model_is_made_from_the_embeddings() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(64, 128), "lm_head": nn.Linear(128, 64)})
    model["lm_head"].weight = model["embed"].weight  # type: ignore[assignment]
    assert swap_plain(model, "int8") == {"embed.weight": "lm_head"}
    assert isinstance(model["embed"], nn.Embedding)
