"""How fast a model works on this machine, part by part, and how near to the machine's limits.

One question at a time: the first of the process apart, then the median of `REPEATS`; then several
together. Every question should bring another picture, because an engine may remember. Where time
goes is seen from outside (`passes.py`); what it could be at best follows from the operations and
bytes (`costs.py`) and the machine (`limits.py`).
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from qianyan.engine.checkpoint import find_checkpoint
from qianyan.engine.costs import (
    compute_dtype,
    read_bytes_per_pass,
    stored_bytes,
    text_costs,
    vision_flops,
)
from qianyan.engine.engine import Engine, Messages
from qianyan.engine.limits import MachineLimits, measure_limits
from qianyan.engine.options import ChatOptions
from qianyan.engine.passes import PassLog
from qianyan.engine.request import Finished, Usage
from qianyan.engine.scheduler import EngineConfig
from qianyan.engine.throughput import (
    BatchTiming,
    GrowthLimit,
    fastest,
    measure_growth,
    name_growth_limit,
)
from qianyan.models.positions import Grid
from qianyan.models.registry import ModelConfig, read_config

REPEATS = 3
PROC_STATUS = Path("/proc/self/status")

Part = Literal["preparation", "vision", "prefill", "decode", "engine"]
PARTS: tuple[Part, ...] = ("preparation", "vision", "prefill", "decode", "engine")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One answer. `parts` are seconds and add up to `total_s`.

    preparation: messages to tokens and pixels. vision: the tower. prefill: passes until the first
    token is known. decode: passes after it. engine: what lies between passes, such as sampling,
    grammar and planning. `pass_s` is the median of a decode pass. `context_tokens` precede the
    first token that is drawn: the prompt and what the grammar forces; `computed_tokens` of them
    were not remembered from an earlier question.
    """

    parts: dict[Part, float]
    total_s: float
    first_token_s: float
    pass_s: float
    prompt_tokens: int
    context_tokens: int
    computed_tokens: int
    completion_tokens: int
    decode_passes: int
    grids: tuple[Grid, ...]

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens of the answer by the time after the first one, forced ones among them."""
        return _rate(self.completion_tokens, self.total_s - self.first_token_s)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Tokens of the prompt by the time of their passes."""
        return _rate(self.computed_tokens, self.parts["prefill"])


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How much of the machine's limits is reached, 1 is all; None where a limit is not known.

    vision and prefill: of the matrix rate of the format that is computed in. decode: of the read
    bandwidth, by the bytes of weights that a pass reads; above 1 where weights stay in the
    processor's cache.
    """

    vision: float | None
    prefill: float | None
    decode: float | None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All that was measured of one model, and the machine; the peak is that of the questions.

    `growth` begins with one question alone; `batch` is the fastest of the others. Where none were
    asked together, both it and `growth_limit` are None.
    """

    limits: MachineLimits
    name: str
    architecture: str
    dtype: str
    load_s: float
    weights_bytes: int
    read_bytes_per_pass: int
    vision_flops: int
    prefill_flops: int
    first: Timing
    steady: Timing
    growth: tuple[BatchTiming, ...]
    growth_limit: GrowthLimit | None
    batch: BatchTiming | None
    shares: Shares
    peak_rss_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A loaded engine."""

    engine: Engine
    config: ModelConfig
    device: str
    load_s: float

    @classmethod
    def open(
        cls, model: str | Path, *, dtype: str, device: str, quantize: str, max_pixels: int | None
    ) -> "Bench":
        """Load a checkpoint as `Engine` does, and raise what it raises."""
        folder = find_checkpoint(model)
        started = time.perf_counter()
        engine = Engine(
            folder,
            dtype=dtype,
            device=device,
            quantize=quantize,
            max_pixels=max_pixels,
            # How many guesses come true is the answer's doing, not the machine's.
            config=EngineConfig(max_draft_tokens=0),
        )
        return cls(
            engine=engine,
            config=read_config(folder),
            device=device,
            load_s=time.perf_counter() - started,
        )

    @property
    def dtype(self) -> str:
        """The format that is computed in: the norms', which no quantisation touches."""
        return str(compute_dtype(self.engine.model)).removeprefix("torch.")

    def time_one(self, messages: Messages, options: ChatOptions) -> Timing:
        """Ask one question and see where its time goes."""
        with PassLog(self.engine.model, self.device) as log:
            num_forced, started = 0, time.perf_counter()
            for event in self.engine.stream(messages, **options):
                num_forced += not log.passes
                last = event
            total_s = time.perf_counter() - started
        assert isinstance(last, Finished)
        timing = _to_timing(log, last.completion.usage, started=started, total_s=total_s)
        return replace(timing, context_tokens=timing.prompt_tokens + num_forced)

    def time_together(self, conversations: list[Messages], options: ChatOptions) -> float:
        """Ask several questions as one batch; return the seconds."""
        started = time.perf_counter()
        self.engine.chat_many(conversations, **options)
        return time.perf_counter() - started


