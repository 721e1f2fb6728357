"""Labelled photos as COCO's JSON, YOLO's text files or VOC's XML files; reading.py reads them back.

Each writer fills a folder whose pictures lie in it already, where the format wants them. COCO says
of every photo which categories were looked for (`labeled_categories`) and takes sub-labels and
scores beside the boxes; VOC takes sub-labels as attributes, in the form of CVAT; YOLO takes boxes
alone. YOLO and VOC cannot say that nobody looked: a photo that is not labelled in every class gets
no file there.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from qianyan.labels.photos import Kind, LabelledBox, LabelledPhoto

COCO_FILE = "annotations/instances_default.json"
LABEL_MAP = "labelmap.txt"
COLOURS: dict[Kind, tuple[int, int, int]] = {
    "fire": (0xE5, 0x32, 0x2D),
    "smoke": (0x25, 0x63, 0xEB),
    "person": (0x16, 0xA3, 0x4A),
    "helmet": (0xF5, 0x9E, 0x0B),
    "head": (0x93, 0x33, 0xEA),
}


def write_coco(folder: Path, photos: Sequence[LabelledPhoto], *, classes: Sequence[Kind]) -> None:
    """Write annotations/instances_default.json beside images/, where COCO's own tools look."""
    ids = {kind: number for number, kind in enumerate(classes, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, photo in enumerate(photos, start=1):
        images.append(_coco_image(photo, image_id, classes))
        for box in photo.of_kind(*classes):
            annotation_id = len(annotations) + 1
            placed = {"id": annotation_id, "image_id": image_id, "category_id": ids[box.kind]}
            annotations.append(placed | _coco_annotation(box))
    categories = [
        {"id": ids[kind], "name": kind, "supercategory": "hazard" if kind != "person" else ""}
        for kind in classes
    ]
    content = {
        "info": {"description": "qianyan export", "version": "1"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    (folder / COCO_FILE).parent.mkdir(exist_ok=True)
    (folder / COCO_FILE).write_bytes(to_json_bytes(content))


def _coco_image(photo: LabelledPhoto, image_id: int, classes: Sequence[Kind]) -> dict[str, Any]:
    return {
        "id": image_id,
        "file_name": photo.file,
        "width": photo.width,
        "height": photo.height,
        "labeled_categories": [kind for kind in classes if kind in photo.labelled],
        "source": photo.source,
        "tags": list(photo.tags),
    }


def _coco_annotation(box: LabelledBox) -> dict[str, Any]:
    x1, y1, x2, y2 = box.box
    annotation: dict[str, Any] = {
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
        "segmentation": [],
    }
    if box.sub_label is not None:  # ours, and again where CVAT and datumaro look for such things
        annotation |= {"sub_label": box.sub_label, "attributes": {"sub_label": box.sub_label}}
    if box.score is not None:
        annotation["score"] = box.score
    return annotation


def write_yolo(folder: Path, photos: Sequence[LabelledPhoto], *, classes: Sequence[Kind]) -> None:
    """Write labels/ beside images/, with the names of the classes in data.yaml and classes.txt."""
    labels = folder / "labels"
    labels.mkdir(exist_ok=True)
    for photo in _looked_through(photos, classes):
        lines = (_yolo_line(box, photo, classes) for box in photo.of_kind(*classes))
        (labels / photo.file).with_suffix(".txt").write_text("".join(lines), "utf-8")
    # No path: the folder of data.yaml itself is meant. Trainers want a val; it is the user's to
    # split.
    data = {"train": "images", "val": "images", "names": dict(enumerate(classes))}
    (folder / "data.yaml").write_text(yaml.safe_dump(data, sort_keys=False), "utf-8")
    (folder / "classes.txt").write_text("".join(f"{kind}\n" for kind in classes), "utf-8")


def _looked_through(
    photos: Sequence[LabelledPhoto], classes: Sequence[Kind]
) -> Iterator[LabelledPhoto]:
    """Yield the photos of which an empty file of labels would be true."""
    return (photo for photo in photos if photo.labelled.issuperset(classes))


def _yolo_line(box: LabelledBox, photo: LabelledPhoto, classes: Sequence[Kind]) -> str:
    x1, y1, x2, y2 = box.box
    shares = (
        (x1 + x2) / 2 / photo.width,
        (y1 + y2) / 2 / photo.height,
        (x2 - x1) / photo.width,
        (y2 - y1) / photo.height,
    )
    return f"{classes.index(box.kind)} {' '.join(f'{share:.6f}' for share in shares)}\n"


def write_voc(folder: Path, photos: Sequence[LabelledPhoto], *, classes: Sequence[Kind]) -> None:
    """Write Annotations/ and ImageSets/ beside JPEGImages/, with the classes in labelmap.txt."""
    (folder / "Annotations").mkdir(exist_ok=True)
    sets = folder / "ImageSets" / "Main"
    sets.mkdir(parents=True, exist_ok=True)
    for photo in _looked_through(photos, classes):
        name = Path(photo.file).with_suffix(".xml").name
        write_xml(folder / "Annotations" / name, _voc_annotation(photo, classes))
    stems = "".join(f"{Path(photo.file).stem}\n" for photo in photos)
    (sets / "default.txt").write_text(stems, "utf-8")
    colours = (f"{kind}:{','.join(map(str, COLOURS[kind]))}::\n" for kind in classes)
    head = "# label:color_rgb:parts:actions\nbackground:0,0,0::\n"
    (folder / LABEL_MAP).write_text(head + "".join(colours), "utf-8")


def _voc_annotation(photo: LabelledPhoto, classes: Sequence[Kind]) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    add_texts(root, {"folder": "JPEGImages", "filename": photo.file})
    add_texts(ElementTree.SubElement(root, "source"), {"database": "qianyan export"})
    size = {"width": photo.width, "height": photo.height, "depth": 3}
    add_texts(ElementTree.SubElement(root, "size"), size)
    add_texts(root, {"segmented": 0})
    for box in photo.of_kind(*classes):
        thing = ElementTree.SubElement(root, "object")
        add_texts(thing, {"name": box.kind, "pose": "Unspecified", "truncated": 0, "difficult": 0})
        corners = zip(("xmin", "ymin", "xmax", "ymax"), map(number, box.box), strict=True)
        add_texts(ElementTree.SubElement(thing, "bndbox"), dict(corners))
        if box.sub_label is not None:
            attributes = ElementTree.SubElement(thing, "attributes")
            attribute = ElementTree.SubElement(attributes, "attribute")
            add_texts(attribute, {"name": "sub_label", "value": box.sub_label})
    return root


def add_texts(parent: ElementTree.Element, texts: "dict[str, Any]") -> None:
    """Add elements that hold a text each, in order."""
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = str(text)


def write_xml(path: Path, root: ElementTree.Element) -> None:
    """Write an XML file that people can read."""
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, "utf-8", xml_declaration=True)


def number(value: float) -> str:
    """Write a number of pixels to the hundredth, without idle zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def to_json_bytes(content: Any) -> bytes:
    """Write JSON as UTF-8; names of files that are no text keep the escapes that JSON has."""
    return json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace")
