"""The verb export: what it prints, and its exit codes."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from qianyan.cli import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_pair: Path) -> Path:
    """A folder with a finished run in monday/, by a detector that reports fire everywhere."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "site").mkdir()
    for index in range(2):
        picture = Image.new("RGB", (80, 60), (index * 90, 40, 0))
        picture.save(folder / "site" / f"p{index}.png")
    look = ["--model", str(tiny_pair), "--look", "detector"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["inspect", "site", *look, "--out", "monday", "--quiet"]) == 0
    return folder


@pytest.fixture
def inspected(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, in the working folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_hard_cases_go_out_and_are_counted(
    inspected: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "monday", "--to", "coco", "--out", "hard", "--low-score", "1"]
    assert run([*words, "--lang", "en"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "hard\n"
    assert "2 of 2 pictures went out.\nHard because of: low score 2" in shown.err
    assert "2 not (wholly) reviewed" in shown.err
    coco = Path("hard/predictions/annotations/instances_default.json")
    assert {one["name"] for one in json.loads(coco.read_text("utf-8"))["categories"]} == {
        *("fire", "smoke", "person")
    }
    assert run([*words, "--force"]) == 0
    assert "导出 2 / 2 张图片" in capsys.readouterr().err


def test_missing_pictures_end_in_part(inspected: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("monday/images/p0.png").unlink()
    Path("site/p0.png").unlink()
    assert run(["export", "monday", "--to", "cvat", "--only", "all", "--lang", "en"]) == 4
    shown = capsys.readouterr().err
    assert "1 of 2 pictures went out." in shown
    assert "1 could not go out:\n  'site/p0.png': it is neither in the results folder" in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["none", "--to", "coco"], "'none' cannot be opened"),
        (["site", "--to", "coco"], "'site' has no results.json"),
        (["monday", "--to", "coco", "--only", "reviewed"], "has been reviewed; name review files"),
        (["monday", "--to", "coco", "--out", "site"], "'{here}/site' is not empty"),
        (["monday", "--to", "coco", "--labeled-categories", "fire,water"], "expected some of fire"),
        (["monday", "--to", "coco", "--low-score", "7"], "'--low-score'"),
        (["monday", "--to", "pascal"], "'--to'"),
        (["monday", "--to", "coco", "--reviews", "none.jsonl"], "'none.jsonl' cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(
    inspected: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", *words]) == 2
    shown = capsys.readouterr()
    assert sentence.replace("{here}", str(inspected)) in shown.err
    assert shown.out == ""


def test_conversations_need_to_know_their_model(
    inspected: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "monday", "--to", "jsonl", "--only", "all"]
    assert run(words) == 2
    assert "expected that model with --model" in capsys.readouterr().err
    assert run([*words, "--model", "bundled"]) == 0
    lines = Path("export/predictions/conversations.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 2
