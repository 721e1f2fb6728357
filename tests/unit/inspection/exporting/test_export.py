"""A whole export: what lies where, what is refused, and that nothing half-written stays."""

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qianyan.errors import ConfigError
from qianyan.inspection.exporting.cases import Reason
from qianyan.inspection.exporting.export import ExportSettings, Format, export
from qianyan.inspection.lessons import things_in
from qianyan.inspection.records import Hazard
from qianyan.inspection.results import to_json, to_record
from qianyan.labels.photos import LabelledBox, LabelledPhoto
from qianyan.labels.reading import read_labels

from .examples import FIRE, WORKER, inspection, picture_id, say, vetoed, write_results

FORMATS: tuple[Format, ...] = ("coco", "yolo", "voc", "labelstudio", "cvat")
ALL_OF_IT = ExportSettings(to="coco", only="all")


def read(folder: Path, to: str) -> dict[str, LabelledPhoto]:
    path = folder / "annotations" / "instances_default.json" if to == "coco" else folder
    return {Path(photo.file).stem: photo for photo in read_labels(path)}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("to", FORMATS)
def test_hard_cases_go_out_in_every_format(to: Format, run_folder: Path, tmp_path: Path) -> None:
    done = export([run_folder], tmp_path / "out", ExportSettings(to=to))
    assert (done.num_inspected, done.num_chosen, done.missing) == (3, 2, [])
    assert done.reasons == {Reason.LOW_SCORE: 1, Reason.UNREADABLE: 1}
    record = json.loads((tmp_path / "out" / "export.json").read_text("utf-8"))
    assert (record["schema"], record["to"]) == ("qianyan.export/1", to)
    assert [one["name"] for one in record["pictures"]] == ["low.png", "x.png"]
    assert record["pictures"][0]["reasons"] == ["low_score"]
    placed = list((tmp_path / "out").rglob("*.png"))
    assert {path.name for path in placed} == {"low.png", "x.png"}
    assert all(path.samefile(run_folder / "images" / path.name) for path in placed)


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
def test_what_nobody_reviewed_is_no_label(to: Format, run_folder: Path, tmp_path: Path) -> None:
    export([run_folder], tmp_path / "out", ExportSettings(to=to, only="all"))
    assert names(tmp_path / "out") == {"predictions", "export.json"}
    predicted = read(tmp_path / "out" / "predictions", to)
    assert [box.kind for box in predicted["sure"].boxes] == ["fire", "person"]
    assert predicted["sure"].labelled == {"fire", "smoke", "person"}


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
def test_reviewed_boxes_are_labels(to: Format, run_folder: Path, tmp_path: Path) -> None:
    say(run_folder, "sure.png", "wrong", FIRE)
    say(run_folder, "sure.png", "moved", WORKER, moved_to=[38, 10, 60, 49], sub_label="no_helmet")
    say(run_folder, "sure.png", "complete")
    done = export([run_folder], tmp_path / "out", ExportSettings(to=to))
    assert (done.num_labelled, done.num_predicted) == (1, 2)
    assert done.reasons[Reason.WRONG] == 1
    (photo,) = read(tmp_path / "out" / "reviewed", to).values()
    assert photo.labelled == {"fire", "smoke", "person"}
    (box,) = photo.boxes
    assert (box.kind, box.box) == ("person", pytest.approx((38, 10, 60, 49), abs=1e-3))
    assert box.sub_label == (None if to == "yolo" else "no_helmet")
    proposed = set(read(tmp_path / "out" / "predictions", to))
    assert proposed == ({"low"} if to == "voc" else {"low", "x"})  # no XML says "not looked at"


def test_what_was_reviewed_is_what_training_teaches(run_folder: Path, tmp_path: Path) -> None:
    say(run_folder, "sure.png", "wrong", FIRE)
    say(run_folder, "sure.png", "right", WORKER)
    formats: tuple[Format, ...] = ("coco", "voc")
    for to in formats:
        export(
            [run_folder],
            tmp_path / to,
            ExportSettings(to=to, categories=(Hazard.FIRE, Hazard.PERSON)),
        )
        things, known = things_in(read(tmp_path / to / "reviewed", to)["sure"])
        assert known == {Hazard.FIRE, Hazard.PERSON}
        assert [(one.hazard, one.sub_label) for one in things] == [(WORKER.label, WORKER.sub_label)]


