"""The server under load, the small form of benchmarks/online.py: real processes, real sockets."""

import math
import runpy
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "online.py"


@pytest.fixture(scope="module")
def online() -> dict[str, Any]:
    return runpy.run_path(str(BENCHMARK))


@pytest.mark.parametrize("pass_ms", [5.0, None], ids=["stand-in", "judge"])
def test_those_who_stay_read_what_each_reads_alone_while_a_fifth_leaves(
    online: dict[str, Any], pass_ms: float | None
) -> None:
    figures = online["measure_crowd"](pass_ms=pass_ms, num_tokens=12)
    assert figures["left_midway"] / figures["streams"] >= 0.2
    assert figures["same_as_alone"] == figures["stayed"] == 51
    assert figures["idle_after_end_s"] < 1
    assert figures.get("idle_after_all_left_s", 0) < 1


def test_what_the_front_end_costs_is_measured(online: dict[str, Any]) -> None:
    # How much it may be is the benchmark's matter: a busy machine would tell anything here.
    figures = online["measure_overhead"](rounds=3, num_tokens=16)
    assert math.isfinite(figures["overhead_request_ms"])
    assert math.isfinite(figures["overhead_token_ms"])


def test_memory_does_not_follow_the_number_of_pictures(online: dict[str, Any]) -> None:
    figures = online["measure_pictures"](num_requests=200)
    assert figures["growth_of_second_half_mib"] < 40


@pytest.mark.slow
def test_memory_is_flat_over_two_thousand_pictures(online: dict[str, Any]) -> None:
    figures = online["measure_pictures"](num_requests=2000)
    assert figures["growth_of_second_half_mib"] < 20
