"""Headers against models: what is packed, what does not fit, and the official files' shapes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qianyan.errors import CheckpointError
from qianyan.models.packed import quantized_modules, swap_packed, unpack_tensors
from qianyan.models.quantization import QuantizationConfig
from qianyan.models.quantize import QuantizedLinear
from qianyan.models.qwen import QWenLMHeadModel, qwen_config
from qianyan.models.registry import build_model, find_architecture
from qianyan.models.weights import TensorSpec, load_weights

INT4 = QuantizationConfig(quant_method="gptq", bits=4, group_size=32, format="gptq")
INT4_ACT = QuantizationConfig(
    quant_method="gptq", bits=4, group_size=32, format="gptq", desc_act=True
)
AWQ = QuantizationConfig(
    quant_method="awq",
    bits=4,
    group_size=32,
    format="gemm",
    modules_to_not_convert=("visual",),
)


class Small(nn.Module):
    """A packed layer, a plain one, and something that is no Linear."""

    def __init__(self, inputs: int = 64, outputs: int = 16) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, outputs, bias=False)
        self.last = nn.Linear(16, 4)
        self.norm = nn.LayerNorm(4)


def plain_tensors() -> dict[str, Tensor]:
    return {
        name: tensor.detach()
        for name, tensor in Small().named_parameters()
        if not name.startswith("first")
    }


def gptq_tensors() -> dict[str, Tensor]:
    """The published form of a 64 to 16 layer whose codes and zeros are 0, in groups of 32."""
    return plain_tensors() | {
        "first.qweight": torch.zeros(8, 16, dtype=torch.int32),
        "first.qzeros": torch.full((2, 2), -1, dtype=torch.int32),
        "first.scales": torch.ones(2, 16, dtype=torch.float16),
        "first.g_idx": torch.arange(64, dtype=torch.int32) // 32,
    }


def awq_tensors() -> dict[str, Tensor]:
    return plain_tensors() | {
        "first.qweight": torch.zeros(64, 2, dtype=torch.int32),
        "first.qzeros": torch.zeros(2, 2, dtype=torch.int32),
        "first.scales": torch.ones(2, 16, dtype=torch.float16),
    }


def load(
    model: nn.Module, tensors: dict[str, Tensor], config: QuantizationConfig | None
) -> nn.Module:
    listed = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    packed = swap_packed(model, listed, config, {})
    load_weights(model, unpack_tensors(tensors.items(), packed))
    return model


def test_names_show_what_is_packed() -> None:
    names = ["a.b.qweight", "a.b.scales", "a.weight", "c.g_idx", "a.b.bias", "qweight"]
    assert quantized_modules(names) == {
        "a.b": {"qweight", "scales"},
        "c": {"g_idx"},
        "": {"qweight"},
    }


@pytest.mark.parametrize("config", [INT4, INT4_ACT])
def test_only_packed_layers_are_swapped(config: QuantizationConfig) -> None:
    model = load(Small(), gptq_tensors(), config)
    assert isinstance(model.first, QuantizedLinear)
    assert type(model.last) is nn.Linear
    assert not model.first.dequantize().any()


def test_without_act_order_g_idx_may_be_missing() -> None:
    tensors = gptq_tensors()
    del tensors["first.g_idx"]
    model = load(Small(), tensors, INT4)
    assert isinstance(model.first, QuantizedLinear)


def test_a_plain_checkpoint_is_passed_on_untouched() -> None:
    model, other = Small(), Small()
    load(model, dict(other.named_parameters()), None)
    assert type(model.first) is nn.Linear
    assert torch.equal(model.first.weight, other.first.weight)


def test_a_layer_is_passed_on_as_soon_as_its_last_part_is_there() -> None:
    tensors = gptq_tensors()
    listed = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    packed = swap_packed(Small(), listed, INT4, {})
    parts = [name for name in tensors if name.startswith("first")]
    order = [*parts[:2], "last.weight", *parts[2:], "last.bias"]
    names = [name for name, _ in unpack_tensors(((n, tensors[n]) for n in order), packed)]
    assert names[0] == "last.weight"
    assert names[-1] == "last.bias"
    assert set(names[1:-1]) == {"first.codes", "first.zeros", "first.scales"}


def test_parts_are_waited_for_whatever_the_prefix(tiny_config: dict[str, Any]) -> None:
    """Newer tools prefix the names; the model's layer is found all the same."""
    model = build_model(find_architecture(tiny_config).read(tiny_config))
    name = "model.language_model.layers.1.self_attn.o_proj"
    tensors = {
        f"{name}.qweight": torch.zeros(32, 4, dtype=torch.int32),
        f"{name}.qzeros": torch.zeros(1, 4, dtype=torch.int32),
        f"{name}.scales": torch.ones(1, 32),
    }
    listed = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    packed = swap_packed(model, listed, AWQ, {"model.language_model.": "model."})
    assert list(packed) == [name]
    assert isinstance(model.get_submodule("model.layers.1.self_attn.o_proj"), QuantizedLinear)


