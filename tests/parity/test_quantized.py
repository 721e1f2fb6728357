"""Quantised checkpoints against a packer of its own: the published layouts, written one at a time.

The packer follows the formats' descriptions, not the reader: it never sees the reader's code.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from qianyan.engine.checkpoint import BUNDLED_FOLDER
from qianyan.engine.engine import Engine
from qianyan.engine.quantizing import quantize_model
from qianyan.errors import CheckpointError, ConfigError
from qianyan.inputs.images import Photo
from qianyan.inspection.inspector import LookSettings, open_look
from qianyan.inspection.vision import LocalVision
from qianyan.models.attention import NoCache
from qianyan.models.kernels import int4_block
from qianyan.models.packed import swap_packed, unpack_tensors
from qianyan.models.quantization import QuantizationConfig
from qianyan.models.quantize import Kind, QuantizedLinear
from qianyan.models.qwen import QWenLMHeadModel, qwen_config
from qianyan.models.registry import build_model, find_architecture, load_model, read_config_json
from qianyan.models.weights import (
    TensorSpec,
    initialise,
    load_weights,
    quantized_layers,
    save_checkpoint,
)
from qianyan.train.bundled.scenes import draw_examples

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
TOLERANCE = 1e-3  # logits, float32
BFLOAT16_SHARE = 0.03  # length of the error of bfloat16 logits over that of the logits


@dataclass(frozen=True)
class Codes:
    """A quantised weight before it is packed; `group_of` is (in,), the rest (out, in or groups)."""

    codes: NDArray[np.uint32]
    zeros: NDArray[np.uint32]
    scales: NDArray[np.float16]
    group_of: NDArray[np.int64]
    bits: int

    def weight(self) -> Tensor:
        """The exact float32 weight, (out, in), column by column."""
        weight = np.zeros(self.codes.shape, dtype=np.float32)
        for column, group in enumerate(self.group_of):
            distance = self.codes[:, column].astype(np.int64) - self.zeros[:, group]
            weight[:, column] = distance.astype(np.float32) * self.scales[:, group].astype(
                np.float32
            )
        return torch.from_numpy(weight)


def pack_gptq(layer: Codes, *, format: str = "gptq") -> dict[str, Tensor]:
    outputs, inputs = layer.codes.shape
    groups, bits = layer.zeros.shape[1], layer.bits
    per_word = 32 // bits
    qweight = np.zeros((inputs // per_word, outputs), dtype=np.uint32)
    for column in range(inputs):
        qweight[column // per_word] |= layer.codes[:, column] << (bits * (column % per_word))
    published = layer.zeros if format == "gptq_v2" else (layer.zeros.astype(int) - 1) % 2**bits
    qzeros = np.zeros((groups, outputs // per_word), dtype=np.uint32)
    for row in range(outputs):
        shift = bits * (row % per_word)
        qzeros[:, row // per_word] |= published[row].astype(np.uint32) << shift
    return {
        "qweight": torch.from_numpy(qweight.view(np.int32)),
        "qzeros": torch.from_numpy(qzeros.view(np.int32)),
        "scales": torch.from_numpy(layer.scales.T.copy()),
        "g_idx": torch.from_numpy(layer.group_of.astype(np.int32)),
    }


def pack_awq(layer: Codes) -> dict[str, Tensor]:
    def pack_rows(values: NDArray[np.uint32]) -> Tensor:
        """(rows, out) to (rows, out/8)"""
        words = np.zeros((values.shape[0], values.shape[1] // 8), dtype=np.uint32)
        for word in range(words.shape[1]):
            for place, output in enumerate(AWQ_ORDER):
                words[:, word] |= values[:, 8 * word + output] << (4 * place)
        return torch.from_numpy(words.view(np.int32))

    return {
        "qweight": pack_rows(layer.codes.T),
        "qzeros": pack_rows(layer.zeros.T),
        "scales": torch.from_numpy(layer.scales.T.copy()),
    }


def pack(layer: Codes, config: QuantizationConfig) -> dict[str, Tensor]:
    if config.quant_method == "awq":
        return pack_awq(layer)
    return pack_gptq(layer, format=config.format)


def draw_codes(
    outputs: int, inputs: int, config: QuantizationConfig, random: np.random.Generator
) -> Codes:
    """Draw any codes and zeros at all, with the extremes 0 and the largest among them."""
    size = config.columns_in_group(inputs)
    groups, codes = inputs // size, 2**config.bits
    zeros = random.integers(codes, size=(outputs, groups), dtype=np.uint32)
    zeros[0], zeros[-1] = 0, codes - 1
    group_of = np.arange(inputs) // size
    return Codes(
        codes=random.integers(codes, size=(outputs, inputs), dtype=np.uint32),
        zeros=zeros,
        scales=(random.random((outputs, groups)) * 0.05 + 1e-4).astype(np.float16),
        group_of=random.permutation(group_of) if config.desc_act else group_of,
        bits=config.bits,
    )


def quantise(weight: Tensor, config: QuantizationConfig, random: np.random.Generator) -> Codes:
    """Round a real weight to the nearest codes, group by group."""
    outputs, inputs = weight.shape
    size = config.columns_in_group(inputs)
    group_of = np.arange(inputs) // size
    group_of = random.permutation(group_of) if config.desc_act else group_of
    largest = 2**config.bits - 1
    codes = np.zeros((outputs, inputs), dtype=np.uint32)
    zeros = np.zeros((outputs, inputs // size), dtype=np.uint32)
    scales = np.zeros((outputs, inputs // size), dtype=np.float16)
    values = weight.float().numpy()
    for group in range(inputs // size):
        columns = values[:, group_of == group]
        low, high = columns.min(1).clip(max=0), columns.max(1).clip(min=0)
        scales[:, group] = np.maximum((high - low) / largest, 1e-4)
        scale = scales[:, group].astype(np.float32)
        zeros[:, group] = np.round(-low / scale).clip(0, largest)
        steps = np.round(columns / scale[:, None]) + zeros[:, group, None]
        codes[:, group_of == group] = steps.clip(0, largest)
    return Codes(codes=codes, zeros=zeros, scales=scales, group_of=group_of, bits=config.bits)


def gptq(bits: int, group_size: int, **more: Any) -> QuantizationConfig:
    fields = {"format": "gptq", "torch_dtype": torch.float32} | more
    return QuantizationConfig(quant_method="gptq", bits=bits, group_size=group_size, **fields)


def awq(group_size: int, **more: Any) -> QuantizationConfig:
    fields = {"format": "gemm", "torch_dtype": torch.float32} | more
    return QuantizationConfig(quant_method="awq", bits=4, group_size=group_size, **fields)


def load_packed(
    model: nn.Module, tensors: dict[str, Tensor], config: QuantizationConfig | None
) -> nn.Module:
    listed = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    packed = swap_packed(model, listed, config, {})
    load_weights(model, unpack_tensors(tensors.items(), packed))
    return model


def load_linear(layer: Codes, config: QuantizationConfig) -> QuantizedLinear:
    outputs, inputs = layer.codes.shape
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(inputs, outputs, bias=False))
    tensors = {f"0.{part}": tensor for part, tensor in pack(layer, config).items()}
    loaded = load_packed(model, tensors, config)[0]  # type: ignore[index]
    assert isinstance(loaded, QuantizedLinear)
    return loaded


@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
@pytest.mark.parametrize(
    "make",
    [
        lambda size: gptq(4, size),
        lambda size: gptq(8, size),
        lambda size: gptq(4, size, desc_act=True),
        lambda size: gptq(8, size, desc_act=True),
        lambda size: gptq(4, size, format="gptq_v2"),
        lambda size: gptq(8, size, format="gptq_v2", desc_act=True),
        awq,
    ],
    ids=["int4", "int8", "int4-act", "int8-act", "int4-v2", "int8-v2-act", "awq"],
)
def test_the_dequantised_weight_is_exact(
    make: Callable[[int], QuantizationConfig], group_size: int
) -> None:
    config = make(group_size)
    layer = draw_codes(40, 256, config, np.random.default_rng(group_size + 1))
    loaded = load_linear(layer, config)
    assert torch.equal(loaded.dequantize(), layer.weight())
    assert all(tensor.is_contiguous() for tensor in loaded.buffers()), "rows lie scattered"
    assert loaded.scales.dtype == torch.float16
    hidden = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    assert_close(loaded(hidden), hidden @ layer.weight().T, rtol=1e-4, atol=1e-3)


@given(
    words=st.integers(1, 6),
    groups=st.integers(1, 5),
    size=st.sampled_from([8, 16, 40]),
    kind=st.sampled_from(
        [{"is_awq": True}]
        + [
            {"bits": bits, "format": format, "desc_act": desc_act}
            for bits in (4, 8)
            for format in ("gptq", "gptq_v2")
            for desc_act in (False, True)
        ]
    ),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_every_shape_is_exact(
    words: int, groups: int, size: int, kind: dict[str, Any], seed: int
) -> None:
    config = awq(size) if "is_awq" in kind else gptq(group_size=size, **kind)
    layer = draw_codes(8 * words, groups * size, config, np.random.default_rng(seed))
    assert torch.equal(load_linear(layer, config).dequantize(), layer.weight())


def test_a_symmetric_file_that_publishes_real_zeros_under_the_old_name_is_read_right() -> None:
    """Every zero is 8; a "gptq" file should hold 7, some tools write 8."""
    config = gptq(4, 32, sym=True)
    drawn = draw_codes(16, 64, config, np.random.default_rng(0))
    layer = Codes(drawn.codes, np.full_like(drawn.zeros, 8), drawn.scales, drawn.group_of, 4)
    with torch.device("meta"):
        models = [nn.Sequential(nn.Linear(64, 16, bias=False)) for _ in range(2)]
    for model, written in zip(models, ("gptq", "gptq_v2"), strict=True):
        parts = pack_gptq(layer, format=written)
        load_packed(model, {f"0.{part}": tensor for part, tensor in parts.items()}, config)
        assert torch.equal(model[0].dequantize(), layer.weight())  # type: ignore[operator]


def pack_model(
    model: nn.Module, config: QuantizationConfig, is_packed: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Give a packed checkpoint of a model, and a plain one with the dequantised weights."""
    random = np.random.default_rng(0)
    packed: dict[str, Tensor] = {}
    plain = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    for name, tensor in plain.items():
        module = name.removesuffix(".weight")
        is_linear = name != module and isinstance(model.get_submodule(module), nn.Linear)
        if not is_linear or not is_packed(module):
            packed[name] = tensor
            continue
        layer = quantise(tensor, config, random)
        packed |= {f"{module}.{part}": value for part, value in pack(layer, config).items()}
        plain[name] = layer.weight()
    return packed, plain