def test_a_picture_reviewed_in_part_is_labelled_in_part(run_folder: Path, tmp_path: Path) -> None:
    say(run_folder, "sure.png", "right", FIRE)
    settings = ExportSettings(to="coco", only="reviewed")
    export([run_folder], tmp_path / "coco", settings)
    (photo,) = read(tmp_path / "coco" / "reviewed", "coco").values()
    assert photo.labelled == {"fire"}
    assert photo.boxes == (LabelledBox("fire", (10, 5, 30, 25), None, "severe"),)
    proposed = read(tmp_path / "coco" / "predictions", "coco")["sure"]
    assert [box.kind for box in proposed.boxes] == ["fire", "person"]
    export([run_folder], tmp_path / "yolo", ExportSettings(to="yolo", only="reviewed"))
    assert names(tmp_path / "yolo") == {"predictions", "export.json"}  # persons may be unlabelled


@pytest.mark.parametrize("to", FORMATS)
def test_only_the_categories_asked_for_count(to: Format, run_folder: Path, tmp_path: Path) -> None:
    say(run_folder, "sure.png", "right", FIRE)
    settings = ExportSettings(to=to, only="reviewed", categories=(Hazard.FIRE,))
    done = export([run_folder], tmp_path / "out", settings)
    assert (done.num_labelled, done.num_predicted) == (1, 0)
    assert "predictions" not in names(tmp_path / "out")
    texts = [path.read_text("utf-8") for path in (tmp_path / "out").rglob("*")
             if path.suffix in (".txt", ".xml", ".json", ".yaml")]  # fmt: skip
    assert not any("person" in text for text in texts)
    if to in ("coco", "yolo", "voc"):
        (photo,) = read(tmp_path / "out" / "reviewed", to).values()
        assert (photo.labelled, len(photo.boxes)) == ({"fire"}, 1)


def test_names_of_two_runs_do_not_collide(run_folder: Path, tmp_path: Path) -> None:
    pictures = [inspection("low.png", WORKER), vetoed("LOW.png", FIRE)]
    other = write_results(tmp_path / "b", pictures, red=100)
    settings = ExportSettings(to="coco", only="all", copy_pictures=True)
    done = export([run_folder, other / "results.json"], tmp_path / "out", settings)
    assert (done.num_inspected, done.num_repeated) == (5, 0)
    placed = tmp_path / "out" / "predictions" / "images"
    assert names(placed) == {"sure.png", "low.png", "x.png", "low-2.png", "LOW-3.png"}
    assert not (placed / "low.png").samefile(run_folder / "images" / "low.png")
    assert (placed / "low-2.png").read_bytes() == (other / "images" / "low.png").read_bytes()


def test_the_last_word_of_two_runs_on_a_picture_counts(run_folder: Path, tmp_path: Path) -> None:
    again = write_results(tmp_path / "b", [vetoed("sure.png", FIRE)])
    done = export([run_folder, again], tmp_path / "out", ALL_OF_IT)
    assert (done.num_inspected, done.num_repeated) == (3, 1)
    assert read(tmp_path / "out" / "predictions", "coco")["sure"].boxes == ()


def test_a_missing_picture_is_named_and_the_others_go_out(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "images" / "low.png").unlink()
    done = export([run_folder], tmp_path / "out", ALL_OF_IT)
    ((source, reason),) = done.missing
    assert source == "site/low.png"
    assert "neither in the results folder" in reason
    assert set(read(tmp_path / "out" / "predictions", "coco")) == {"sure", "x"}
    record = json.loads((tmp_path / "out" / "export.json").read_text("utf-8"))
    assert record["missing"] == [{"source": source, "reason": reason}]


def test_no_picture_at_all_is_an_error(run_folder: Path, tmp_path: Path) -> None:
    for path in (run_folder / "images").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="None of the 3 pictures can go out; the first is 'site"):
        export([run_folder], tmp_path / "out", ALL_OF_IT)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ExportSettings(to="coco", low_score=0.1), "None of the 1 pictures is hard: no score bel"),
        (
            ExportSettings(to="coco", only="reviewed"),
            "has been reviewed; name review files with --",
        ),
    ],
)
def test_nothing_chosen_is_an_error(settings: ExportSettings, words: str, tmp_path: Path) -> None:
    folder = write_results(tmp_path / "run", [inspection("a.png", FIRE)])
    with pytest.raises(ConfigError, match=words):
        export([folder], tmp_path / "out", settings)


