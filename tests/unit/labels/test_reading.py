"""The same labels in three formats are the same; what is not known is said, never dropped."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qianyan.errors import ConfigError, MediaError
from qianyan.labels.photos import LabelledPhoto, find_kind, iou
from qianyan.labels.reading import read_coco, read_labels

VOC = """<annotation><filename>a.jpg</filename><size><width>100</width><height>50</height></size>
<object><name>flame</name><bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30</xmax><ymax>25</ymax></bndbox></object>
<object><name>NO-Hardhat</name><bndbox><xmin>50</xmin><ymin>0</ymin><xmax>60</xmax><ymax>10</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (100, 50)).save(tmp_path / "images" / "a.jpg")
    return tmp_path


def coco(**more: Any) -> dict[str, Any]:
    return {
        "categories": [{"id": 1, "name": "fire"}, {"id": 4, "name": "no hardhat"}],
        "images": [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 50}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [10, 5, 20, 20]},
            {"image_id": 7, "category_id": 4, "bbox": [50, 0, 10, 10]},
        ],
        **more,
    }


def write_coco(folder: Path, content: Any) -> Path:
    path = folder / "labels.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_yolo(folder: Path, lines: str = "0 0.2 0.3 0.2 0.4\n1 0.55 0.1 0.1 0.2\n") -> Path:
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "data.yaml").write_text("names:\n  0: fire\n  1: head\n", encoding="utf-8")
    (folder / "labels" / "a.txt").write_text(lines, encoding="utf-8")
    return folder


def write_voc(folder: Path, text: str = VOC) -> Path:
    (folder / "Annotations").mkdir(exist_ok=True)
    (folder / "Annotations" / "a.xml").write_text(text, encoding="utf-8")
    return folder


def test_three_formats_say_the_same(picture: Path) -> None:
    yolo = read_labels(write_yolo(picture))
    voc = read_labels(write_voc(picture))
    as_coco = read_labels(write_coco(picture, coco()))
    for (photo,) in (yolo, voc, as_coco):
        assert photo.path == picture / "images" / "a.jpg"
        assert (photo.width, photo.height) == (100, 50)
        assert photo.labelled == {"fire", "head"}
        assert [box.kind for box in photo.boxes] == ["fire", "head"]
        assert photo.boxes[0].box == pytest.approx((10, 5, 30, 25))
        assert photo.boxes[1].box == pytest.approx((50, 0, 60, 10))


def test_only_what_was_looked_for_is_labelled(tmp_path: Path) -> None:
    image = {"id": 7, "file_name": "a.jpg", "width": 100, "height": 50,
             "labeled_categories": ["fire"]}  # fmt: skip
    (photo,) = read_coco(write_coco(tmp_path, coco(images=[image])))
    assert photo.labelled == {"fire"}
    assert [box.kind for box in photo.boxes] == ["fire"]


def test_a_size_that_the_labels_leave_out_is_read_from_the_photo(picture: Path) -> None:
    (photo,) = read_coco(write_coco(picture, coco(images=[{"id": 7, "file_name": "a.jpg"}])))
    assert (photo.width, photo.height) == (100, 50)


def test_boxes_are_cut_at_the_edge_and_those_outside_are_named(
    picture: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photo,) = read_labels(write_yolo(picture, "0 0.0 0.5 0.2 0.5\n0 3 3 0.1 0.1\n"))
    assert [box.box for box in photo.boxes] == [pytest.approx((0, 12.5, 10, 37.5))]
    assert "a box of fire lies outside the photo 'a.jpg'" in caplog.text


def test_a_photo_without_labels_shows_nothing_of_what_was_looked_for(picture: Path) -> None:
    write_yolo(picture)
    (picture / "labels" / "a.txt").unlink()
    (photo,) = read_labels(picture)
    assert photo.boxes == ()
    assert photo.labelled == {"fire", "head"}


def test_an_unknown_class_is_refused_or_left_out_when_asked(picture: Path) -> None:
    labels = write_coco(
        picture, coco(categories=[{"id": 1, "name": "fire"}, {"id": 4, "name": "vest"}])
    )
    with pytest.raises(ConfigError, match="has the class 'vest'; expected fire, smoke"):
        read_labels(labels)
    (photo,) = read_labels(labels, leave_out=["vest"])
    assert photo.labelled == {"fire"}


@pytest.mark.parametrize(
    "content", ["", [], coco(images=None), coco(annotations=[{"image_id": 7}]), {"images": []}]
)
def test_other_json_is_refused_with_a_sentence(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ConfigError, match="expected images, annotations and categories"):
        read_coco(write_coco(tmp_path, content))


@pytest.mark.parametrize("line", ["9 0.1 0.1 0.1 0.1", "0 0.1 0.1", "fire 1 1 1 1"])
def test_a_bad_line_of_yolo_is_named(picture: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"'a.txt', line 1, is .*expected a class from 0 to 1"):
        read_labels(write_yolo(picture, line))


def test_entities_are_refused(picture: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY b "c">]>' + VOC
    with pytest.raises(ConfigError, match="declares entities"):
        read_labels(write_voc(picture, bomb))


@pytest.mark.parametrize("text", ["<annotation/>", "no xml", VOC.replace("<xmin>10", "<xmin>x")])
def test_other_xml_is_refused(picture: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="is not VOC"):
        read_labels(write_voc(picture, text))


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not there"):
        read_labels(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"no data\.yaml and no classes\.txt"):
        read_labels(tmp_path)
    (tmp_path / "classes.txt").write_text("fire\n")
    with pytest.raises(ConfigError, match="has no labelled photo"):
        read_labels(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Hard Hat", "helmet"), ("NO-Hardhat", "head"), ("未戴安全帽", "head"), ("烟雾", "smoke"),
     ("Worker", "person"), ("with_helmet", "helmet")],
)  # fmt: skip
def test_usual_names_are_known(name: str, kind: str) -> None:
    assert find_kind(name, where="x") == kind


def test_a_photo_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    photo = LabelledPhoto(tmp_path / "gone.jpg", 4, 4, frozenset(), ())
    with pytest.raises(MediaError, match="is missing or cannot be decoded"):
        photo.read()


def test_overlap_of_boxes() -> None:
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert iou((0, 0, 10, 10), (20, 20, 30, 30)) == 0


def test_development_labels_can_be_read(shared: Path) -> None:
    photos = read_coco(shared / "data" / "dev" / "annotations_val.json")
    assert len(photos) == 528
    assert sum(photo.has("fire") for photo in photos) == 237
    assert photos[0].read().shape == (photos[0].height, photos[0].width, 3)