def test_the_fused_layers_of_the_first_generation_are_read_with_their_biases() -> None:
    data = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "kv_channels": 16,
        "max_position_embeddings": 512,
        "seq_length": 512,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
    }
    torch.manual_seed(0)
    models = [QWenLMHeadModel(qwen_config(data)) for _ in range(3)]
    initialise(models[0], std=0.15)
    for name, parameter in models[0].named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    config = gptq(4, 16, sym=True)
    packed, plain = pack_model(models[0], config, lambda module: "transformer.h." in module)
    assert "transformer.h.1.attn.c_attn.qweight" in packed
    load_packed(models[1], packed, config)
    load_weights(models[2], plain.items())
    layer = models[1].get_submodule("transformer.h.1.attn.c_attn")
    assert isinstance(layer, QuantizedLinear)
    assert torch.equal(layer.dequantize(), plain["transformer.h.1.attn.c_attn.weight"])
    assert_close(logits_of(models[1]), logits_of(models[2]), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(("value", "is_read"), [(0.0, True), (0.5, False)])
def test_a_bias_that_the_quantiser_added_is_left_out_only_where_it_is_zero(
    value: float, is_read: bool
) -> None:
    config = gptq(4, 32)
    layer = draw_codes(16, 64, config, np.random.default_rng(0))
    tensors = {f"0.{part}": tensor for part, tensor in pack(layer, config).items()}
    tensors["0.bias"] = torch.full((16,), value, dtype=torch.float16)
    model = nn.Sequential(nn.Linear(64, 16, bias=False))
    if is_read:
        load_packed(model, tensors, config)
        assert torch.equal(model[0].dequantize(), layer.weight())  # type: ignore[operator]
    else:
        with pytest.raises(CheckpointError, match=r"0\.bias is not zero; expected no bias"):
            load_packed(model, tensors, config)


# Whole models, through load_model


def write_folder(folder: Path, config: dict[str, Any], *shards: dict[str, Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def to_json(config: QuantizationConfig) -> dict[str, Any]:
    if config.quant_method == "awq":
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": config.group_size,
            "version": "gemm",
            "zero_point": True,
            "modules_to_not_convert": list(config.modules_to_not_convert) or None,
        }
    return {
        "quant_method": "gptq",
        "bits": config.bits,
        "group_size": config.group_size,
        "desc_act": config.desc_act,
        "sym": config.sym,
        "damp_percent": 0.01,
        "true_sequential": True,
    } | ({} if config.format == "gptq" else {"checkpoint_format": config.format})


def write_pair(
    folder: Path,
    data: dict[str, Any],
    config: QuantizationConfig,
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[Path, Path]:
    """Write a small random model twice: packed over two shards, and plain with the same weights.

    The parts of each layer lie in both shards. The tower and the output matrix stay plain, and so
    does a router.
    """
    torch.manual_seed(0)
    model = build_model(find_architecture(data).read(data))
    initialise(model, std=0.15)
    packed, plain = pack_model(
        model,
        config,
        lambda module: "layers." in module and not module.endswith("mlp.gate"),
    )
    packed = {
        name: tensor.to(dtype) if tensor.is_floating_point() and "scales" not in name else tensor
        for name, tensor in packed.items()
    }
    shards: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for number, (name, tensor) in enumerate(sorted(packed.items())):
        shards[number % 2][name] = tensor
    dtype_name = str(dtype).removeprefix("torch.")
    data = {name: value for name, value in data.items() if name not in ("torch_dtype", "dtype")}
    stated = {**data, "torch_dtype": dtype_name, "quantization_config": to_json(config)}
    return (
        write_folder(folder / "packed", stated, *shards),
        write_folder(folder / "plain", data | {"torch_dtype": "float32"}, plain),
    )


FAMILIES = {
    "qwen2_5_vl": {
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 48,
            "num_heads": 2,
            "in_chans": 3,
            "spatial_patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        "image_token_id": 120,
        "video_token_id": 121,
        "vision_start_token_id": 122,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": True,
    },
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
        "mlp_only_layers": [],
    },
}


def family_config(model_type: str) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        **FAMILIES[model_type],
    }


@torch.inference_mode()
def logits_of(model: Any) -> Tensor:
    """Score a prompt; where the model sees, with a picture of 8 x 4 patches in it."""
    grids, features = [], None
    input_ids = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    if hasattr(model, "visual"):
        grids = [(1, 8, 4)]
        input_ids = [5, 6, 122, *[120] * 8, 7, 8, 9]
        pixels = torch.randn(32, 1176, generator=torch.Generator().manual_seed(3))
        features = model.encode_images(pixels, grids)
    hidden = model.embed(torch.tensor(input_ids), features)
    positions = model.place(input_ids, grids).at(0, len(input_ids))
    logits: Tensor = model(hidden, positions, NoCache([len(input_ids)]))
    return logits


CONFIGS = {
    "gptq-int4": gptq(4, 32, sym=True),
    "gptq-int8": gptq(8, 64),
    "gptq-int4-act": gptq(4, 16, desc_act=True),
    "gptq-int4-row": gptq(4, -1, format="gptq_v2"),
    "awq": awq(32, modules_to_not_convert=("visual",)),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("model_type", FAMILIES)
def test_logits_are_those_of_the_dequantised_model(
    tmp_path: Path, model_type: str, config: QuantizationConfig
) -> None:
    packed, plain = write_pair(tmp_path, family_config(model_type), config)
    model, expected = load_model(packed), load_model(plain)
    kinds = [type(part) for part in model.modules()]
    assert kinds.count(QuantizedLinear) >= 14
    logits = logits_of(model)
    assert logits.dtype == torch.float32
    assert_close(logits, logits_of(expected), rtol=TOLERANCE, atol=TOLERANCE)
    assert float(logits.std()) > 10 * TOLERANCE


@pytest.mark.parametrize("name", ["gptq-int4", "gptq-int4-act", "gptq-int8", "awq"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_in_a_chosen_dtype_stay_near_those_in_float32(
    tmp_path: Path, name: str, dtype: str
) -> None:
    packed, plain = write_pair(tmp_path, family_config("qwen2_5_vl"), CONFIGS[name])
    exact = logits_of(load_model(plain, dtype="float32"))
    model = load_model(packed, dtype=dtype)
    assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
    for near in (logits_of(model), logits_of(load_model(plain, dtype=dtype))):
        assert float((near - exact).norm() / exact.norm()) < BFLOAT16_SHARE


def test_auto_is_config_json_s_dtype_even_where_the_file_holds_another(tmp_path: Path) -> None:
    """Quantisers write float16 biases beside bfloat16 matrices."""
    data = family_config("qwen2")
    packed, plain = write_pair(tmp_path, data, CONFIGS["awq"], dtype=torch.float16)
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    model = load_model(packed)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    scales = {tensor.dtype for name, tensor in model.named_buffers() if name.endswith("scales")}
    assert scales == {torch.float16}
    exact = logits_of(load_model(plain))
    assert float((logits_of(model) - exact).norm() / exact.norm()) < BFLOAT16_SHARE


def test_a_checkpoint_of_newer_tools_with_nested_config_and_prefixes_loads(
    tmp_path: Path, official_checkpoint: Path
) -> None:
    """A transformers checkpoint, packed under the names `model.language_model.…`."""
    newer = {"model.": "model.language_model.", "visual.": "model.visual.", "lm_head.": "lm_head."}
    tensors = {
        newer[prefix] + name.removeprefix(prefix): tensor
        for name, tensor in load_file(official_checkpoint / "model.safetensors").items()
        for prefix in newer
        if name.startswith(prefix)
    }
    config, random = CONFIGS["awq"], np.random.default_rng(0)
    packed, plain = dict(tensors), dict(tensors)
    layers = [n for n in tensors if "language_model.layers" in n and n.endswith("proj.weight")]
    assert len(layers) == 14
    for name in layers:
        layer = quantise(packed.pop(name), config, random)
        module = name.removesuffix(".weight")
        packed |= {f"{module}.{part}": value for part, value in pack_awq(layer).items()}
        plain[name] = layer.weight()
    data = read_config_json(official_checkpoint) | {"torch_dtype": "float32"}
    stated = data | {"quantization_config": to_json(config)}
    model = load_model(write_folder(tmp_path / "packed", stated, packed))
    expected = load_model(write_folder(tmp_path / "plain", data, plain))
    ids = [5, 6, 7, 8, 9]
    with torch.inference_mode():
        logits, reference = (
            one(one.embed(torch.tensor(ids)), one.place(ids).at(0, 5), NoCache([5]))
            for one in (model, expected)
        )
    assert_close(logits, reference, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_quantised_output_matrix_is_read_too(tmp_path: Path) -> None:
    data, config = family_config("qwen2"), gptq(4, 32)
    torch.manual_seed(0)
    model = build_model(find_architecture(data).read(data))
    initialise(model, std=0.15)
    packed, plain = pack_model(model, config, lambda module: True)
    assert "lm_head.qweight" in packed
    stated = data | {"torch_dtype": "float32", "quantization_config": to_json(config)}
    loaded = load_model(write_folder(tmp_path / "packed", stated, packed))
    assert_close(
        logits_of(loaded),
        logits_of(load_model(write_folder(tmp_path / "plain", data, plain))),
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )


def test_a_loaded_quantised_model_is_not_saved_as_a_plain_one(tmp_path: Path) -> None:
    packed, _ = write_pair(tmp_path, family_config("qwen2"), CONFIGS["awq"])
    with pytest.raises(CheckpointError, match=r"14 layers are quantised \(model\.layers\.0"):
        save_checkpoint(load_model(packed), tmp_path / "saved")


def test_a_wrong_g_idx_leaves_nothing_half_loaded(tmp_path: Path) -> None:
    config = CONFIGS["gptq-int4-act"]
    data = family_config("qwen2")
    packed, _ = write_pair(tmp_path, data, config)
    for shard in packed.glob("*.safetensors"):
        tensors = load_file(shard)
        if "model.layers.1.mlp.up_proj.g_idx" in tensors:
            tensors["model.layers.1.mlp.up_proj.g_idx"][3] = 4
            save_file(tensors, shard)
    with pytest.raises(
        CheckpointError, match=r"up_proj\.g_idx goes from 0 to 4; expected groups from 0 to 3"
    ):
        load_model(packed)


@pytest.mark.parametrize("config", [gptq(4, 32, desc_act=True), awq(32)], ids=["gptq", "awq"])
def test_the_engine_answers_about_a_picture_as_from_the_dequantised_folder(
    official_checkpoint: Path, tmp_path: Path, config: QuantizationConfig
) -> None:
    model = load_model(official_checkpoint)
    packed, plain = pack_model(model, config, lambda name: name.startswith("model.layers"))
    answers = []
    for name, tensors in (("packed", packed), ("plain", plain)):
        folder = shutil.copytree(official_checkpoint, tmp_path / name)
        whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(whole, folder / "model.safetensors")
        if name == "packed":
            data = json.loads((folder / "config.json").read_text())
            data["quantization_config"] = to_json(config)
            (folder / "config.json").write_text(json.dumps(data))
        photo = {"type": "image", "image": Image.new("RGB", (84, 56), (200, 40, 20))}
        talk = [{"role": "user", "content": [photo, {"type": "text", "text": "What burns?"}]}]
        answers.append(Engine(folder, dtype="float32").chat(talk, max_tokens=16, temperature=0))
    assert answers[0].token_ids == answers[1].token_ids


# Plain checkpoints, quantised while they load


LOGITS_COSINE = {"int8": 0.9995, "int4": 0.95}  # of the median token; docs/decisions/0010


def write_plain(folder: Path, model_type: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a small random model, over two shards."""
    data = family_config(model_type)
    torch.manual_seed(0)
    model = build_model(find_architecture(data).read(data))
    initialise(model, std=0.15)
    tensors = {name: value.detach().to(dtype) for name, value in model.named_parameters()}
    names = sorted(tensors)
    shards = ({name: tensors[name] for name in names[part::2]} for part in range(2))
    return write_folder(folder, data | {"torch_dtype": str(dtype).removeprefix("torch.")}, *shards)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_model_quantised_at_loading_answers_nearly_as_the_plain_one(
    tmp_path: Path, model_type: str, dtype: str, kind: str
) -> None:
    folder = write_plain(tmp_path / "plain", model_type)
    plain, model = load_model(folder, dtype=dtype), load_model(folder, dtype=dtype, quantize=kind)
    layers = [part for part in model.modules() if isinstance(part, QuantizedLinear)]
    assert {layer.bits for layer in layers} == ({8} if kind == "int8" else {4, 8})
    assert next(model.parameters()).dtype == getattr(torch, dtype)
    one, other = logits_of(model).double(), logits_of(plain).double()
    # The median: a token whose router hesitates may meet another expert, and end elsewhere.
    assert float(torch.cosine_similarity(one, other, dim=-1).median()) > LOGITS_COSINE[kind]


def test_tied_output_matrices_are_quantised_and_the_embeddings_stay(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "plain", "qwen2_5_vl")
    plain, model = load_model(folder), load_model(folder, quantize="int4")
    embedding = plain.get_parameter("model.embed_tokens.weight")
    assert torch.equal(model.get_parameter("model.embed_tokens.weight"), embedding)
    output = model.get_submodule("lm_head")
    assert isinstance(output, QuantizedLinear)
    assert output.bits == 8
    steps = output.scales.float()
    assert bool(((output.dequantize() - embedding.float()).abs() <= steps).all())


def test_routers_stay_plain_and_experts_do_not(tmp_path: Path) -> None:
    model = load_model(write_plain(tmp_path / "plain", "qwen3_moe"), quantize="int8")
    assert isinstance(model.get_submodule("model.layers.0.mlp.gate"), nn.Linear)
    experts = model.get_submodule("model.layers.0.mlp.experts.0.up_proj")
    assert isinstance(experts, QuantizedLinear)


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "plain", "qwen2")
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {"intermediate_size": 192}))
    with pytest.raises(CheckpointError, match=r"proj\.weight is \(.*\); expected \(.*\) as config"):
        load_model(folder, quantize="int8")


def test_a_missing_weight_is_named_when_it_would_be_quantised(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "plain", "qwen2")
    shards = sorted(folder.glob("*.safetensors"))
    tensors = load_file(shards[0]) | load_file(shards[1])
    del tensors["model.layers.0.mlp.up_proj.weight"]
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"3 missing \(.*up_proj\.codes"):
        load_model(folder, quantize="int8")


def test_what_is_quantised_is_not_quantised_again(tmp_path: Path) -> None:
    packed, _ = write_pair(tmp_path, family_config("qwen2"), gptq(4, 32))
    sentence = r"quantize is int8, but the checkpoint is quantised already \(gptq, 4 bits\)"
    with pytest.raises(ConfigError, match=sentence):
        load_model(packed, quantize="int8")


@pytest.mark.parametrize(("quantize", "kind"), [("w8a8", "int8"), ("w4a8", "int4")])
@torch.inference_mode()
def test_rounded_activations_stay_near_the_same_weights_unrounded(
    tmp_path: Path, quantize: str, kind: str
) -> None:
    plain = write_plain(tmp_path / "plain", "qwen2")
    fine, coarse = load_model(plain, quantize=kind), load_model(plain, quantize=quantize)
    layers = [part for part in coarse.modules() if isinstance(part, QuantizedLinear)]
    assert {layer.rounds_activations for layer in layers} == {True}
    assert not any(getattr(part, "rounds_activations", False) for part in fine.modules())
    ids = torch.arange(60)
    expected, own = (
        model(model.embed(ids), model.place(ids.tolist()).prompt, NoCache([60])).detach()
        for model in (fine, coarse)
    )
    assert 0 < float((own - expected).norm() / expected.norm()) < 0.1


def test_rounding_is_asked_of_a_quantised_checkpoint_by_its_own_bits(tmp_path: Path) -> None:
    packed, _ = write_pair(tmp_path, family_config("qwen2"), gptq(4, 64))
    model = load_model(packed, dtype="bfloat16", quantize="w4a8")
    layers = [part for part in model.modules() if isinstance(part, QuantizedLinear)]
    assert {layer.rounds_activations for layer in layers} == {True}
    with pytest.raises(ConfigError, match=r"4 bits\); expected none or w4a8\."):
        load_model(packed, quantize="w8a8")
    with pytest.raises(ConfigError, match="expected none, int8, int4, w8a8, w4a8"):
        load_model(packed, quantize="w4")


@pytest.mark.parametrize("config", [gptq(4, 64), gptq(4, 64, desc_act=True), awq(64)])
def test_published_int4_layers_pass_the_kernel_and_stay_right(
    tmp_path: Path, config: QuantizationConfig
) -> None:
    """In bfloat16, against the float32 model with the same weights."""
    packed, plain = write_pair(tmp_path, family_config("qwen2"), config)
    model = load_model(packed, dtype="bfloat16")
    layers = [part for part in model.modules() if isinstance(part, QuantizedLinear)]
    if int4_block():
        assert {"interleaved", "native"} & {layer.layout for layer in layers}
    exact = logits_of(load_model(plain))
    error = logits_of(model) - exact
    assert float(error.norm() / exact.norm()) < BFLOAT16_SHARE


# Quantised once, saved, and loaded again


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_was_saved_quantised_is_what_quantising_while_loading_makes(
    tmp_path: Path, model_type: str, stored: torch.dtype, kind: Kind
) -> None:
    folder = write_plain(tmp_path / "plain", model_type, stored)
    quantize_model(folder, tmp_path / "saved", to=kind)
    for dtype in ("auto", "float32", "bfloat16"):
        model = load_model(folder, dtype=dtype, quantize=kind)
        saved = load_model(tmp_path / "saved", dtype=dtype)
        assert quantized_layers(model) == quantized_layers(saved) != []
        for path in quantized_layers(model):
            one, other = model.get_submodule(path), saved.get_submodule(path)
            assert isinstance(one, QuantizedLinear)
            assert isinstance(other, QuantizedLinear)
            rows = slice(0, one.out_features)
            assert torch.equal(one._stored_codes(rows), other._stored_codes(rows))
            assert torch.equal(one.zeros, other.zeros)
            assert torch.equal(one.scales, other.scales)
        plain = dict(saved.named_parameters())
        for name, tensor in model.named_parameters():
            assert tensor.dtype == plain[name].dtype
            assert torch.equal(tensor, plain[name])
        assert torch.equal(logits_of(model), logits_of(saved))


def test_a_quantised_folder_of_newer_tools_answers_alike(
    official_checkpoint: Path, tmp_path: Path
) -> None:
    """With prefixes `model.language_model.…` and `model.visual.…`, through the engine."""
    quantize_model(official_checkpoint, tmp_path / "saved", to="int8")
    photo = {"type": "image", "image": Image.new("RGB", (84, 56), (200, 40, 20))}
    talk = [{"role": "user", "content": [photo, {"type": "text", "text": "What burns?"}]}]
    loading = Engine(official_checkpoint, quantize="int8")
    saved = Engine(tmp_path / "saved")
    answers = [engine.chat(talk, max_tokens=16, temperature=0) for engine in (loading, saved)]
    assert answers[0].token_ids == answers[1].token_ids


# The bundled judge

JUDGE = BUNDLED_FOLDER / "judge"
SCORE_DRIFT = {"int8": 0.01, "int4": 0.05}  # docs/decisions/0010
DEMO_PICTURES_CHANGED = {"int8": 0, "int4": 1}


def judge_logits(model: Any) -> Tensor:
    ids = [1019, *[1022] * 16, 1020, *range(40, 60)]
    grids = [(1, 8, 8)]
    pixels = torch.randn(64, 1176, generator=torch.Generator().manual_seed(3))
    hidden = model.embed(torch.tensor(ids), model.encode_images(pixels, grids))
    logits: Tensor = model(hidden, model.place(ids, grids).at(0, len(ids)), NoCache([len(ids)]))
    return logits[-20:]


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.999), ("int4", 0.98)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_the_judges_logits_drift_within_the_bound(dtype: str, kind: str, bound: float) -> None:
    exact = judge_logits(load_model(JUDGE, dtype="float32")).double()
    logits = judge_logits(load_model(JUDGE, dtype=dtype, quantize=kind)).double()
    assert float(torch.cosine_similarity(logits, exact, dim=-1).min()) > bound


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_bundled_pair_finds_in_the_demo_pictures_what_it_found_before(
    tmp_path: Path, kind: str
) -> None:
    photos = [Photo(Image.open(path).convert("RGB")) for path in draw_examples(tmp_path)]
    plain, quantised = open_look(LookSettings()), open_look(LookSettings(quantize=kind))
    assert quantised.cascade is not None
    judge = quantised.cascade.judge
    assert isinstance(judge, LocalVision)
    model = judge._engine._runner._model
    assert isinstance(model, nn.Module)
    assert quantized_layers(model), "the judge was not quantised"
    looks = [(plain.look(photo).detections, quantised.look(photo).detections) for photo in photos]
    changed = 0
    for before, after in looks:
        if [(one.label, one.box) for one in before] != [(one.label, one.box) for one in after]:
            changed += 1
            continue
        drifts = [abs(one.score - two.score) for one, two in zip(before, after, strict=True)]
        assert max(drifts, default=0) <= SCORE_DRIFT[kind]
    assert sum(len(before) for before, _ in looks) > 10, "the pictures show nothing to judge"
    assert changed <= DEMO_PICTURES_CHANGED[kind]


def test_the_detector_alone_refuses_to_be_quantised() -> None:
    with pytest.raises(ConfigError, match="quantize is int8, but the detector alone"):
        open_look(LookSettings(look="detector", quantize="int8"))
