"""Labelled photos in a COCO-like folder, for training and measuring.

A folder holds `images/`, `annotations_train.json` and `annotations_val.json`. Beyond plain COCO:

* image `labeled_categories` lists the categories that somebody annotated, or checked to be
  absent, in that image. Only those give negatives: a fire photo in which nobody boxed the
  firefighters says nothing about persons. Without the field every category counts as labelled.
* annotation `bbox_head` is the box of the whole head where `bbox` is only the hat; without it
  `bbox` is used.

Categories are called fire, smoke, person, helmet (a head with a hard hat) and head (without);
others are ignored. To bring your own photos, write such a folder.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qianyan.errors import ConfigError, MediaError, quote
from qianyan.models.detector import KINDS, Kind

Split = Literal["train", "val"]
MIN_SIDE = 2.0  # pixels; smaller boxes are slips of an annotator's mouse
HELD_OUT_BLOCK, HELD_OUT_EVERY = 12, 16  # neighbours in the list come from one video or album


@dataclass(frozen=True)
class LabelledBox:
    """A labelled thing; x1, y1, x2, y2 in pixels of its picture."""

    kind: Kind
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class LabelledPhoto:
    """Where a photo lies, its size, and what is known about it."""

    path: Path
    width: int
    height: int
    labelled: frozenset[Kind]
    boxes: tuple[LabelledBox, ...]
    source: str = ""

    def has(self, kind: Kind) -> bool:
        """Say whether the photo shows something of this kind, as far as it was labelled."""
        return any(box.kind == kind for box in self.boxes)

    def read(self) -> NDArray[np.uint8]:
        """Read the photo as (height, width, 3) uint8.

        Raises:
            MediaError: the file is missing or cannot be decoded.
        """
        try:
            with Image.open(self.path) as image:
                return np.asarray(image.convert("RGB"))
        except OSError as error:
            raise MediaError(
                f"{self.path.name} cannot be read: {error}.", code="unreadable"
            ) from error


def read_photos(folder: Path, split: Split) -> list[LabelledPhoto]:
    """List the photos of one split with their labels, in the file's order.

    Raises:
        ConfigError: the annotation file is missing or does not follow the format above.
    """
    source = folder / f"annotations_{split}.json"
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        names = {int(each["id"]): str(each["name"]) for each in content["categories"]}
        by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        return [_photo(folder, image, by_image[image["id"]], names) for image in content["images"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{quote(source)} is not a list of labelled photos ({type(error).__name__}: {error}). "
            "Expected COCO with images, annotations and categories."
        ) from error


def split_held_out(photos: list[LabelledPhoto]) -> tuple[list[LabelledPhoto], list[LabelledPhoto]]:
    """Set about one photo in sixteen apart, in runs of neighbours, to choose thresholds on.

    Returns what is left for training, then what is held out.
    """
    kept: list[LabelledPhoto] = []
    held: list[LabelledPhoto] = []
    for index, photo in enumerate(photos):
        is_held = index // HELD_OUT_BLOCK % HELD_OUT_EVERY == HELD_OUT_EVERY // 2
        (held if is_held else kept).append(photo)
    return kept, held


def _photo(
    folder: Path, image: dict[str, Any], annotations: list[dict[str, Any]], names: dict[int, str]
) -> LabelledPhoto:
    labelled = image.get("labeled_categories", list(get_args(Kind)))
    width, height = int(image["width"]), int(image["height"])
    boxes = []
    for annotation in annotations:
        name = names[annotation["category_id"]]
        if name not in KINDS or name not in labelled:
            continue
        x, y, wide, tall = annotation.get("bbox_head") or annotation["bbox"]
        box = (max(0.0, x), max(0.0, y), min(float(width), x + wide), min(float(height), y + tall))
        if box[2] - box[0] >= MIN_SIDE and box[3] - box[1] >= MIN_SIDE:
            boxes.append(LabelledBox(name, box))
    return LabelledPhoto(
        path=folder / "images" / image["file_name"],
        width=width,
        height=height,
        labelled=frozenset(kind for kind in KINDS if kind in labelled),
        boxes=tuple(boxes),
        source=str(image.get("source", "")),
    )
