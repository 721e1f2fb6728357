"""docs/api.md names every code that an error of the server may have."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "api.md"


def texts(value: ast.expr) -> Iterator[str]:
    """The texts that a `code=` may be: one, or either side of a condition."""
    if isinstance(value, ast.IfExp):
        yield from texts(value.body)
        yield from texts(value.orelse)
    elif isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value


def codes() -> set[str]:
    found = set()
    for room in ("server", "inputs"):
        for path in (ROOT / "src" / "qianyan" / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.keyword) and node.arg == "code":
                    found.update(texts(node.value))
    return found


def test_every_code_is_explained() -> None:
    named = codes()
    assert len(named) > 50
    page = PAGE.read_text("utf-8")
    assert not sorted(code for code in named if f"`{code}`" not in page)
