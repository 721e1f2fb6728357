"""Reviewed photos for CVAT: annotations.xml in its form "CVAT for images 1.1", and labels.json.

Boxes of persons have the source `manual`, those of a model `auto`; sub-label and score are
attributes. What a person has been through is a tag `labeled_categories` with a checkbox for each
kind. CVAT asks for the labels when a task is made: labels.json goes into the field "Raw". A
task's frames are found by the names of the pictures.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from qianyan.labels.photos import Kind, LabelledBox
from qianyan.labels.reviewed import ReviewedPhoto
from qianyan.labels.writing import COLOURS, add_texts, to_json_bytes, write_xml

CVAT_FILE, LABELS_FILE = "annotations.xml", "labels.json"
SEARCHED = "labeled_categories"
UNSAID = "__undefined__"
"""CVAT's word for a value that nobody has chosen."""


def write_cvat(
    folder: Path,
    photos: Sequence[ReviewedPhoto],
    *,
    classes: Sequence[Kind],
    sub_labels: Mapping[Kind, Sequence[str]],
) -> None:
    """Write annotations.xml and labels.json beside images/.

    `sub_labels` is what can be said beside each kind.
    """
    labels = list(_labels(classes, sub_labels))
    root = ElementTree.Element("annotations")
    add_texts(root, {"version": "1.1"})
    _add_meta(root, labels, num_photos=len(photos))
    for index, photo in enumerate(photos):
        _add_image(root, index, photo, classes)
    write_xml(folder / CVAT_FILE, root)
    (folder / LABELS_FILE).write_bytes(to_json_bytes(labels))


def _labels(
    classes: Sequence[Kind], sub_labels: Mapping[Kind, Sequence[str]]
) -> Iterator[dict[str, Any]]:
    """Yield labels with their attributes, as CVAT's constructor takes them."""
    for kind in classes:
        attributes = []
        if sub_labels.get(kind):
            words = [UNSAID, *sub_labels[kind]]
            attributes.append(_attribute("sub_label", "select", words))
        attributes.append(_attribute("score", "text", [""]))
        colour = "#{:02x}{:02x}{:02x}".format(*COLOURS[kind])
        yield {"name": kind, "color": colour, "type": "rectangle", "attributes": attributes}
    boxes = [_attribute(kind, "checkbox", ["false"]) for kind in classes]
    yield {"name": SEARCHED, "color": "#808080", "type": "tag", "attributes": boxes}


def _attribute(name: str, input_type: str, values: Sequence[str]) -> dict[str, Any]:
    return {
        "name": name,
        "mutable": False,
        "input_type": input_type,
        "default_value": values[0],
        "values": list(values),
    }


def _add_meta(
    root: ElementTree.Element, labels: Sequence[Mapping[str, Any]], *, num_photos: int
) -> None:
    meta = ElementTree.SubElement(root, "meta")
    task = ElementTree.SubElement(meta, "task")
    add_texts(task, {"name": "qianyan export", "size": num_photos, "mode": "annotation"})
    listed = ElementTree.SubElement(task, "labels")
    for label in labels:
        one = ElementTree.SubElement(listed, "label")
        add_texts(one, {name: label[name] for name in ("name", "color", "type")})
        attributes = ElementTree.SubElement(one, "attributes")
        for attribute in label["attributes"]:
            written = {**attribute, "values": "\n".join(attribute["values"])}
            add_texts(ElementTree.SubElement(attributes, "attribute"), written)


def _add_image(
    root: ElementTree.Element, index: int, photo: ReviewedPhoto, classes: Sequence[Kind]
) -> None:
    size = {"width": str(photo.labels.width), "height": str(photo.labels.height)}
    facts = {"id": str(index), "name": photo.labels.file} | size
    image = ElementTree.SubElement(root, "image", facts)
    for box in photo.labels.of_kind(*classes):
        _add_box(image, box, "manual")
    for box in photo.predictions:
        if box.kind in classes:
            _add_box(image, box, "auto")
    if photo.labels.labelled.intersection(classes):
        tag = ElementTree.SubElement(image, "tag", label=SEARCHED, source="manual")
        for kind in classes:
            _add_attribute(tag, kind, "true" if kind in photo.labels.labelled else "false")


def _add_box(image: ElementTree.Element, box: LabelledBox, source: str) -> None:
    corners = zip(("xtl", "ytl", "xbr", "ybr"), (f"{side:.2f}" for side in box.box), strict=True)
    told = {"label": box.kind, "source": source, "occluded": "0"} | dict(corners)
    element = ElementTree.SubElement(image, "box", told | {"z_order": "0"})
    if box.sub_label is not None:
        _add_attribute(element, "sub_label", box.sub_label)
    if box.score is not None:
        _add_attribute(element, "score", f"{box.score:.4f}")


def _add_attribute(parent: ElementTree.Element, name: str, value: str) -> None:
    ElementTree.SubElement(parent, "attribute", name=name).text = value
