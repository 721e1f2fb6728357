"""Every example runs as its first lines say."""

import subprocess
import sys
from pathlib import Path

import pytest

from qianyan.train.scenes import draw_examples

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_examples(tmp_path_factory.mktemp("pictures"))


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "ask_a_photo.py",
        "inspect_folder.py",
        "structured_output.py",
    }


def test_inspect_folder_says_something_about_every_picture(pictures: list[Path]) -> None:
    said = run("inspect_folder.py", str(pictures[0].parent))
    assert all(picture.name in said for picture in pictures)


def test_ask_a_photo_prints_a_sentence(pictures: list[Path]) -> None:
    assert run("ask_a_photo.py", str(pictures[1])).strip()


def test_structured_output_prints_an_object_with_both_fields(pictures: list[Path]) -> None:
    said = run("structured_output.py", str(pictures[1]))
    assert "'hazard'" in said
    assert "'certain'" in said
