"""What config.json says of a quantised checkpoint.

Source: the `quantization_config` that AutoGPTQ, GPTQModel, AutoAWQ and transformers write, and that
of the folders that qianyan writes (`saved.py`). It mixes what a reader needs with how the quantiser
was run; only the former is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qianyan.errors import ConfigError, quote
from qianyan.models.config import build, require_booleans
from qianyan.models.weights import DTYPES

SUPPORTED = "gptq with 4 or 8 bits (checkpoint_format gptq, gptq_v2) or awq with 4 (version gemm)"
SAVED_METHOD, SAVED_VERSION = "qianyan", 1
METHOD_BITS = {"gptq": (4, 8), "awq": (4,), SAVED_METHOD: (4, 8)}
FORMATS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",), SAVED_METHOD: (str(SAVED_VERSION),)}
PLAIN = {"zero_point": True, "is_marlin_format": False, "pack_dtype": "int32"}
ONE_FOR_ALL = ("bits", "group_size", "desc_act")


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """config.json's quantization_config; `format` is its checkpoint_format or version.

    `torch_dtype` is config.json's own, for all that is not quantised: a file may hold a mixture.
    Of what qianyan has quantised, `bits` and `group_size` are those of the decoder, and
    `torch_dtype` is what most of the original was stored in.
    """

    quant_method: str
    bits: int
    group_size: int  # -1: all columns of a row
    format: str
    desc_act: bool = False
    sym: bool = False
    modules_to_not_convert: tuple[str, ...] = ()
    torch_dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        method, bits = self.quant_method, self.bits
        is_known = isinstance(bits, int) and bits in METHOD_BITS.get(method, ())
        if not is_known or self.format not in FORMATS[method]:
            raise ConfigError(
                f"quantization_config is {quote(method)} with {quote(bits)} bits, "
                f"format {quote(self.format)}; expected {SUPPORTED}."
            )
        require_booleans(self, "desc_act", "sym")
        size = self.group_size
        if isinstance(size, bool) or not isinstance(size, int) or not (size == -1 or size > 0):
            raise ConfigError(f"group_size is {quote(size)}; expected -1 or a positive integer.")
        names = self.modules_to_not_convert
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise ConfigError(
                f"modules_to_not_convert is {quote(names)}; expected a list of module names."
            )

    def columns_in_group(self, in_features: int) -> int:
        """Give the columns of one group of a layer."""
        return in_features if self.group_size == -1 else self.group_size


def read_quantization(data: Mapping[str, Any]) -> QuantizationConfig | None:
    """Take quantization_config from config.json's object; None when there is none.

    Raises ConfigError for every method, width or layout that is not supported.
    """
    nested = data.get("text_config")
    text = nested if isinstance(nested, dict) else {}
    stated = data.get("quantization_config") or text.get("quantization_config")
    if not stated:
        return None
    if not isinstance(stated, dict):
        raise ConfigError(f"quantization_config is {quote(stated)}; expected a JSON object.")
    method = str(stated.get("quant_method")).lower()
    if method not in FORMATS:
        raise ConfigError(f"quant_method is {quote(method)}; expected {SUPPORTED}.")
    if method == SAVED_METHOD:
        _require_version(stated.get("version"))
    else:
        _require_plain(stated)
    fields = {name: value for name, value in stated.items() if value is not None}
    layout = stated.get("checkpoint_format" if method == "gptq" else "version")
    fields["quant_method"] = method
    fields["format"] = str(layout or FORMATS[method][0]).lower()
    fields["desc_act"] = method == "gptq" and fields.get("desc_act", False)
    fields["torch_dtype"] = _torch_dtype(*((stated,) if method == SAVED_METHOD else (data, text)))
    return build(QuantizationConfig, fields, where="quantization_config")


def _require_version(version: object) -> None:
    if version != SAVED_VERSION or isinstance(version, bool):
        raise ConfigError(
            f"version of quantization_config is {quote(version)}; expected {SAVED_VERSION}. "
            "Another qianyan wrote it: quantise the original again, or update qianyan."
        )


def _require_plain(stated: Mapping[str, Any]) -> None:
    """Refuse variants that share a method's name but not its files."""
    for name, expected in PLAIN.items():
        value = stated.get(name)
        if value is not None and value != expected:
            raise ConfigError(
                f"{name} of quantization_config is {quote(value)}; expected {quote(expected)}."
            )
    overrides = stated.get("dynamic") or {}  # layer patterns; those after "-:" stay plain
    for pattern, changes in overrides.items() if isinstance(overrides, dict) else ():
        changed = changes if isinstance(changes, dict) and not pattern.startswith("-:") else {}
        if any(changed.get(name, stated.get(name)) != stated.get(name) for name in ONE_FOR_ALL):
            raise ConfigError(
                f"dynamic of quantization_config changes {quote(pattern)}; "
                f"expected the same {', '.join(ONE_FOR_ALL)} for all layers."
            )


def _torch_dtype(*objects: Mapping[str, Any]) -> torch.dtype:
    """Read what newer tools call dtype; both quantisers write float16 where nothing is said."""
    stated = [at.get(key) for at in objects for key in ("torch_dtype", "dtype")]
    name = next((str(value) for value in stated if value), "float16")
    if name not in DTYPES:
        raise ConfigError(f"torch_dtype is {quote(name)}; expected {', '.join(DTYPES)}.")
    return DTYPES[name]