def test_an_interrupted_run_is_read_from_its_lines(run_folder: Path, tmp_path: Path) -> None:
    one = inspection("sure.png", FIRE)
    line = to_json(to_record(one, "zh")) + "\n"
    (run_folder / "results.jsonl").write_text(line, encoding="utf-8")
    (run_folder / "results.json").unlink()
    assert export([run_folder], tmp_path / "out", ALL_OF_IT).num_chosen == 1
    assert export([run_folder / "results.jsonl"], tmp_path / "b", ALL_OF_IT).num_chosen == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"schema": "qianyan.results/2"}', "has schema 'qianyan.results/2'; expected qianyan.r"),
        ("{", "is not a results file"),
        ("[]", "is not a results file"),
        (None, "has no results.json; expected a folder that qianyan inspect wrote"),
    ],
)
def test_what_is_no_results_file_is_an_error(
    content: str | None, words: str, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run" / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        export([tmp_path / "run"], tmp_path / "out", ALL_OF_IT)
    with pytest.raises(ConfigError, match="cannot be opened"):
        export([tmp_path / "none.json"], tmp_path / "out", ALL_OF_IT)


def test_reviews_of_other_pictures_are_counted(run_folder: Path, tmp_path: Path) -> None:
    other = write_results(tmp_path / "b", [inspection(f"{index}.png") for index in range(5)])
    say(other, "4.png", "complete")
    done = export([run_folder], tmp_path / "out", ALL_OF_IT, reviews=[other / "reviews.jsonl"])
    assert done.num_strange_reviews == 1


def test_a_folder_that_is_not_empty_is_refused(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export([run_folder], out, ALL_OF_IT)  # an empty one is taken
    with pytest.raises(ConfigError, match="is not empty; use another --out, or --force"):
        export([run_folder], out, ALL_OF_IT)
    export([run_folder], out, ExportSettings(to="cvat"), is_forced=True)
    assert names(out) == {"annotations.xml", "labels.json", "images", "export.json"}


def test_force_replaces_nothing_but_exports(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds something else than an export"):
        export([run_folder], tmp_path / "thesis", ALL_OF_IT, is_forced=True)
    with pytest.raises(ConfigError, match="which is a file"):
        export([run_folder], tmp_path / "thesis" / "chapter.txt", ALL_OF_IT, is_forced=True)
    assert (tmp_path / "thesis" / "chapter.txt").read_text("utf-8") == "years of work"


def test_pictures_that_would_be_replaced_are_not_exported(tmp_path: Path, run_folder: Path) -> None:
    out = tmp_path / "out"
    export([run_folder], out, ExportSettings(to="cvat", only="all", copy_pictures=True))
    inner = out / "images" / "sure.png"
    record = json.loads((run_folder / "results.json").read_text("utf-8"))
    record["pictures"] = [record["pictures"][0] | {"source": str(inner), "file": None}]
    (tmp_path / "other.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ConfigError, match="Pictures lie in"):
        export([tmp_path / "other.json"], out, ALL_OF_IT, is_forced=True)
    assert inner.is_file()


def test_a_full_disk_leaves_the_export_before_whole(run_folder: Path, tmp_path: Path) -> None:
    """The disk is made full by a limit on the size of files."""
    big = run_folder / "images" / "sure.png"
    Image.frombytes("RGB", (100, 50), os.urandom(15_000)).save(big)
    out = tmp_path / "out"
    export([run_folder], out, ExportSettings(to="cvat"))
    before = (out / "export.json").read_bytes()
    record = json.loads((run_folder / "results.json").read_text("utf-8"))
    record["pictures"][0]["sha256"] = picture_id(run_folder, "sure.png")
    (run_folder / "results.json").write_text(json.dumps(record), encoding="utf-8")
    settings: Any = {"to": "yolo", "only": "all", "copy_pictures": True}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(ConfigError, match=r"cannot be written to .* Nothing is left"):
            export([run_folder], out, ExportSettings(**settings), is_forced=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert (out / "export.json").read_bytes() == before
    assert names(tmp_path) == {"run", "out"}
