from typing import Any

import pytest
import torch

from qianyan.errors import ConfigError
from qianyan.models.quantization import QuantizationConfig, read_quantization

QWEN2_VL_GPTQ: dict[str, Any] = {
    "batch_size": 1,
    "bits": 4,
    "block_name_to_quantize": None,
    "cache_block_outputs": True,
    "damp_percent": 0.1,
    "dataset": None,
    "desc_act": False,
    "exllama_config": {"version": 1},
    "group_size": 128,
    "modules_in_block_to_quantize": None,
    "quant_method": "gptq",
    "sym": True,
    "true_sequential": True,
    "use_exllama": True,
}
QWEN2_5_VL_AWQ: dict[str, Any] = {
    "bits": 4,
    "group_size": 128,
    "modules_to_not_convert": ["visual"],
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
}


def read(stated: Any, **data: Any) -> QuantizationConfig | None:
    return read_quantization({"quantization_config": stated, **data})


def test_gptq_is_read_as_optimum_writes_it() -> None:
    assert read(QWEN2_VL_GPTQ, torch_dtype="float16") == QuantizationConfig(
        quant_method="gptq", bits=4, group_size=128, format="gptq", sym=True
    )


def test_awq_is_read_as_autoawq_writes_it() -> None:
    assert read(QWEN2_5_VL_AWQ, torch_dtype="bfloat16") == QuantizationConfig(
        quant_method="awq",
        bits=4,
        group_size=128,
        format="gemm",
        modules_to_not_convert=("visual",),
        torch_dtype=torch.bfloat16,
    )


@pytest.mark.parametrize("stated", [None, {}])
def test_a_plain_checkpoint_has_none(stated: Any) -> None:
    assert read_quantization({}) is None
    assert read(stated) is None


def test_the_newer_words_of_both_formats_are_understood() -> None:
    config = read(QWEN2_VL_GPTQ | {"checkpoint_format": "gptq_v2", "bits": 8, "sym": None})
    assert config is not None
    assert (config.format, config.bits, config.sym) == ("gptq_v2", 8, False)
    config = read(QWEN2_5_VL_AWQ | {"version": "GEMM", "modules_to_not_convert": None})
    assert config is not None
    assert (config.format, config.modules_to_not_convert) == ("gemm", ())


def test_a_nested_text_config_may_hold_both_facts() -> None:
    text = {"quantization_config": QWEN2_5_VL_AWQ, "dtype": "bfloat16"}
    config = read_quantization({"text_config": text})
    assert config is not None
    assert (config.quant_method, config.torch_dtype) == ("awq", torch.bfloat16)


def test_layer_patterns_that_only_leave_layers_plain_are_fine() -> None:
    dynamic = {"-:.*attn.*": {}, "lm_head": {}, "+:.*mlp.*": {"bits": 4}}
    assert read(QWEN2_VL_GPTQ | {"dynamic": dynamic}) == read(QWEN2_VL_GPTQ)


@pytest.mark.parametrize("group_size", [-1, 32])
def test_minus_one_is_one_group_a_row(group_size: int) -> None:
    config = read(QWEN2_VL_GPTQ | {"group_size": group_size})
    assert config is not None
    assert config.columns_in_group(96) == (96 if group_size == -1 else 32)


@pytest.mark.parametrize(
    ("stated", "sentence"),
    [
        ("gptq", "quantization_config is 'gptq'; expected a JSON object"),
        ({"quant_method": "fp8"}, "quant_method is 'fp8'; expected gptq with 4 or 8 bits"),
        ({"bits": 4}, "quant_method is 'none'; expected gptq"),
        (QWEN2_VL_GPTQ | {"bits": 3}, "'gptq' with '3' bits, format 'gptq'; expected gptq with"),
        (QWEN2_VL_GPTQ | {"bits": 4.0}, "'gptq' with '4.0' bits"),
        (QWEN2_VL_GPTQ | {"bits": None}, "quantization_config has no bits"),
        (QWEN2_VL_GPTQ | {"checkpoint_format": "marlin"}, "format 'marlin'; expected gptq"),
        (QWEN2_VL_GPTQ | {"is_marlin_format": True}, "is_marlin_format .* is 'True'"),
        (QWEN2_VL_GPTQ | {"pack_dtype": "int16"}, "pack_dtype .* is 'int16'; expected 'int32'"),
        (QWEN2_VL_GPTQ | {"group_size": 0}, "group_size is '0'; expected -1 or a positive"),
        (QWEN2_VL_GPTQ | {"group_size": "128"}, "group_size is '128'; expected -1"),
        (QWEN2_VL_GPTQ | {"desc_act": "no"}, "desc_act is 'no'; expected true or false"),
        (QWEN2_VL_GPTQ | {"dynamic": {"+:.*mlp.*": {"bits": 8}}}, r"changes '\+:\.\*mlp\.\*'"),
        (QWEN2_5_VL_AWQ | {"bits": 8}, "'awq' with '8' bits"),
        (QWEN2_5_VL_AWQ | {"version": "gemv"}, "'awq' with '4' bits, format 'gemv'"),
        (QWEN2_5_VL_AWQ | {"zero_point": False}, "zero_point .* is 'False'; expected 'True'"),
        (QWEN2_5_VL_AWQ | {"modules_to_not_convert": "visual"}, "expected a list of module names"),
        (QWEN2_5_VL_AWQ | {"modules_to_not_convert": [1]}, "expected a list of module names"),
    ],
)
def test_what_cannot_be_read_gets_a_sentence(stated: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read(stated)


def test_an_unknown_dtype_gets_a_sentence() -> None:
    with pytest.raises(ConfigError, match="torch_dtype is 'float8'; expected float32"):
        read(QWEN2_5_VL_AWQ, torch_dtype="float8")
