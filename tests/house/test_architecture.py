"""The structure of the code and the page that describes it stay in step."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = REPOSITORY / "src" / "qianyan"
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST_FILE = 500
CATCH_ALLS = {"utils", "util", "common", "helpers", "core", "base", "constants", "types", "misc"}


def test_every_source_file_has_its_line_in_architecture_md() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text("utf-8")
    named = set(re.findall(r"`([\w/]+\.py)`", page))
    real = {str(file.relative_to(SOURCE)) for file in FILES}
    assert real - named == set(), "files without a line in docs/architecture.md"
    assert named - real == set(), "docs/architecture.md names files that do not exist"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_file_is_neither_empty_nor_a_catch_all_nor_too_long(file: Path) -> None:
    lines = file.read_text("utf-8").splitlines()
    assert any(line.strip() for line in lines), "an empty file"
    assert len(lines) <= LONGEST_FILE, "find the second noun in it"
    assert not CATCH_ALLS & set(file.relative_to(SOURCE).with_suffix("").parts)


def functions_named(name: str) -> list[str]:
    return [
        str(file.relative_to(SOURCE))
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
    ]


def test_smart_resize_is_defined_once() -> None:
    assert functions_named("smart_resize") == ["inputs/images.py"]


def test_environment_is_read_in_settings_only() -> None:
    readers = [
        str(file.relative_to(SOURCE))
        for file in FILES
        if re.search(r"\bos\.(environ|getenv)\b", file.read_text("utf-8"))
    ]
    assert readers in ([], ["settings.py"])


def test_no_broad_except_hides_a_failure() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                names = ast.unparse(node.type) if node.type else "everything"
                assert names not in {"everything", "Exception", "BaseException"}, f"{file}: {names}"


def test_help_imports_nothing_heavy() -> None:
    """`qianyan --help` answers at once because torch and its like are imported only by verbs."""
    code = (
        "import sys\n"
        "from qianyan.cli import main\n"
        "sys.argv = ['qianyan', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'httpx2', 'PIL', 'typst', 'llguidance'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("heavy: []"), done.stdout[-300:]