def measure(
    bench: Bench,
    questions: Iterator[Messages],
    options: ChatOptions,
    *,
    num_together: int,
    say: Callable[[str], None] = lambda _: None,
) -> Figures:
    """Measure a model, then the machine, whose large buffers must not count as the model's.

    Args:
        bench: the engine.
        questions: conversations without end, each with a picture of its own.
        options: how answers are to be; greedy, and bounded by a grammar or max_tokens.
        num_together: questions of the largest batch; below 2 none is asked.
        say: is told "first", "steady", "batch" and "machine" as they begin.
    """
    say("first")
    first = bench.time_one(next(questions), options)
    say("steady")
    steady = median_timing(
        [bench.time_one(question, options) for question in islice(questions, REPEATS)]
    )
    room = _room(bench.engine, steady, options)
    if num_together > 1:
        say("batch")
    growth = measure_growth(
        lambda count: bench.time_together(list(islice(questions, count)), options),
        alone_s=steady.total_s,
        most=min(num_together, room),
        repeats=REPEATS,
    )
    peak = peak_rss_bytes()
    say("machine")
    limits = measure_limits(bench.device)
    seeing = vision_flops(bench.config, steady.grids)
    reading = text_costs(bench.config).flops(steady.computed_tokens, steady.context_tokens)
    read_bytes = read_bytes_per_pass(bench.engine.model, bench.config)
    shares = Shares(
        vision=_share(seeing, steady.parts["vision"], matrix_rate(limits, bench.dtype)),
        prefill=_share(reading, steady.parts["prefill"], matrix_rate(limits, bench.dtype)),
        decode=_share(read_bytes, steady.pass_s, limits.read_bytes_per_s),
    )
    part = max(PARTS, key=lambda name: steady.parts[name])
    together = growth[1:]
    return Figures(
        limits=limits,
        name=bench.engine.name,
        architecture=bench.engine.architecture,
        dtype=bench.dtype,
        load_s=bench.load_s,
        weights_bytes=stored_bytes(bench.engine.model),
        read_bytes_per_pass=read_bytes,
        vision_flops=seeing,
        prefill_flops=reading,
        first=first,
        steady=steady,
        growth=growth,
        growth_limit=name_growth_limit(
            growth, most=num_together, room=room, part=part, share=getattr(shares, part, None)
        )
        if together
        else None,
        batch=fastest(together) if together else None,
        shares=shares,
        peak_rss_bytes=peak,
    )


def _room(engine: Engine, steady: Timing, options: ChatOptions) -> int:
    """Count the questions whose longest answers the cache has room for at the same time."""
    cache_tokens = engine.config.max_cache_tokens
    assert cache_tokens is not None
    return max(1, cache_tokens // (steady.prompt_tokens + (options.get("max_tokens") or 0)))


def matrix_rate(limits: MachineLimits, dtype: str) -> float | None:
    """Give the machine's matrix rate in a format; float16 counts as the other 16-bit format."""
    return limits.matrix_rates.get("bfloat16" if dtype == "float16" else dtype)


def median_timing(timings: Iterable[Timing]) -> Timing:
    """Take the median of every figure."""
    several = list(timings)
    values = {one.name: [getattr(t, one.name) for t in several] for one in fields(Timing)}
    merged = {
        name: column[-1] if name == "grids" else statistics.median(column)
        for name, column in values.items()
        if name != "parts"
    }
    parts = {part: statistics.median(t.parts[part] for t in several) for part in PARTS}
    return Timing(parts=parts, **merged)


def peak_rss_bytes() -> int | None:
    """Read the largest resident memory of this process so far; None where it is not told."""
    try:
        lines = PROC_STATUS.read_text("utf-8").splitlines()
    except OSError:
        return None
    sizes = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return next((1024 * int(size) for size in sizes), None)


def _to_timing(log: PassLog, usage: Usage, *, started: float, total_s: float) -> Timing:
    sampling = next((i for i, one in enumerate(log.passes) if one.num_rows), len(log.passes))
    prefill, decode = log.passes[: sampling + 1], log.passes[sampling + 1 :]
    begins = [one.started for one in log.looks] + [one.started for one in log.passes]
    parts: dict[Part, float] = {
        "preparation": min(begins, default=started + total_s) - started,
        "vision": sum(one.seconds for one in log.looks),
        "prefill": sum(one.seconds for one in prefill),
        "decode": sum(one.seconds for one in decode),
    }
    parts["engine"] = max(0.0, total_s - sum(parts.values()))
    return Timing(
        parts=parts,
        total_s=total_s,
        first_token_s=prefill[-1].stopped - started if prefill else total_s,
        pass_s=statistics.median(one.seconds for one in decode) if decode else 0.0,
        prompt_tokens=usage.prompt_tokens,
        context_tokens=usage.prompt_tokens,
        computed_tokens=sum(one.num_tokens for one in prefill),
        completion_tokens=usage.completion_tokens,
        decode_passes=len(decode),
        grids=tuple(grid for look in log.looks for grid in look.grids),
    )


def _share(work: float, seconds: float, limit: float | None) -> float | None:
    if not limit or not seconds or not work:
        return None
    return work / seconds / limit


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
