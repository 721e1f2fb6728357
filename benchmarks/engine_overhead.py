"""What does the engine cost beside the model, and what does a second question about a picture save?

    python benchmarks/engine_overhead.py CHECKPOINT

Any Qwen2-VL or Qwen2.5-VL folder will do; `make_checkpoint.py` writes random ones. Overhead is
what a step takes beyond its forward pass (scheduling, sampling, grammar) while a batch of greedy
answers is written, once freely and once under a schema. The second question is about the picture
of the first, in other words; a picture that was never seen is the measure. Prints, and writes as
JSON, medians.
"""

import argparse
import json
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.engine.plan import Plan
from qianyan.engine.request import Request
from qianyan.engine.runner import Runner

WIDTH, HEIGHT = 1008, 756
SCHEMA = {"type": "array", "items": {"type": "integer"}, "minItems": 64, "maxItems": 64}
NUMBERS = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": SCHEMA}}


def question(words: str, seed: int | None = None) -> list[dict[str, Any]]:
    """Ask in words, after a random picture if a seed is given."""
    content: list[dict[str, Any]] = [{"type": "text", "text": words}]
    if seed is not None:
        blocks = np.random.default_rng(seed).integers(0, 256, (27, 36, 3), dtype=np.uint8)
        picture = Image.fromarray(blocks).resize((WIDTH, HEIGHT))
        content.insert(0, {"type": "image", "image": picture})
    return [{"role": "user", "content": content}]


def overhead_ms(engine: Engine, *, batch: int, max_tokens: int, **options: Any) -> float:
    """Give the median milliseconds of a step outside its forward pass, prompts left out."""
    forward, step = Runner.forward, Engine.step
    inside: list[float] = []
    outside: list[float] = []

    def timed_forward(runner: Runner, plan: Plan) -> torch.Tensor:
        begin = time.perf_counter()
        logits = forward(runner, plan)
        inside.append(time.perf_counter() - begin)
        return logits

    def timed_step(engine: Engine) -> list[Request]:
        begin = time.perf_counter()
        finished = step(engine)
        if not finished:  # the last steps have fewer requests
            outside.append(time.perf_counter() - begin - inside[-1])
        return finished

    Runner.forward, Engine.step = timed_forward, timed_step  # type: ignore[method-assign]
    try:
        questions = [question(f"Say number {index}.") for index in range(batch)]
        engine.chat_many(questions, max_tokens=max_tokens, **options)
    finally:
        Runner.forward, Engine.step = forward, step  # type: ignore[method-assign]
    return 1000 * statistics.median(outside[1:])


def first_token_seconds(engine: Engine, messages: list[dict[str, Any]]) -> float:
    """Time a question from its pixels to its first token."""
    begin = time.perf_counter()
    engine.chat(messages, max_tokens=1)
    return time.perf_counter() - begin


def measure(engine: Engine, *, batch: int, max_tokens: int, rounds: int) -> dict[str, float]:
    """Take all figures; the first question of the process is not counted."""
    first_token_seconds(engine, question("What burns here?", seed=0))
    seen, again = [], []
    for seed in range(1, rounds + 1):
        seen.append(first_token_seconds(engine, question("What burns here?", seed)))
        again.append(first_token_seconds(engine, question("Where is the exit?", seed)))
    size = {"batch": batch, "max_tokens": max_tokens}
    return {
        "overhead_free_ms": overhead_ms(engine, **size),
        "overhead_schema_ms": overhead_ms(engine, **size, response_format=NUMBERS),
        "first_question_s": statistics.median(seen),
        "second_question_s": statistics.median(again),
        "second_to_first": statistics.median(again) / statistics.median(seen),
    }


def main() -> None:
    """Measure one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder of the JSON; none is written without")
    options = parser.parse_args()
    engine = Engine(options.checkpoint)
    now = datetime.now(UTC)
    figures = {
        "when": now.isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "checkpoint": options.checkpoint.name,
        "batch": options.batch,
        **measure(
            engine, batch=options.batch, max_tokens=options.max_tokens, rounds=options.rounds
        ),
    }
    print(json.dumps(figures, indent=2))
    if options.out is not None:
        name = f"{now:%Y-%m-%d}-engine-overhead-{options.checkpoint.name}-{platform.node()}.json"
        (options.out / name).write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
