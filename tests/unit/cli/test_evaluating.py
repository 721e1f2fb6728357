"""`qianyan eval`: what it writes, what it refuses, and what it goes on with."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qianyan.cli import run


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three pictures, a fourth that is missing, and labels for all of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()
    for index in range(3):
        pixels = Image.frombytes("RGB", (64, 48), os.urandom(64 * 48 * 3))
        pixels.save(tmp_path / "site" / f"p{index}.png")
    images = [
        {"id": index, "file_name": f"p{index}.png", "width": 64, "height": 48} for index in range(4)
    ]
    labels = {
        "categories": [{"id": 1, "name": "fire"}, {"id": 2, "name": "vest"}],
        "images": images,
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
    }
    Path("labels.json").write_text(json.dumps(labels))
    return tmp_path


@pytest.fixture
def command(site: Path, tiny_pair: Path) -> list[str]:
    """The command with a quick way to look."""
    look = ["--model", str(tiny_pair), "--look", "detector", "--lang", "en"]
    return ["eval", "--gt", "labels.json", "--images", "site", "--leave-out", "vest", *look]


def evaluation(folder: str = "qianyan-eval") -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(Path(folder, "eval.json").read_text("utf-8"))
    return whole


def test_a_table_is_printed_and_three_files_are_written(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == 4, "one picture is missing"
    out = capsys.readouterr().out
    assert "pictures 4 · not inspected not_found 1 · answer unreadable 0.0% 0/3" in out
    assert "Report: qianyan-eval/eval.html" in out
    figures = evaluation()["figures"]
    assert (figures["pictures"], figures["looked_at"], figures["failed"]) == (
        4,
        3,
        {"not_found": 1},
    )
    assert figures["images"]["fire"]["recall"]["total"] == 1
    assert figures["images"]["fire"]["false_alarms"]["total"] == 2
    page = Path("qianyan-eval/eval.html").read_text("utf-8")
    assert "<script" not in page
    assert "http" not in page
    with Image.open("qianyan-eval/worst.jpg") as sheet:
        assert sheet.width > 400


def test_json_prints_what_is_written(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--json"]) == 4
    assert json.loads(capsys.readouterr().out) == evaluation()


def test_finished_results_are_scored_without_a_model(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run(command)
    scored = ["eval", "qianyan-eval/results.json", "--gt", "labels.json", "--images", "site",
              "--leave-out", "vest", "--model", "nowhere", "--out", "again"]  # fmt: skip
    assert run([*scored, "--against", "qianyan-eval/eval.json"]) == 4
    again, before = evaluation("again"), evaluation()
    assert again["figures"] == before["figures"]
    assert again["comparison"]["pictures"] == 3
    assert {one["p_adjusted"] for one in again["comparison"]["differences"]} == {1.0}
    assert "差别" not in capsys.readouterr().out, "what is the same is not said to differ"


def test_a_worst_picture_that_has_gone_since_is_said_and_shown_by_name(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run(command)
    assert evaluation()["not_drawn"] == []
    Path("site/p1.png").unlink()
    capsys.readouterr()
    scored = ["eval", "qianyan-eval/results.json", "--gt", "labels.json", "--images", "site",
              "--leave-out", "vest", "--lang", "en", "--out", "again"]  # fmt: skip
    run(scored)
    told = "1 of the worst pictures cannot be opened and are shown by name only: 'p1.png'"
    assert told in capsys.readouterr().out
    assert evaluation("again")["not_drawn"] == ["p1.png"]
    assert "its file cannot be opened" in Path("again/eval.html").read_text("utf-8")
    run([*scored, "--overwrite", "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["not_drawn"] == ["p1.png"]
    assert said.err == f"{told}\n"


def test_parts_of_large_pictures_are_looked_at_and_the_report_says_so(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The detector sees 64 pixels a side: a picture four times as large is worth parts."""
    for index in range(3):
        path = Path("site", f"p{index}.png")
        with Image.open(path) as picture:
            picture.resize((256, 192), Image.Resampling.NEAREST).save(path)
    labels = json.loads(Path("labels.json").read_text())
    for one in labels["images"]:
        one |= {"width": 256, "height": 192}
    Path("labels.json").write_text(json.dumps(labels))
    assert run(command) == 4
    assert evaluation()["settings"]["tiles"] == 1
    assert run([*command, "--tiles", "2", "--out", "parts"]) == 4
    whole = evaluation("parts")
    assert whole["settings"]["tiles"] == 2
    assert whole["settings"]["look"] == "detector"
    assert "tiles 2" in Path("parts/eval.html").read_text("utf-8")
    assert whole["figures"]["boxes"] != evaluation()["figures"]["boxes"]
    assert run([*command, "--tiles", "2", "--out", "qianyan-eval", "--resume"]) == 2
    assert "tiles" in capsys.readouterr().err, "one evaluation looks in one way"
    run(["eval", "parts/results.json", *command[1:], "--out", "scored"])
    assert evaluation("scored")["settings"] is None


