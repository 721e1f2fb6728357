"""How near do linear layers come to the machine's limits, plain, in int8 and in int4?

    python benchmarks/linear_kernels.py
    python benchmarks/linear_kernels.py --shapes 2048x11008 11008x2048 --out benchmarks/results

Each shape (inputs x outputs; those of Qwen2-VL-2B's decoder by default) is multiplied with 1, 8, 64
and 512 tokens: in bfloat16 by torch's own Linear, which is what plain layers are, and by our
quantised Linear with kernels and without. Forms take turns, and each call finds another copy of its
weights, so that they come from memory rather than from a cache, as in a model. Limits are measured
first (`engine/limits.py`). Times are medians; shares are of bytes read each second, and of
bfloat16 operations each second.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qianyan.engine.limits import MachineLimits, measure_limits
from qianyan.models import kernels
from qianyan.models.quantize import QuantizedLinear, quantize_weight

SHAPES = ("1536x1536", "1536x256", "1536x8960", "8960x1536")
TOKENS = (1, 8, 64, 512)
COPIES_BYTES = 2**27  # of each form's weights: four times a large processor cache
ROUNDS, ENOUGH_S = 15, 1.0  # of one form at one number of tokens; fewer where it is slow
FEWEST = 3
GROUP_SIZE = 128


def plain(weight: Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.bfloat16)
    layer.weight.data = weight
    return layer


def quantized(weight: Tensor, *, bits: int, has_kernels: bool) -> nn.Module:
    rows, columns = weight.shape
    size = columns if bits == 8 else GROUP_SIZE
    layer = QuantizedLinear(columns, rows, bits=bits, group_size=size)
    for name, value in quantize_weight(weight, bits=bits, group_size=size).items():
        setattr(layer, name, value)
    if has_kernels:
        layer.use_kernels()
    return layer


def weight_bytes(layer: nn.Module) -> int:
    """Count what a product has to read: weights, codes and the scales of the form in use."""
    tensors = dict(layer.named_parameters()) | dict(layer.named_buffers())
    if "scales_and_zeros" in tensors:
        del tensors["scales"], tensors["zeros"]
    elif "codes" in tensors and tensors["codes"].dtype == torch.int8:
        del tensors["zeros"]
    return sum(tensor.nbytes for tensor in tensors.values())


def forms_of(weight: Tensor) -> dict[str, list[nn.Module]]:
    """Make enough copies of a layer in each form."""
    makers = {"bfloat16": lambda: plain(weight.clone())}
    for bits in (8, 4):
        for suffix, has_kernels in (("", True), (", no kernel", False)):
            makers[f"int{bits}{suffix}"] = lambda b=bits, k=has_kernels: quantized(  # type: ignore[misc]
                weight, bits=b, has_kernels=k
            )
    forms = {}
    for name, make in makers.items():
        first = make()
        more = max(1, COPIES_BYTES // weight_bytes(first))
        forms[name] = [first, *(copied(first) for _ in range(more))]
    return forms


def copied(layer: nn.Module) -> nn.Module:
    """Copy a layer, its tensors too."""
    twin = type(layer).__new__(type(layer))
    twin.__dict__ = dict(layer.__dict__)
    for kind in ("_parameters", "_buffers"):
        own = getattr(layer, kind)
        twin.__dict__[kind] = {n: None if t is None else t.clone() for n, t in own.items()}
    return twin


def measure(forms: dict[str, list[nn.Module]], hidden: Tensor) -> dict[str, float]:
    """Give the median seconds of each form; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    turns: dict[str, Iterator[int]] = {name: count() for name in forms}
    for turn in range(1 + ROUNDS):
        for name, layers in forms.items():
            if turn > FEWEST and sum(times[name]) > ENOUGH_S:
                continue
            layer = layers[next(turns[name]) % len(layers)]
            begin = time.perf_counter()
            layer(hidden)
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def rows_of(shape: str, limits: MachineLimits) -> Iterator[dict[str, Any]]:
    """Measure one shape, in all forms and for all numbers of tokens."""
    inputs, outputs = map(int, shape.split("x"))
    random = torch.Generator().manual_seed(inputs + outputs)
    weight = (torch.randn(outputs, inputs, generator=random) * 0.02).bfloat16()
    forms = forms_of(weight)
    peak = limits.matrix_rates["bfloat16"]
    for tokens in TOKENS:
        hidden = torch.randn(tokens, inputs, generator=random).bfloat16()
        seconds = measure(forms, hidden)
        for name, layers in forms.items():
            rate = 2 * tokens * inputs * outputs / seconds[name]
            yield {
                "shape": shape,
                "tokens": tokens,
                "form": name,
                "ms": 1000 * seconds[name],
                "to_plain": seconds[name] / seconds["bfloat16"],
                "bandwidth_share": weight_bytes(layers[0])
                / seconds[name]
                / limits.read_bytes_per_s,
                "peak_share": None if peak is None else rate / peak,
            }


def show(row: dict[str, Any]) -> str:
    peak = "" if row["peak_share"] is None else f"{row['peak_share']:6.2f}"
    return (
        f"{row['shape']:>11} {row['tokens']:4} {row['form']:15} {row['ms']:8.3f} ms "
        f"{row['to_plain']:6.2f} {row['bandwidth_share']:6.2f} {peak}"
    )


def main() -> None:
    """Measure all shapes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="inputs x outputs, as 1536x256")
    parser.add_argument("--out", type=Path, help="folder of the JSON; none is written without")
    options = parser.parse_args()
    limits = measure_limits()
    ops = {
        "int8pack": kernels.has_int8pack(),
        "int_mm": kernels.has_int_mm(),
        "int4_block": kernels.int4_block(),
    }
    print(json.dumps({**asdict(limits), "ops": ops}))
    print("      shape  tok form                time   plain=1  of bandwidth, of bf16 peak")
    rows = []
    with torch.inference_mode():
        for shape in options.shapes:
            for row in rows_of(shape, limits):
                print(show(row))
                rows.append(row)
    if options.out is not None:
        now = datetime.now(UTC)
        facts = {
            "when": now.isoformat(timespec="seconds"),
            "machine": asdict(limits),
            "ops": ops,
            "rows": rows,
        }
        name = f"{now:%Y-%m-%d}-linear-kernels-{platform.node()}.json"
        (options.out / name).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
