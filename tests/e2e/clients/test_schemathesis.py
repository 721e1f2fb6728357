"""schemathesis sends what /openapi.json allows and what it does not, to every route.

Nothing may end with 5xx, and a refusal has the body of its dialect, whatever was wrong
(`programs/api_checks.py`).
"""

import re
from pathlib import Path
from typing import Any

import pytest

KEY = "sk-e2e-0123456789"
CHECKS = "never_fails,refuses_in_its_dialect"


def attack(programs: Any, address: str, *options: str) -> int:
    """Let it run; give the number of cases, all of which passed."""
    said: str = programs.say(
        "schemathesis", "run", f"{address}/openapi.json", "-H", f"Authorization: Bearer {KEY}",
        "--checks", CHECKS, "--suppress-health-check", "all", "--warnings", "off",
        "--request-timeout", "60", *options,
        SCHEMATHESIS_HOOKS="api_checks", PYTHONPATH=str(Path(__file__).parent / "programs"),
    )  # fmt: skip
    found = re.search(r"(\d+) generated, (\d+) passed", said)
    assert found, said[-3000:]
    assert found[1] == found[2], said[-3000:]
    return int(found[1])


def test_some_cases_over_all_routes(programs: Any, house: Any) -> None:
    how = ("--phases", "fuzzing", "-n", "3", "--generation-deterministic")
    assert attack(programs, house.address, *how) > 100
    house.wait_until_idle(2)


@pytest.mark.slow
def test_two_thousand_cases_over_all_routes(programs: Any, house: Any) -> None:
    how = ("--phases", "coverage,fuzzing", "-n", "60", "--seed", "5")
    assert attack(programs, house.address, *how) >= 2000
    house.wait_until_idle(2)
