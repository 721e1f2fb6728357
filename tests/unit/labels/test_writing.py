"""What is written in a tool's format reads back the same: by us, by pycocotools, by datumaro."""

import json
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from qianyan.labels.photos import Kind, LabelledBox, LabelledPhoto, inside
from qianyan.labels.reading import read_labels
from qianyan.labels.writing import COCO_FILE, write_coco, write_voc, write_yolo

CLASSES: tuple[Kind, ...] = ("fire", "smoke", "person")
ALL = frozenset(CLASSES)
FIRE = LabelledBox("fire", (10, 5, 30, 25), None, "severe")
WORKER = LabelledBox("person", (40, 10, 60, 49), None, "no_helmet", 0.75)
PICTURES = {"voc": "JPEGImages"}


def draw(folder: Path, *names: str, size: tuple[int, int] = (100, 50)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size).save(folder / name)
    return folder


def photo(name: str, *boxes: LabelledBox, labelled: frozenset[Kind] = ALL) -> LabelledPhoto:
    return LabelledPhoto(
        Path(name), 100, 50, labelled, boxes, source=f"站/{name}", tags=("vetoed",)
    )


def datumaro(path: Path, form: str) -> Any:
    dm = pytest.importorskip("datumaro", reason="datumaro is not installed (pip install datumaro)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dm.Dataset.import_from(str(path), form)


def shown(dataset: Any) -> dict[str, list[tuple[str, list[float], str | None]]]:
    """What datumaro read: names of items with their boxes' classes, corners and sub-labels."""
    from datumaro import AnnotationType

    names = dataset.categories()[AnnotationType.label]
    return {
        Path(item.id).name: [
            (names[each.label].name, list(each.points), each.attributes.get("sub_label"))
            for each in item.annotations
            if each.type is AnnotationType.bbox
        ]
        for item in dataset
    }


def test_coco_keeps_everything(tmp_path: Path) -> None:
    draw(tmp_path / "images", "a.jpg", "b.jpg")
    known = photo("b.jpg", FIRE, labelled=frozenset({"fire"}))
    write_coco(tmp_path, [photo("a.jpg", FIRE, WORKER), known], classes=CLASSES)
    first, second = read_labels(tmp_path / COCO_FILE)
    assert first.path == tmp_path / "images" / "a.jpg"
    assert first.boxes[0] == FIRE
    assert first.boxes[1] == LabelledBox("person", (40, 10, 60, 49), None, "no_helmet")
    assert (first.labelled, second.labelled) == (ALL, {"fire"})
    assert (first.source, first.tags) == ("站/a.jpg", ("vetoed",))


def test_coco_loads_in_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco(tmp_path, [photo("a.jpg", FIRE, WORKER), photo("b.jpg")], classes=CLASSES)
    coco = COCO(tmp_path / COCO_FILE)
    assert len(coco.getImgIds()) == 2
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    (worker,) = coco.loadAnns(coco.getAnnIds(catIds=coco.getCatIds(catNms=["person"])))
    assert worker["bbox"] == [40, 10, 20, 39]
    assert worker["area"] == 20 * 39
    assert worker["score"] == 0.75


def test_coco_holds_names_that_are_no_text(tmp_path: Path) -> None:
    odd = LabelledPhoto(Path("a.jpg"), 100, 50, ALL, (), source=b"\xb9\xa4.jpg".decode(
        "utf-8", "surrogateescape"))  # fmt: skip
    write_coco(tmp_path, [odd], classes=CLASSES)
    (image,) = json.loads((tmp_path / COCO_FILE).read_text("utf-8"))["images"]
    assert image["source"] == odd.source


def test_yolo_reads_back(tmp_path: Path) -> None:
    draw(tmp_path / "images", "a.jpg", "b.jpg")
    write_yolo(tmp_path, [photo("a.jpg", FIRE, WORKER), photo("b.jpg")], classes=CLASSES)
    first, second = read_labels(tmp_path)
    assert [(box.kind, box.sub_label) for box in first.boxes] == [("fire", None), ("person", None)]
    for box, before in zip(first.boxes, (FIRE, WORKER), strict=True):
        assert box.box == pytest.approx(before.box, abs=1e-3)
    assert (first.labelled, second.labelled) == (ALL, ALL)
    assert second.boxes == ()


def test_yolo_leaves_what_lies_beside_its_pictures(tmp_path: Path) -> None:
    draw(tmp_path / "images", "a.jpg")
    draw(tmp_path / "predictions" / "images", "b.jpg")
    write_yolo(tmp_path, [photo("a.jpg", FIRE)], classes=CLASSES)
    assert [one.file for one in read_labels(tmp_path)] == ["a.jpg"]


def test_voc_reads_back_with_its_sub_labels_and_classes(tmp_path: Path) -> None:
    draw(tmp_path / "JPEGImages", "a.jpg", "b.jpg")
    write_voc(tmp_path, [photo("a.jpg", FIRE, WORKER), photo("b.jpg")], classes=CLASSES)
    first, second = read_labels(tmp_path)
    assert first.path == tmp_path / "JPEGImages" / "a.jpg"
    assert first.boxes == (FIRE, LabelledBox("person", (40, 10, 60, 49), None, "no_helmet"))
    assert (first.labelled, second.labelled) == (ALL, ALL)


def test_a_voc_map_of_other_classes_is_no_error(tmp_path: Path) -> None:
    write_voc(tmp_path, [photo("a.jpg", FIRE)], classes=("fire",))
    with (tmp_path / "labelmap.txt").open("a") as lines:
        lines.write("aeroplane:1,2,3::\n")
    (read,) = read_labels(tmp_path)
    assert read.labelled == {"fire"}


@pytest.mark.parametrize("write", [write_yolo, write_voc])
def test_a_photo_that_nobody_looked_through_has_no_empty_labels(write: Any, tmp_path: Path) -> None:
    some = photo("a.jpg", FIRE, labelled=frozenset({"fire"}))
    write(tmp_path, [some, photo("b.jpg")], classes=CLASSES)
    stems = {
        path.stem for name in ("labels", "Annotations") for path in (tmp_path / name).glob("*")
    }
    assert stems == {"b"}


def test_xml_escapes_what_it_must(tmp_path: Path) -> None:
    write_voc(tmp_path, [photo("a&<b>.jpg", FIRE)], classes=CLASSES)
    root = ElementTree.parse(tmp_path / "Annotations" / "a&<b>.xml").getroot()  # noqa: S314  (our own)
    assert root.findtext("filename") == "a&<b>.jpg"


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(CLASSES), *[st.integers(0, 400)] * 2,
                          *[st.integers(1, 300)] * 2), max_size=5))  # fmt: skip
