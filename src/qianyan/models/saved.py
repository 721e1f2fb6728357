"""Checkpoints that qianyan has quantised: how they say so, what they hold, how they are written.

A folder is the original's with `quantization_config` of method "qianyan" in config.json and, in
place of each quantised `weight`, the three tensors that a QuantizedLinear holds: `codes`, `zeros`
and `scales`. Codes of 8 bits lie in the layout "signed", those of 4 bits in the layout "rows": as
kernels read them, so that a mapped file need not be copied. Which layers those are, their bits and
their groups follow from the tensors themselves. Files are written one tensor at a time: their
headers are known beforehand.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor, nn

from qianyan.errors import CheckpointError
from qianyan.models.kernels import INT8_ZERO
from qianyan.models.quantization import SAVED_VERSION, QuantizationConfig
from qianyan.models.quantize import BITS, QuantizedLinear
from qianyan.models.weights import (
    DTYPES,
    INDEX_NAME,
    STORED_DTYPES,
    TensorSpec,
    count_problems,
    renamed,
    some,
)

PARTS = ("codes", "zeros", "scales")
CODE_DTYPES = {4: torch.uint8, 8: torch.int8}  # by bits
SHARD_BYTES = 2 * 10**9  # most bytes of tensors in one weight file; a larger tensor has its own
ALIGNMENT = 64  # bytes that the header is a multiple of
DTYPE_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}


def quantization_entry(bits: int, group_size: int, torch_dtype: torch.dtype) -> dict[str, Any]:
    """Make config.json's quantization_config; `read_quantization` reads it back."""
    return {
        "quant_method": "qianyan",
        "version": SAVED_VERSION,
        "bits": bits,
        "group_size": group_size,
        "sym": bits == 8,
        "torch_dtype": str(torch_dtype).removeprefix("torch."),
    }


def swap_saved(
    model: nn.Module,
    listed: Mapping[str, TensorSpec],
    config: QuantizationConfig,
    renames: Mapping[str, str],
) -> None:
    """Put a QuantizedLinear of the right form where the checkpoint holds codes.

    Raises CheckpointError, and leaves the model as it was, when tensors and model disagree.
    """
    modules = [name.removesuffix(".codes") for name in listed if name.endswith(".codes")]
    if not modules:
        raise CheckpointError(
            f"config.json says {config.quant_method} with {config.bits} bits, but the checkpoint "
            "holds no codes. Take config.json from the same folder, or quantise the original again."
        )
    paths = {name: renamed(f"{name}.", renames).removesuffix(".") for name in modules}
    linears = {path: part for path, part in model.named_modules() if isinstance(part, nn.Linear)}
    strangers = [name for name in modules if paths[name] not in linears]
    parts = {
        name: [listed.get(f"{name}.{part}") for part in PARTS]
        for name in modules
        if name not in strangers
    }
    layers = {
        name: _layer(linears[paths[name]], [spec for spec in specs if spec is not None])
        for name, specs in parts.items()
    }
    misfits = [name for name, layer in layers.items() if layer is None]
    problems = count_problems(
        {"where the model has no Linear": strangers, "whose parts do not fit": misfits}
    )
    if problems:
        raise CheckpointError(
            f"Checkpoint does not fit {type(model).__name__}; quantised layers: {problems}. "
            "Quantise the original again."
        )
    for name, layer in layers.items():
        owner, _, leaf = paths[name].rpartition(".")
        setattr(model.get_submodule(owner), leaf, layer)


def _layer(linear: nn.Linear, parts: list[TensorSpec]) -> QuantizedLinear | None:
    """Make the unfilled layer that three parts belong to; None where they are no such parts."""
    if len(parts) != len(PARTS) or any(len(part.shape) != 2 for part in parts):
        return None
    codes, zeros, scales = parts
    columns, groups = linear.in_features, zeros.shape[1]
    bits = next((bits for bits in BITS if codes.shape[1] * 8 == columns * bits), None)
    is_kind = (
        codes.dtype == CODE_DTYPES.get(bits or 0)
        and zeros.dtype == torch.uint8
        and scales.dtype in DTYPES.values()
        and scales.shape == zeros.shape
    )
    if bits is None or not is_kind or not 0 < groups <= columns or columns % groups:
        return None
    with linear.weight.device:
        layer = QuantizedLinear(
            columns,
            linear.out_features,
            bits=bits,
            group_size=columns // groups,
            bias=linear.bias is not None,
        )
    layer.layout = "signed" if bits == 8 else "rows"
    return layer


def saved_specs(path: str, layer: QuantizedLinear) -> dict[str, TensorSpec]:
    """List the tensors that are saved of a layer, filled or not."""
    dtypes = (CODE_DTYPES[layer.bits], torch.uint8, torch.bfloat16)
    return {
        f"{path}.{part}": TensorSpec(tuple(getattr(layer, part).shape), dtype)
        for part, dtype in zip(PARTS, dtypes, strict=True)
    }


def to_saved(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """Put codes as `quantize_weight` makes them into their saved layout; others pass."""
    if (tensor.dtype, spec.dtype) != (torch.uint8, torch.int8):
        return tensor
    return tensor.bitwise_xor_(INT8_ZERO).view(torch.int8)


class ShardWriter:
    """Weight files of bounded size with an index, each tensor written when it is there.

    Names, shapes and dtypes are known from the start; the order of `write` is free. As a context,
    it closes the files; only `finish` makes them a checkpoint.
    """

    def __init__(
        self, folder: Path, specs: Mapping[str, TensorSpec], *, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self._folder, self._specs = folder, specs
        shards = _fill(specs, shard_bytes)
        self._homes: dict[str, str] = {}
        self._offsets: dict[str, int] = {}
        self._files: dict[str, BinaryIO] = {}
        for number, names in enumerate(shards, start=1):
            shard = f"model-{number:05}-of-{len(shards):05}.safetensors"
            self._homes |= dict.fromkeys(names, shard)
            self._files[shard] = self._begin(folder / shard, names)
        self._missing = set(specs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()

    def _begin(self, path: Path, names: list[str]) -> BinaryIO:
        """Write a file's header and note where its tensors go."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        # Wide numbers first: every tensor then begins at a multiple of its number's width.
        for name in sorted(names, key=lambda name: -self._specs[name].dtype.itemsize):
            start, end = end, end + self._specs[name].size_bytes
            self._offsets[name] = start
            header[name] = {
                "dtype": DTYPE_NAMES[self._specs[name].dtype],
                "shape": list(self._specs[name].shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        file = path.open("wb")
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            self._offsets[name] += 8 + len(text)
        return file

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor in its place; it is as `specs` says."""
        spec = self._specs[name]
        assert (tuple(tensor.shape), tensor.dtype) == (spec.shape, spec.dtype), name
        self._missing.remove(name)
        file = self._files[self._homes[name]]
        file.seek(self._offsets[name])
        file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)

    def finish(self) -> None:
        """Bring everything to the disk and write the index; all tensors have been written."""
        assert not self._missing, some(sorted(self._missing))
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        total = sum(spec.size_bytes for spec in self._specs.values())
        index = {"metadata": {"total_size": total}, "weight_map": self._homes}
        text = json.dumps(index, indent=1)
        (self._folder / INDEX_NAME).write_text(text, encoding="utf-8")


def _fill(specs: Mapping[str, TensorSpec], shard_bytes: int) -> list[list[str]]:
    """Share the tensors out among files, in order."""
    shards: list[list[str]] = []
    room = 0
    for name, spec in specs.items():
        if not shards or spec.size_bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= spec.size_bytes
    return shards