def changed(tensors: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    parts = {f"first.{part}": tensor for part, tensor in changes.items()}
    return {n: t for n, t in (tensors | parts).items() if t is not None}  # type: ignore[misc]


INT = torch.int32
BAD: list[tuple[str, QuantizationConfig | None, dict[str, Tensor], str]] = [
    (
        "missing-qzeros",
        INT4,
        changed(gptq_tensors(), qzeros=None),
        r"does not fit Small; packed tensors: 1 missing \(first\.qzeros\)\.",
    ),
    (
        "missing-g_idx",
        INT4_ACT,
        changed(gptq_tensors(), g_idx=None),
        r"1 missing \(first\.g_idx\)",
    ),
    (
        "extra-g_idx",
        AWQ,
        changed(awq_tensors(), g_idx=torch.zeros(64, dtype=INT)),
        r"1 unexpected \(first\.g_idx\)",
    ),
    (
        "shape",
        INT4,
        changed(gptq_tensors(), qweight=torch.zeros(16, 16, dtype=INT)),
        r"1 of another form \(first\.qweight is \(16, 16\) int32, not \(8, 16\) int32\)",
    ),
    (
        "other-layout",
        AWQ,
        changed(gptq_tensors(), g_idx=None),
        r"first\.qweight is \(8, 16\) int32, not \(64, 2\) int32",
    ),
    (
        "dtype",
        INT4,
        changed(gptq_tensors(), qweight=torch.zeros(8, 16, dtype=torch.int64)),
        r"first\.qweight is \(8, 16\) int64, not \(8, 16\) int32",
    ),
    (
        "scales",
        INT4,
        changed(gptq_tensors(), scales=torch.ones(2, 16, dtype=INT)),
        r"first\.scales is \(2, 16\) int32, not \(2, 16\) floating point",
    ),
    (
        "groups",
        QuantizationConfig(quant_method="gptq", bits=4, group_size=16, format="gptq"),
        gptq_tensors(),
        r"first\.qzeros is \(2, 2\) int32, not \(4, 2\) int32",
    ),
    (
        "width",
        QuantizationConfig(quant_method="gptq", bits=4, group_size=24, format="gptq"),
        gptq_tensors(),
        r"first has 64 columns; expected a multiple of group_size \(24\)",
    ),
    (
        "no-config",
        None,
        gptq_tensors(),
        r"holds packed layers \(first\), but config\.json has no quantization_config",
    ),
    (
        "no-packed",
        INT4,
        dict(Small().named_parameters()),
        r"config\.json says gptq with 4 bits, but the checkpoint holds no qweight tensors",
    ),
    (
        "excluded",
        QuantizationConfig(
            quant_method="awq",
            bits=4,
            group_size=32,
            format="gemm",
            modules_to_not_convert=("first",),
        ),
        awq_tensors(),
        r"modules_to_not_convert names layers that are packed \(first\)",
    ),
    (
        "no-linear",
        INT4,
        gptq_tensors() | {"norm.qweight": torch.zeros(1, dtype=INT)},
        r"1 packed layers where Small has no Linear \(norm\)",
    ),
    (
        "also-plain",
        INT4,
        gptq_tensors() | {"first.weight": torch.zeros(16, 64)},
        r"does not fit Small; tensors: 1 unexpected \(first\.weight\)",
    ),
    (
        "g_idx-high",
        INT4_ACT,
        changed(gptq_tensors(), g_idx=torch.arange(64, dtype=INT) // 16),
        r"first\.g_idx goes from 0 to 3; expected groups from 0 to 1",
    ),
    (
        "g_idx-low",
        INT4_ACT,
        changed(gptq_tensors(), g_idx=torch.arange(64, dtype=INT) // 32 - 1),
        r"first\.g_idx goes from -1 to 0; expected groups from 0 to 1",
    ),
    (
        "g_idx-uneven",
        INT4_ACT,
        changed(gptq_tensors(), g_idx=torch.arange(64, dtype=INT) // 63),
        r"first\.g_idx gives a group 63 columns; expected 32 in each of 2 groups",
    ),
    (
        "g_idx-reorders",
        INT4,
        changed(gptq_tensors(), g_idx=torch.arange(64, dtype=INT) % 2),
        r"first\.g_idx reorders the columns, but desc_act is false",
    ),
]


@pytest.mark.parametrize(
    ("config", "tensors", "sentence"),
    [case[1:] for case in BAD],
    ids=[case[0] for case in BAD],
)
def test_what_does_not_fit_gets_a_sentence_and_no_weight_is_put_in(
    config: QuantizationConfig | None, tensors: dict[str, Tensor], sentence: str
) -> None:
    model = Small()
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    with pytest.raises(CheckpointError, match=sentence):
        load(model, tensors, config)
    after = dict(model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in after)


def test_a_width_that_fills_no_word_is_refused() -> None:
    config = QuantizationConfig(quant_method="gptq", bits=4, group_size=-1, format="gptq")
    with pytest.raises(CheckpointError, match="first maps 64 to 12; expected multiples of 8"):
        load(Small(outputs=12), gptq_tensors(), config)


def test_refused_headers_leave_every_layer_as_it_was() -> None:
    model = Small()
    with pytest.raises(CheckpointError):
        load(model, changed(gptq_tensors(), qzeros=None), INT4)
    assert type(model.first) is nn.Linear


# Official checkpoints: names and shapes as published, no numbers


def gptq_shapes(inputs: int, outputs: int, bits: int) -> dict[str, TensorSpec]:
    per_word = 32 // bits
    return {
        "qweight": TensorSpec((inputs // per_word, outputs), torch.int32),
        "qzeros": TensorSpec((inputs // 128, outputs // per_word), torch.int32),
        "scales": TensorSpec((inputs // 128, outputs), torch.float16),
        "g_idx": TensorSpec((inputs,), torch.int32),
    }


def awq_shapes(inputs: int, outputs: int) -> dict[str, TensorSpec]:
    return {
        "qweight": TensorSpec((inputs, outputs // 8), torch.int32),
        "qzeros": TensorSpec((inputs // 128, outputs // 8), torch.int32),
        "scales": TensorSpec((inputs // 128, outputs), torch.float16),
    }


def qwen2_5_vl(hidden: int, inter: int, layers: int, kv_heads: int) -> dict[str, Any]:
    """The flat config.json of Qwen2.5-VL, as its quantised repositories hold it."""
    return {
        "model_type": "qwen2_5_vl",
        "vocab_size": 152064,
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 128,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": False,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_config": {
            "hidden_size": 1280,
            "out_hidden_size": hidden,
            "intermediate_size": 3456 if hidden == 8192 else 3420,
            "tokens_per_second": 2,
        },
    }


@pytest.mark.parametrize("kind", ["awq", "int4", "int8"])
@pytest.mark.parametrize(
    ("hidden", "inter", "layers", "kv_heads"),
    [(3584, 18944, 28, 4), (8192, 29696, 80, 8)],
    ids=["7B", "72B-padded"],
)
def test_official_quantised_sizes_build_on_the_meta_device(
    kind: str, hidden: int, inter: int, layers: int, kv_heads: int
) -> None:
    bits, method = (8 if kind == "int8" else 4), ("awq" if kind == "awq" else "gptq")
    widths = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, 128 * kv_heads),
        "self_attn.v_proj": (hidden, 128 * kv_heads),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, inter),
        "mlp.up_proj": (hidden, inter),
        "mlp.down_proj": (inter, hidden),
    }
    data = qwen2_5_vl(hidden, inter, layers, kv_heads)
    with torch.device("meta"):
        model = build_model(find_architecture(data).read(data))
    listed = {
        name: TensorSpec(tuple(parameter.shape), torch.float16)
        for name, parameter in model.named_parameters()
        if ".layers." not in name or "norm" in name
    }
    kept = set(listed)
    for layer in range(layers):
        for module, (inputs, outputs) in widths.items():
            path = f"model.layers.{layer}.{module}"
            is_awq = method == "awq"
            shapes = awq_shapes(inputs, outputs) if is_awq else gptq_shapes(inputs, outputs, bits)
            listed |= {f"{path}.{part}": spec for part, spec in shapes.items()}
            if module[-6:] in ("q_proj", "k_proj", "v_proj"):
                listed[f"{path}.bias"] = TensorSpec((outputs,), torch.float16)
                kept.add(f"{path}.bias")
    config = QuantizationConfig(
        quant_method=method,
        bits=bits,
        group_size=128,
        format="gemm" if method == "awq" else "gptq",
        modules_to_not_convert=("visual",),
    )
    packed = swap_packed(model, listed, config, {})
    assert len(packed) == 7 * layers
    assert {name for name, _ in model.named_parameters()} == kept
    down = model.get_submodule(f"model.layers.{layers - 1}.mlp.down_proj")
    assert isinstance(down, QuantizedLinear)
    assert down.codes.is_meta
    assert down.codes.shape == (hidden, inter * bits // 8)
    assert down.scales.shape == down.zeros.shape == (hidden, inter // 128)
    assert sum(t.nbytes for n, t in model.named_buffers() if n.endswith("codes")) == (
        layers * sum(inputs * outputs for inputs, outputs in widths.values()) * bits // 8
    )


def test_official_int4_of_the_first_generation_builds_on_the_meta_device() -> None:
    """Qwen-7B-Chat-Int4: fused query, key and value with a bias; no other layer has one."""
    data = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "kv_channels": 128,
        "max_position_embeddings": 8192,
        "seq_length": 8192,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
    }
    with torch.device("meta"):
        model = QWenLMHeadModel(qwen_config(data))
    widths = {
        "attn.c_attn": (4096, 12288),
        "attn.c_proj": (4096, 4096),
        "mlp.w1": (4096, 11008),
        "mlp.w2": (4096, 11008),
        "mlp.c_proj": (11008, 4096),
    }
    listed = {
        f"transformer.h.{layer}.{module}.{part}": spec
        for layer in range(32)
        for module, (inputs, outputs) in widths.items()
        for part, spec in gptq_shapes(inputs, outputs, 4).items()
    }
    config = QuantizationConfig(
        quant_method="gptq", bits=4, group_size=128, format="gptq", sym=True
    )
    assert len(swap_packed(model, listed, config, {})) == 5 * 32
    fused = model.get_submodule("transformer.h.31.attn.c_attn")
    assert isinstance(fused, QuantizedLinear)
    assert fused.bias is not None
    assert fused.codes.shape == (12288, 2048)
    assert {name.rpartition(".")[2] for name, _ in model.named_parameters()} == {"weight", "bias"}