def test_boxes_survive_every_format(
    tmp_path_factory: pytest.TempPathFactory, things: list[tuple[Kind, int, int, int, int]]
) -> None:
    size = (401, 307)
    cut = [
        LabelledBox(kind, box)
        for kind, x, y, w, h in things
        if (box := inside((x, y, x + w, y + h), width=size[0], height=size[1]))
    ]
    one = LabelledPhoto(Path("a.png"), *size, ALL, tuple(cut))
    for write, pictures, labels in (
        (write_coco, "images", COCO_FILE),
        (write_yolo, "images", "."),
        (write_voc, "JPEGImages", "."),
    ):
        folder = tmp_path_factory.mktemp("set")
        draw(folder / pictures, "a.png", size=size)
        write(folder, [one], classes=CLASSES)
        (read,) = read_labels(folder / labels)
        assert [box.kind for box in read.boxes] == [box.kind for box in cut]
        for box, before in zip(read.boxes, cut, strict=True):
            assert box.box == pytest.approx(before.box, abs=1e-3)


@pytest.mark.parametrize(
    ("write", "form"), [(write_coco, "coco"), (write_yolo, "yolo"), (write_voc, "voc")]
)
def test_datumaro_reads_it(write: Any, form: str, tmp_path: Path) -> None:
    draw(tmp_path / PICTURES.get(form, "images"), "a.jpg", "b.jpg")
    write(tmp_path, [photo("a.jpg", FIRE, WORKER), photo("b.jpg")], classes=CLASSES)
    read = shown(datumaro(tmp_path, form))
    assert set(read) == {"a", "b"}
    assert read["b"] == []
    for (kind, points, sub_label), before in zip(sorted(read["a"]), (FIRE, WORKER), strict=True):
        assert kind == before.kind
        assert points == pytest.approx(before.box, abs=0.05)
        assert sub_label == (None if form == "yolo" else before.sub_label)
