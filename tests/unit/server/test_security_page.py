"""docs/security.md says what the code does: its open paths, its limits, the tests it names."""

import dataclasses
import re
from pathlib import Path

import pytest

from qianyan.server.auth import OPEN_PATHS
from qianyan.server.settings import ServerLimits

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "security.md"


def section(title: str) -> str:
    text = PAGE.read_text("utf-8")
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_open_paths_are_those_of_the_code() -> None:
    named = re.findall(r"(?m)^\| (`/[^|]+) \|", section("What is open"))
    assert set(re.findall(r"`(/\S+)`", " ".join(named))) == OPEN_PATHS


def test_every_limit_is_there_with_its_default() -> None:
    told = dict(re.findall(r"(?m)^\| `(\w+)` \| ([\d .]+) \|", section("Limits")))
    for field in dataclasses.fields(ServerLimits):
        assert float(told.pop(field.name).replace(" ", "")) == field.default
    assert not told


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", section("Threats"))
    assert len(named) > 40
    sources: dict[str, str] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        sources[path.name] = sources.get(path.name, "") + path.read_text("utf-8")
    missing = [name for file, name in named if f"def {name}(" not in sources.get(file, "")]
    assert not missing


@pytest.mark.parametrize("title", ["Keys", "What is not promised"])
def test_the_page_is_whole(title: str) -> None:
    assert len(section(title)) > 300
