"""How near do the vision tower and prefill come to the machine's matrix rate, part by part?

    python benchmarks/vision_and_prefill.py qwen2-vl-2b --out benchmarks/results
    python benchmarks/vision_and_prefill.py qwen2.5-vl-3b

Random weights of the official shape, no checkpoint. One picture of 1008 x 756 pixels (3,888
patches) goes through --blocks of the tower, 1,495 tokens through --layers of the decoder; all are
alike, so their times are multiplied to the whole depth (Qwen2.5-VL: eight blocks, one of which
sees the whole frame, as in the whole tower). The matrix rate is measured before and after. Prints,
and writes as JSON, medians: seconds, operations a second, share of the matrix rate. Without
arguments nothing is run.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from make_checkpoint import SHAPES, shorten
from torch import Tensor, nn

from qianyan.engine.costs import text_costs, vision_flops
from qianyan.models import text, vision
from qianyan.models.attention import NoCache
from qianyan.models.registry import find_architecture
from qianyan.models.vision_language import VisionLanguageModel

GRID = (1, 54, 72)
TOKENS = 1495
RATE_SIDE = 2048
PARTS = {
    "qkv": "projections in",
    "q_proj": "projections in",
    "k_proj": "projections in",
    "v_proj": "projections in",
    "proj": "projection out",
    "o_proj": "projection out",
    "mlp": "feed-forward",
    "norm1": "norms",
    "norm2": "norms",
    "input_layernorm": "norms",
    "post_attention_layernorm": "norms",
    "patch_embed": "patches and merger",
    "merger": "patches and merger",
}


class Parts:
    """Seconds by part, of one pass after another."""

    def __init__(self) -> None:
        self.passes: list[dict[str, float]] = []

    def begin(self) -> None:
        self.passes.append(defaultdict(float))

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make a function count its time as a part's."""

        def call(*values: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*values, **named)
            finally:
                self.passes[-1][part] += time.perf_counter() - begin

        return call

    def watch(self, model: nn.Module) -> None:
        """Time the modules that have a part; those inside a feed-forward or merger not again."""
        for name, module in model.named_modules():
            *before, last = name.split(".")
            if last in PARTS and not {"mlp", "merger", "patch_embed"} & set(before):
                module.forward = self.timed(PARTS[last], module.forward)  # type: ignore[method-assign]

    @contextmanager
    def watch_functions(self) -> Iterator[None]:
        """Time rotation and attention for as long as the context lasts."""
        kept = vision.rotate, text.rotate, vision.segment_attention, NoCache.attend
        vision.rotate = text.rotate = self.timed("rotation", kept[0])
        vision.segment_attention = self.timed("attention", kept[2])
        NoCache.attend = self.timed("attention", kept[3])  # type: ignore[method-assign]
        try:
            yield
        finally:
            vision.rotate, text.rotate, vision.segment_attention = kept[:3]
            NoCache.attend = kept[3]  # type: ignore[method-assign]

    def medians(self) -> dict[str, float]:
        """Give each part's median over the passes but the first."""
        counted = self.passes[1:]
        return {part: statistics.median(one[part] for one in counted) for part in counted[0]}


def matrix_rate(dtype: torch.dtype) -> float:
    """Measure the operations a second of a square matrix product."""
    left, right = (torch.randn(RATE_SIDE, RATE_SIDE).to(dtype) for _ in range(2))
    taken = []
    for _ in range(6):
        begin = time.perf_counter()
        left @ right
        taken.append(time.perf_counter() - begin)
    return 2 * RATE_SIDE**3 / statistics.median(taken[1:])


def measure(
    run: Callable[[], Tensor], model: nn.Module, *, flops: int, dtype: torch.dtype, rounds: int
) -> dict[str, Any]:
    """Run once unseen, then `rounds` times."""
    parts, whole = Parts(), []
    parts.watch(model)
    rate_before = matrix_rate(dtype)
    with parts.watch_functions():
        for _ in range(rounds + 1):
            parts.begin()
            begin = time.perf_counter()
            run()
            whole.append(time.perf_counter() - begin)
    rate = (rate_before + matrix_rate(dtype)) / 2
    seconds, by_part = statistics.median(whole[1:]), parts.medians()
    by_part["sums and the rest"] = seconds - sum(by_part.values())
    return {
        "seconds": seconds,
        "matrix_rate": rate,
        "share": flops / seconds / rate,
        "parts": {part: round(taken / seconds, 4) for part, taken in by_part.items()},
    }


def measure_shape(options: argparse.Namespace) -> dict[str, Any]:
    """Measure a tower and a decoder of one shape."""
    config_json = shorten(SHAPES[options.shape], options.layers, options.blocks)
    architecture = find_architecture(config_json)
    config = architecture.read(config_json)
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    with torch.inference_mode():
        model = VisionLanguageModel(config).to(dtype)
        pixels = torch.randn(GRID[1] * GRID[2], config.vision.patch_values)
        hidden = torch.randn(TOKENS, config.text.hidden_size, dtype=dtype)
        position_ids, last = torch.arange(TOKENS).repeat(3, 1), torch.tensor([TOKENS - 1])
        sizes = {"dtype": dtype, "rounds": options.rounds}
        flops = vision_flops(config, [GRID])
        tower = measure(
            lambda: model.encode_images(pixels, [GRID]), model.visual, flops=flops, **sizes
        )
        decoder = measure(
            lambda: model.model(hidden, position_ids, NoCache([TOKENS]), last),
            model.model,
            flops=text_costs(config).flops(TOKENS, TOKENS, 0),
            **sizes,
        )
    whole = SHAPES[options.shape]
    once = tower["parts"]["patches and merger"] * tower["seconds"]
    repeats = whole["vision_config"]["depth"] / options.blocks
    tower["whole_depth_s"] = once + (tower["seconds"] - once) * repeats
    decoder["whole_depth_s"] = decoder["seconds"] * whole["num_hidden_layers"] / options.layers
    return {"vision": tower, "prefill": decoder}


def main() -> None:
    """Measure one shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES, nargs="?")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--out", type=Path, help="folder of the JSON; none is written without")
    options = parser.parse_args()
    if options.shape is None:
        parser.print_usage()
        return
    now = datetime.now(UTC)
    figures = {
        "when": now.isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "shape": options.shape,
        "blocks": options.blocks,
        "layers": options.layers,
        "dtype": options.dtype,
        **measure_shape(options),
    }
    print(json.dumps(figures, indent=2))
    if options.out is not None:
        name = f"{now:%Y-%m-%d}-vision-and-prefill-{options.shape}-{platform.node()}.json"
        (options.out / name).write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
