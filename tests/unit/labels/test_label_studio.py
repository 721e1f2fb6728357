"""Label Studio's tasks hold percents, and keep persons and models apart; its converter reads them.

The reader here follows https://labelstud.io/guide/predictions and /guide/task_format.
"""

import json
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from PIL import Image

from qianyan.labels.label_studio import write_label_studio
from qianyan.labels.photos import Kind, LabelledBox, LabelledPhoto
from qianyan.labels.reviewed import ReviewedPhoto

CLASSES: tuple[Kind, ...] = ("fire", "person")
WORDS: dict[Kind, list[str]] = {"fire": ["minor", "severe"], "person": ["helmet", "no_helmet"]}
FIRE = LabelledBox("fire", (10, 5, 30, 25), None, "severe")
WORKER = LabelledBox("person", (40, 10, 60, 49), None, "no_helmet", 0.75)
SMOKE = LabelledBox("smoke", (0, 0, 9, 9), None, None, 0.2)


def reviewed(
    *labels: LabelledBox, by: tuple[LabelledBox, ...] = (), through: frozenset[Kind] = frozenset()
) -> ReviewedPhoto:
    photo = LabelledPhoto(Path("厂 a.jpg"), 200, 50, through, labels, source="site/a.jpg")
    return ReviewedPhoto(labels=photo, predictions=by, predicted=frozenset(CLASSES), model="m")


def write(folder: Path, *photos: ReviewedPhoto) -> list[dict[str, Any]]:
    write_label_studio(folder, photos, classes=CLASSES, sub_labels=WORDS, served_as="my export")
    tasks: list[dict[str, Any]] = json.loads((folder / "tasks.json").read_text("utf-8"))
    return tasks


def regions(result: list[dict[str, Any]]) -> dict[str, tuple[str, tuple[float, ...], str | None]]:
    """Each region's label, corners in pixels and sub-label, by its id."""
    sub_labels = {each["id"]: each["value"]["choices"][0] for each in result
                  if each["from_name"].endswith("_sub_label")}  # fmt: skip
    found = {}
    for each in result:
        if each["type"] == "rectanglelabels":
            value, wide, high = each["value"], each["original_width"], each["original_height"]
            corners = (
                *(value["x"] * wide / 100, value["y"] * high / 100),
                *((value["x"] + value["width"]) * wide / 100,
                  (value["y"] + value["height"]) * high / 100),
            )  # fmt: skip
            label = value["rectanglelabels"][0]
            found[each["id"]] = (label, corners, sub_labels.get(each["id"]))
    return found


def test_persons_and_models_are_kept_apart(tmp_path: Path) -> None:
    photo = reviewed(FIRE, by=(WORKER, SMOKE), through=frozenset({"fire"}))
    (task,) = write(tmp_path, photo)
    (annotation,), (prediction,) = task["annotations"], task["predictions"]
    ((label, corners, sub_label),) = regions(annotation["result"]).values()
    assert (label, sub_label) == ("fire", "severe")
    assert corners == pytest.approx(FIRE.box)
    ((label, corners, sub_label),) = regions(prediction["result"]).values()
    assert (label, sub_label) == ("person", "no_helmet")
    assert corners == pytest.approx(WORKER.box)
    assert (prediction["model_version"], prediction["score"]) == ("m", 0.75)
    assert [one.get("score") for one in prediction["result"]] == [0.75, None]
    searched = [one for one in annotation["result"] if one["from_name"] == "labeled_categories"]
    assert searched[0]["value"] == {"choices": ["fire"]}


def test_what_nobody_reviewed_has_no_annotation(tmp_path: Path) -> None:
    (task,) = write(tmp_path, reviewed(by=(WORKER,)))
    assert "annotations" not in task
    assert len(task["predictions"]) == 1


def test_a_reviewed_false_alarm_is_an_annotation_without_regions(tmp_path: Path) -> None:
    (task,) = write(tmp_path, reviewed(through=frozenset({"fire", "person"})))
    assert "predictions" not in task
    assert regions(task["annotations"][0]["result"]) == {}


def test_pictures_are_asked_for_from_local_storage(tmp_path: Path) -> None:
    (task,) = write(tmp_path, reviewed())
    assert task["data"]["image"].isascii()
    start, _, path = task["data"]["image"].partition("?d=")
    assert (start, unquote(path)) == ("/data/local-files/", "my export/images/厂 a.jpg")


def test_the_config_knows_every_name_and_value_of_the_tasks(tmp_path: Path) -> None:
    photo = reviewed(FIRE, by=(WORKER,), through=frozenset(CLASSES))
    (task,) = write(tmp_path, photo)
    view = ElementTree.parse(tmp_path / "labeling_config.xml").getroot()  # noqa: S314  (our own)
    known = {
        tag.get("name"): {each.get("value") for each in tag} for tag in view if tag.tag != "Image"
    }
    image = view.find("Image")
    assert image is not None
    assert (image.get("name"), image.get("value")) == ("image", "$image")
    for part in (*task["annotations"], *task["predictions"]):
        for each in part["result"]:
            assert each["to_name"] == "image"
            said = each["value"].get("rectanglelabels") or each["value"]["choices"]
            assert set(said) <= known[each["from_name"]]


def test_label_studios_converter_reads_the_annotations(tmp_path: Path) -> None:
    sdk = pytest.importorskip(
        "label_studio_sdk.converter",
        reason="Label Studio's SDK is not installed (pip install label-studio-sdk)",
    )
    out = tmp_path / "converted"
    (out / "images").mkdir(parents=True)
    Image.new("RGB", (200, 50)).save(out / "images" / "a.jpg")
    tasks = write(tmp_path, reviewed(FIRE, by=(WORKER,), through=frozenset({"fire"})))
    tasks[0]["data"]["image"] = "images/a.jpg"  # where no server has to bring it
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converter = sdk.Converter(
            config=str(tmp_path / "labeling_config.xml"), project_dir=str(tmp_path)
        )
        converter.convert_to_coco(str(tmp_path / "tasks.json"), str(out), is_dir=False)
    coco = json.loads((out / "result.json").read_text("utf-8"))
    names = {each["id"]: each["name"] for each in coco["categories"]}
    ((kind, box),) = [(names[each["category_id"]], each["bbox"]) for each in coco["annotations"]]
    assert kind == "fire"
    assert box == pytest.approx([10, 5, 20, 20])


def test_label_studio_takes_every_annotation_and_prediction(tmp_path: Path) -> None:
    sdk = pytest.importorskip(
        "label_studio_sdk.label_interface",
        reason="Label Studio's SDK is not installed (pip install label-studio-sdk)",
    )
    (task,) = write(tmp_path, reviewed(FIRE, by=(WORKER,), through=frozenset(CLASSES)))
    interface = sdk.LabelInterface((tmp_path / "labeling_config.xml").read_text("utf-8"))
    interface.validate()
    assert all(interface.validate_annotation(each) for each in task["annotations"])
    for each in task["predictions"]:
        assert interface.validate_prediction(each, return_errors=True) == []
    task["predictions"][0]["result"][0]["value"]["rectanglelabels"] = ["water"]
    assert interface.validate_prediction(task["predictions"][0], return_errors=True)
