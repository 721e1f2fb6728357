"""What does a pass cost that guesses tokens ahead, and what does an answer gain by it?

    python benchmarks/prompt_lookup.py CHECKPOINT [--quantize int8]

Any folder will do; `make_checkpoint.py` writes random ones. First the median time of a pass over
one known token and some guesses, by their number. Then whole greedy answers with and without
guessing, in turns: the answers of random weights soon repeat themselves, which is the best case;
drawn at a high temperature they never do, which is the common worst. Prints, and writes as JSON.
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

import torch

from qianyan.engine.engine import Engine
from qianyan.engine.plan import Chunk, Plan
from qianyan.engine.scheduler import EngineConfig

COUNTS = (0, 1, 2, 3, 4, 8)
QUESTION = [{"role": "user", "content": "Which rules hold in the hall? " * 60}]


def pass_ms(engine: Engine, *, repeats: int) -> dict[int, float]:
    """Give the median milliseconds of a pass behind a prompt, by the number of guesses."""
    request, prompt = engine.prepare(QUESTION, {"max_tokens": 100})
    engine.submit(request, prompt)
    while not request.output_token_ids:
        engine.step()
    start = request.num_computed_tokens
    times: dict[int, list[float]] = {count: [] for count in COUNTS}
    engine._scheduler.plan()  # noqa: SLF001  (a block for what follows)
    room = 16 * len(request.block_table) - start
    for _ in range(repeats):
        for count in COUNTS:
            if count + 1 > room:
                continue
            chunk = Chunk(request, start, start + 1 + count, is_last=True, drafts=(5,) * count)
            begin = time.perf_counter()
            engine._runner.forward(Plan((chunk,)))  # noqa: SLF001
            times[count].append(1000 * (time.perf_counter() - begin))
    engine.forget([request])
    return {count: statistics.median(several) for count, several in times.items() if several}


def answer(engine: Engine, **options: Any) -> tuple[float, float]:
    """Answer once; give milliseconds a token behind the first one, and passes a token."""
    events = engine.stream(QUESTION, **options)
    next(events)
    begin = time.perf_counter()
    *_, last = events
    seconds = time.perf_counter() - begin
    usage = last.completion.usage  # type: ignore[union-attr]
    return 1000 * seconds / (usage.completion_tokens - 1), (
        usage.forwarded_tokens / usage.completion_tokens
    )


def main() -> None:
    """Measure one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--quantize", choices=("int8", "int4"))
    parser.add_argument("--max-draft-tokens", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder of the JSON; none is written without")
    options = parser.parse_args()
    engines = [
        Engine(
            options.checkpoint,
            quantize=options.quantize,
            config=EngineConfig(max_draft_tokens=most, max_cache_tokens=4096),
        )
        for most in (options.max_draft_tokens, 0)
    ]
    now = datetime.now(UTC)
    figures: dict[str, Any] = {
        "when": now.isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "checkpoint": options.checkpoint.name,
        "quantize": options.quantize,
        "pass_ms_by_guesses": pass_ms(engines[1], repeats=5 * options.rounds),
    }
    for name, how in (("repeating", {"temperature": 0}), ("varied", {"temperature": 2, "seed": 1})):
        timings = [
            [answer(engine, max_tokens=options.max_tokens, **how) for engine in engines]
            for _ in range(options.rounds)
        ]
        for index, kind in enumerate(("guessing", "plain")):
            ms, passes = (statistics.median(round_[index][i] for round_ in timings) for i in (0, 1))
            figures[f"{name}_{kind}"] = {"ms_per_token": ms, "passes_per_token": passes}
    print(json.dumps(figures, indent=2))
    if options.out is not None:
        kind = options.quantize or "plain"
        name = f"{now:%Y-%m-%d}-prompt-lookup-{options.checkpoint.name}-{kind}-{platform.node()}"
        (options.out / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
