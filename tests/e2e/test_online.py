"""The server under load, the small form of benchmarks/online.py: real processes, real sockets."""

import runpy
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "online.py"
SLACK = 5
"""How much slower than its target a test on a busy machine may find the front end."""


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


def test_the_front_end_costs_little_beside_a_pass(online: dict[str, Any]) -> None:
    figures = online["measure_overhead"](rounds=10, num_tokens=32)
    assert figures["overhead_request_ms"] < 5 * SLACK
    assert figures["overhead_token_ms"] < 0.5 * SLACK


def test_memory_does_not_follow_the_number_of_pictures(online: dict[str, Any]) -> None:
    figures = online["measure_pictures"](num_requests=200)
    assert figures["growth_of_second_half_mib"] < 40


@pytest.mark.slow
def test_memory_is_flat_over_two_thousand_pictures(online: dict[str, Any]) -> None:
    figures = online["measure_pictures"](num_requests=2000)
    assert figures["growth_of_second_half_mib"] < 20