def write_yolo(folder: Path) -> None:
    (folder / "labels").mkdir(parents=True)
    (folder / "images").symlink_to(Path("site").absolute())
    (folder / "data.yaml").write_text("names: [fire, vest]")
    x, y, w, h = 5.5 / 64, 5.5 / 48, 9 / 64, 9 / 48
    (folder / "labels" / "p1.txt").write_text(f"0 {x} {y} {w} {h}\n")


def write_voc(folder: Path) -> None:
    folder.mkdir()
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>10</ymax>"
    thing = f"<object><name>fire</name><bndbox>{box}</bndbox></object>"
    for index in range(3):
        (folder / f"p{index}.xml").write_text(
            f"<annotation><filename>p{index}.png</filename><size><width>64</width>"
            f"<height>48</height></size>{thing if index == 1 else ''}</annotation>"
        )


@pytest.mark.parametrize("write", [write_yolo, write_voc])
def test_the_same_labels_in_another_form_give_the_same_figures(
    command: list[str], write: Callable[[Path], None]
) -> None:
    run(command)
    write(Path("other"))
    scored = ["eval", "qianyan-eval/results.json", "--gt", "other", "--out", "again"]
    images = ["--leave-out", "vest"] if write is write_yolo else ["--images", "site"]
    assert run([*scored, *images]) == 0, "the missing picture has no label in this form"
    again, before = evaluation("again")["figures"], evaluation()["figures"]
    assert (again["images"], again["boxes"]) == (before["images"], before["boxes"])


def test_an_evaluation_is_not_lost_by_another_one(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run(command)
    before = evaluation()
    assert run(command) == 2
    assert "is there already; use --overwrite" in capsys.readouterr().err
    assert run([*command, "--overwrite", "--against", "qianyan-eval/eval.json"]) == 2
    assert "which this evaluation would replace" in capsys.readouterr().err
    assert evaluation() == before
    assert run([*command, "--overwrite"]) == 4


def test_an_interrupted_evaluation_looks_at_what_is_left_only(command: list[str]) -> None:
    run(command)
    for name in ("eval.json", "eval.html", "results.json"):
        Path("qianyan-eval", name).unlink()
    lines = Path("qianyan-eval/results.jsonl")
    kept = lines.read_text("utf-8").splitlines(keepends=True)[:2]
    lines.write_text("".join(kept) + '{"torn', "utf-8")
    assert run([*command, "--resume"]) == 4
    assert lines.read_text("utf-8").startswith("".join(kept)), "both were kept as they were"
    assert evaluation()["figures"]["looked_at"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There are no labels to score against; name them with --gt."),
        (["--gt", "nothing"], "'nothing' is not there"),
        (["--gt", "labels.json"], "has the class 'vest'"),
        (["--gt", "labels.json", "--against", "none.json"], "'none.json' cannot be opened"),
        (["--gt", "labels.json", "--resume", "--overwrite"], "both given"),
        (["none.json", "--gt", "labels.json", "--leave-out", "vest"], "cannot be opened"),
        (["--events", "labels.json"], "There are no incidents to score"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_sentence(
    site: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_incidents_are_scored_against_spans(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    span = {"label_id": "fire", "start_s": 60, "end_s": 120}
    stream = {"stream": "gate", "duration_s": 3600, "labelled": ["fire"], "spans": [span]}
    raised = [{"stream": "gate", "label_id": "fire", "start_s": start} for start in (66, 900)]
    Path("spans.json").write_text(
        json.dumps({"schema": "qianyan.event-labels/1", "streams": [stream]})
    )
    Path("raised.json").write_text(
        json.dumps({"schema": "qianyan.incidents/1", "incidents": raised})
    )
    command = ["eval", "raised.json", "--events", "spans.json", "--lang", "en"]
    assert run(command) == 0
    assert "fire    100.0% 1/1 (20.7–100.0)      1.00 (0.03–5.57)" in capsys.readouterr().out
    assert run([*command, "--json"]) == 0
    fire = json.loads(capsys.readouterr().out)["hazards"]["fire"]
    assert (fire["false_alarms"], fire["delay_s"]["median"]) == (1, 6.0)
