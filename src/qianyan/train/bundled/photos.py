"""Labelled photos for the bundled models: a folder of images/ and annotations_train/val.json.

Both are COCO with `labeled_categories` and `bbox_head` (`labels/reading.py`). To bring your own
photos, write such a folder. A head is learned as the whole head, where the labels have it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from qianyan.labels.photos import LabelledBox, LabelledPhoto
from qianyan.labels.reading import read_coco

Split = Literal["train", "val"]
MIN_SIDE = 2.0  # pixels; smaller boxes are slips of an annotator's mouse
HELD_OUT_BLOCK, HELD_OUT_EVERY = 12, 16  # neighbours in the list come from one video or album


def read_photos(folder: Path, split: Split) -> list[LabelledPhoto]:
    """List the photos of one split with their labels, in the file's order.

    Raises ConfigError where the annotation file is missing or does not follow the format.
    """
    photos = read_coco(folder / f"annotations_{split}.json", images=folder / "images")
    return [replace(photo, boxes=tuple(_whole(photo.boxes))) for photo in photos]


def _whole(boxes: tuple[LabelledBox, ...]) -> list[LabelledBox]:
    whole = [LabelledBox(each.kind, each.head_box or each.box) for each in boxes]
    return [
        each
        for each in whole
        if each.box[2] - each.box[0] >= MIN_SIDE and each.box[3] - each.box[1] >= MIN_SIDE
    ]


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
