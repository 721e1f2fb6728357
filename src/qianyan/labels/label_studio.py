"""Reviewed photos for Label Studio: tasks.json to import, and the labelling config that fits it.

What persons said becomes an annotation, what a model said a prediction with its scores, as
https://labelstud.io/guide/predictions describes. Coordinates are percents of the picture. A
region's sub-label is a choice with the region's id; `labeled_categories` is a choice about the
whole picture. Pictures are asked for from Label Studio's local storage, whose document root is the
folder that the export lies in.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote as quote_url
from xml.etree import ElementTree

from qianyan.labels.photos import Kind, LabelledBox, LabelledPhoto
from qianyan.labels.reviewed import ReviewedPhoto
from qianyan.labels.writing import COLOURS, to_json_bytes

TASKS_FILE, CONFIG_FILE = "tasks.json", "labeling_config.xml"
LOCAL_FILES = "/data/local-files/?d="
SEARCHED = "labeled_categories"


def write_label_studio(
    folder: Path,
    photos: Sequence[ReviewedPhoto],
    *,
    classes: Sequence[Kind],
    sub_labels: Mapping[Kind, Sequence[str]],
    served_as: str,
) -> None:
    """Write tasks.json and labeling_config.xml beside images/.

    Args:
        folder: where they go.
        photos: what goes out.
        classes: the kinds that count.
        sub_labels: what can be said beside each kind.
        served_as: the folder as Label Studio's document root sees it.
    """
    start = f"{LOCAL_FILES}{quote_url(served_as)}/images/"
    tasks = [
        {"id": number, **_task(photo, classes, start + quote_url(photo.labels.file))}
        for number, photo in enumerate(photos, start=1)
    ]
    (folder / TASKS_FILE).write_bytes(to_json_bytes(tasks))
    config = _config(classes, sub_labels)
    ElementTree.indent(config)
    # Without a declaration: Label Studio's converter refuses text that declares an encoding.
    (folder / CONFIG_FILE).write_text(ElementTree.tostring(config, "unicode"), "utf-8")


def _task(photo: ReviewedPhoto, classes: Sequence[Kind], url: str) -> dict[str, Any]:
    task: dict[str, Any] = {"data": {"image": url, "source": photo.labels.source}}
    searched = [kind for kind in classes if kind in photo.labels.labelled]
    labels = photo.labels.of_kind(*classes)
    if searched or labels:
        result = list(_regions(labels, photo.labels))
        result.append(_whole_picture(searched, photo.labels))
        task["annotations"] = [{"result": result, "ground_truth": False, "was_cancelled": False}]
    guessed = [box for box in photo.predictions if box.kind in classes]
    if guessed:
        scores = [box.score for box in guessed if box.score is not None]
        prediction: dict[str, Any] = {
            "model_version": photo.model,
            "result": list(_regions(guessed, photo.labels, first=len(labels))),
        }
        if scores:  # what Label Studio sorts tasks by: the least certain thing
            prediction["score"] = min(scores)
        task["predictions"] = [prediction]
    return task


def _regions(
    boxes: Sequence[LabelledBox], photo: LabelledPhoto, *, first: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield each box, and its sub-label under the same id."""
    for index, box in enumerate(boxes, start=first):
        x1, y1, x2, y2 = box.box
        value = {
            "x": 100 * x1 / photo.width,
            "y": 100 * y1 / photo.height,
            "width": 100 * (x2 - x1) / photo.width,
            "height": 100 * (y2 - y1) / photo.height,
            "rotation": 0,
        }
        region = {"id": f"box{index}", "to_name": "image", **_picture_facts(photo)}
        scored = {} if box.score is None else {"score": box.score}
        marked = {**value, "rectanglelabels": [box.kind]}
        yield region | {"from_name": "label", "type": "rectanglelabels", "value": marked} | scored
        if box.sub_label is not None:
            chosen = {**value, "choices": [box.sub_label]}
            yield region | {"from_name": _chooser(box.kind), "type": "choices", "value": chosen}


def _whole_picture(searched: Sequence[Kind], photo: LabelledPhoto) -> dict[str, Any]:
    return {
        "id": "searched",
        "from_name": SEARCHED,
        "to_name": "image",
        "type": "choices",
        "value": {"choices": list(searched)},
        **_picture_facts(photo),
    }


def _picture_facts(photo: LabelledPhoto) -> dict[str, int]:
    return {"original_width": photo.width, "original_height": photo.height, "image_rotation": 0}


def _chooser(kind: Kind) -> str:
    return f"{kind}_sub_label"


def _config(
    classes: Sequence[Kind], sub_labels: Mapping[Kind, Sequence[str]]
) -> ElementTree.Element:
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image", zoomControl="true")
    marks = ElementTree.SubElement(view, "RectangleLabels", name="label", toName="image")
    for kind in classes:
        colour = "#{:02x}{:02x}{:02x}".format(*COLOURS[kind])
        ElementTree.SubElement(marks, "Label", value=kind, background=colour)
    for kind in classes:
        if sub_labels.get(kind):
            shown = {"visibleWhen": "region-selected", "whenTagName": "label"}
            of_region = {"perRegion": "true", "whenLabelValue": kind} | shown
            _add_choices(view, _chooser(kind), "single", sub_labels[kind], **of_region)
    _add_choices(view, SEARCHED, "multiple", classes)
    return view


def _add_choices(
    view: ElementTree.Element, name: str, choice: str, values: Sequence[str], **more: str
) -> None:
    told = {"name": name, "toName": "image", "choice": choice, "showInline": "true"}
    choices = ElementTree.SubElement(view, "Choices", told | more)
    for value in values:
        ElementTree.SubElement(choices, "Choice", value=value)
