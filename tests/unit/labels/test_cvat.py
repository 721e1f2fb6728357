"""CVAT's XML says who says what; the reader here follows CVAT's page on its format, datumaro's too.

https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/
"""

import json
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from qianyan.labels.cvat import write_cvat
from qianyan.labels.photos import Kind, LabelledBox, LabelledPhoto
from qianyan.labels.reviewed import ReviewedPhoto

CLASSES: tuple[Kind, ...] = ("fire", "person")
WORDS: dict[Kind, list[str]] = {"fire": ["minor", "severe"], "person": ["helmet", "no_helmet"]}
FIRE = LabelledBox("fire", (10, 5, 30, 25), None, "severe")
WORKER = LabelledBox("person", (40, 10, 60, 49), None, "no_helmet", 0.754)
SMOKE = LabelledBox("smoke", (0, 0, 9, 9), None, None, 0.2)


def write(folder: Path) -> ElementTree.Element:
    (folder / "images").mkdir()
    Image.new("RGB", (100, 50)).save(folder / "images" / "a.jpg")
    labels = LabelledPhoto(Path("a.jpg"), 100, 50, frozenset({"fire"}), (FIRE,))
    photo = ReviewedPhoto(
        labels=labels, predictions=(WORKER, SMOKE), predicted=frozenset(CLASSES), model="m"
    )
    write_cvat(folder, [photo], classes=CLASSES, sub_labels=WORDS)
    return ElementTree.parse(folder / "annotations.xml").getroot()  # noqa: S314  (our own)


def attributes(element: ElementTree.Element) -> dict[str | None, str | None]:
    return {each.get("name"): each.text for each in element.findall("attribute")}


def test_boxes_say_who_drew_them(tmp_path: Path) -> None:
    root = write(tmp_path)
    assert root.findtext("version") == "1.1"
    (image,) = root.findall("image")
    assert image.attrib == {"id": "0", "name": "a.jpg", "width": "100", "height": "50"}
    fire, worker = image.findall("box")
    assert (fire.get("label"), fire.get("source")) == ("fire", "manual")
    assert attributes(fire) == {"sub_label": "severe"}
    assert [fire.get(side) for side in ("xtl", "ytl", "xbr", "ybr")] == [
        *("10.00", "5.00", "30.00", "25.00")
    ]
    assert (worker.get("label"), worker.get("source")) == ("person", "auto")
    assert attributes(worker) == {"sub_label": "no_helmet", "score": "0.7540"}


def test_what_a_person_has_been_through_is_a_tag(tmp_path: Path) -> None:
    tag = write(tmp_path).find("image/tag")
    assert tag is not None
    assert tag.get("label") == "labeled_categories"
    assert attributes(tag) == {"fire": "true", "person": "false"}


def test_the_labels_for_a_new_task_are_those_of_the_file(tmp_path: Path) -> None:
    root = write(tmp_path)
    labels = json.loads((tmp_path / "labels.json").read_text("utf-8"))
    declared = root.findall("meta/task/labels/label")
    assert [label["name"] for label in labels] == [one.findtext("name") for one in declared]
    for label, one in zip(labels, declared, strict=True):
        for attribute, other in zip(
            label["attributes"], one.findall("attributes/attribute"), strict=True
        ):
            assert attribute["name"] == other.findtext("name")
            assert attribute["input_type"] == other.findtext("input_type")
            assert "\n".join(attribute["values"]) == (other.findtext("values") or "")
            assert attribute["default_value"] in attribute["values"]


def test_every_attribute_that_is_said_is_declared(tmp_path: Path) -> None:
    root = write(tmp_path)
    declared = {
        label.findtext("name"): {
            each.findtext("name"): (each.findtext("values") or "").split("\n")
            for each in label.findall("attributes/attribute")
        }
        for label in root.findall("meta/task/labels/label")
    }
    for element in (*root.iter("box"), *root.iter("tag")):
        for name, value in attributes(element).items():
            allowed = declared[element.get("label")][name]
            assert name == "score" or value in ("true", "false") or value in allowed


def test_datumaro_reads_it(tmp_path: Path) -> None:
    dm = pytest.importorskip("datumaro", reason="datumaro is not installed (pip install datumaro)")
    write(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dm.Dataset.import_from(str(tmp_path), "cvat")
    names = dataset.categories()[dm.AnnotationType.label]
    (item,) = dataset
    boxes = [each for each in item.annotations if each.type is dm.AnnotationType.bbox]
    assert [names[box.label].name for box in boxes] == ["fire", "person"]
    assert [list(box.points) for box in boxes] == [list(FIRE.box), list(WORKER.box)]
    assert [box.attributes["sub_label"] for box in boxes] == ["severe", "no_helmet"]
    assert item.media.data.shape == (50, 100, 3)
