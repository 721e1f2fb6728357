"""What is measured of a model: forms, counts and arithmetic; never how fast this machine is."""

import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qianyan.engine import limits as limits_module
from qianyan.engine.benchmark import (
    PARTS,
    Bench,
    Figures,
    Timing,
    matrix_rate,
    measure,
    median_timing,
    peak_rss_bytes,
)
from qianyan.engine.costs import text_costs, vision_flops
from qianyan.engine.limits import MachineLimits
from qianyan.engine.options import ChatOptions
from qianyan.errors import CheckpointError, ConfigError

FORM = {"type": "regex", "pattern": "box [0-9]{3}, 12"}
OPTIONS = ChatOptions(temperature=0, max_tokens=64, response_format=FORM)


def questions() -> Iterator[list[dict[str, Any]]]:
    for number in count():
        picture = Image.new("RGB", (112, 84), (number % 256, 20, 10))
        parts = [{"type": "image", "image": picture}, {"type": "text", "text": "the box"}]
        yield [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def bench(tiny_checkpoint: Path) -> Bench:
    """The tiny checkpoint, opened to be measured."""
    return Bench.open(tiny_checkpoint, dtype="auto", device="cpu", quantize="none", max_pixels=None)


@pytest.fixture(scope="module")
def steps() -> list[str]:
    """What was said while `figures` were taken."""
    return []


@pytest.fixture(scope="module")
def figures(bench: Bench, steps: list[str]) -> Figures:
    """The tiny checkpoint, measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits_module, "READ_BYTES", 2**20)
        patch.setattr(limits_module, "SIDES", (64,))
        return measure(bench, questions(), OPTIONS, num_together=3, say=steps.append)


def test_the_parts_make_up_the_whole(figures: Figures) -> None:
    timing = figures.first
    assert tuple(timing.parts) == PARTS
    assert all(seconds >= 0 for seconds in timing.parts.values())
    assert sum(timing.parts.values()) == pytest.approx(timing.total_s)
    assert 0 < timing.first_token_s < timing.total_s


def test_tokens_and_passes_are_counted(bench: Bench, figures: Figures) -> None:
    done = bench.engine.chat(next(questions()), **OPTIONS)
    for timing in (figures.first, figures.steady):
        assert timing.grids == ((1, 6, 8),)
        assert timing.prompt_tokens == done.usage.prompt_tokens
        assert timing.completion_tokens == done.usage.completion_tokens
        assert timing.decode_passes == done.usage.forwarded_tokens - 1
        num_forced = next(i for i, step in enumerate("box 000") if step.isdigit())
        assert timing.prompt_tokens < timing.context_tokens <= timing.prompt_tokens + num_forced
        assert 0 < timing.computed_tokens <= timing.context_tokens


def test_work_is_that_of_the_config(bench: Bench, figures: Figures) -> None:
    steady = figures.steady
    assert figures.vision_flops == vision_flops(bench.config, [(1, 6, 8)])
    assert figures.prefill_flops == text_costs(bench.config).flops(
        steady.computed_tokens, steady.context_tokens
    )
    assert figures.dtype == "float32"
    assert figures.weights_bytes > figures.read_bytes_per_pass > 0


def test_shares_are_work_by_time_by_limit(figures: Figures) -> None:
    steady, limits = figures.steady, figures.limits
    rate = limits.matrix_rates["float32"]
    assert rate is not None
    assert figures.shares.vision == pytest.approx(
        figures.vision_flops / steady.parts["vision"] / rate
    )
    assert figures.shares.prefill == pytest.approx(
        figures.prefill_flops / steady.parts["prefill"] / rate
    )
    assert figures.shares.decode == pytest.approx(
        figures.read_bytes_per_pass / steady.pass_s / limits.read_bytes_per_s
    )


def test_a_batch_is_counted_in_pictures(figures: Figures) -> None:
    batch = figures.batch
    assert batch is not None
    assert batch.pictures in (2, 3)
    assert batch.pictures_per_minute == pytest.approx(60 * batch.pictures / batch.seconds)
    assert [one.pictures for one in figures.growth] in ([1, 2], [1, 2, 3])
    assert figures.growth_limit is not None


def test_each_step_is_said_as_it_begins(figures: Figures, steps: list[str]) -> None:
    assert figures.batch is not None
    assert steps == ["first", "steady", "batch", "machine"]


def timing(seconds: float, *, tokens: int = 10) -> Timing:
    return Timing(
        parts=dict.fromkeys(PARTS, seconds),
        total_s=5 * seconds,
        first_token_s=3 * seconds,
        pass_s=seconds / 10,
        prompt_tokens=100,
        context_tokens=110,
        computed_tokens=tokens,
        completion_tokens=8,
        decode_passes=10,
        grids=((1, 2, 2),),
    )


def test_the_median_is_taken_figure_by_figure() -> None:
    merged = median_timing([timing(9.0, tokens=30), timing(1.0, tokens=20), timing(2.0)])
    assert merged.parts == dict.fromkeys(PARTS, 2.0)
    assert merged.total_s == 10.0
    assert merged.computed_tokens == 20
    assert merged.grids == ((1, 2, 2),)


def test_rates_are_tokens_by_seconds() -> None:
    assert timing(2.0).decode_tokens_per_s == pytest.approx(8 / 4)
    assert timing(2.0).prefill_tokens_per_s == pytest.approx(10 / 2)
    assert timing(0.0).decode_tokens_per_s == 0


def test_both_formats_of_16_bits_share_a_rate() -> None:
    limits = MachineLimits(
        processor="p",
        cores=1,
        threads=1,
        memory_bytes=None,
        device="cpu",
        torch="2",
        read_bytes_per_s=1.0,
        matrix_rates={"float32": 1.0, "bfloat16": 2.0, "int8": None},
    )
    assert matrix_rate(limits, "float32") == 1.0
    assert matrix_rate(limits, "float16") == matrix_rate(limits, "bfloat16") == 2.0
    assert matrix_rate(limits, "float64") is None


def test_a_process_tells_its_peak_where_the_system_does() -> None:
    peak = peak_rss_bytes()
    assert peak is None or (peak > 10**6 and math.isfinite(peak))


def test_what_cannot_be_loaded_is_refused_as_the_engine_refuses_it(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"dtype": "auto", "quantize": "none", "max_pixels": None}
    with pytest.raises(CheckpointError, match="nowhere"):
        Bench.open(tmp_path / "nowhere", device="cpu", **options)
    with pytest.raises(ConfigError, match="device"):
        Bench.open(tiny_checkpoint, device="abacus", **options)
