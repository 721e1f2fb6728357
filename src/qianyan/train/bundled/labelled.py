"""Pictures with labels, and what the labels say about a part of them.

A picture names the kinds that somebody looked for in it; a kind that nobody looked for is never
taken as absent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from qianyan.inputs.crops import upper_body
from qianyan.labels.photos import LabelledBox, LabelledPhoto
from qianyan.models.detector import KINDS, Kind
from qianyan.train.bundled.scene_store import StoredScenes
from qianyan.train.bundled.sentences import Contents

Box = tuple[float, float, float, float]
Region = tuple[int, int, int, int]
Floats = npt.NDArray[np.float32]

CELLS = 4

# A hazard is in a crop when most of it is, or when it covers a fair share of the crop.
_MOST = 0.5
_SHARES: dict[Kind, float] = {"fire": 0.05, "smoke": 0.12}


@dataclass(frozen=True)
class LabelledPicture:
    """A picture with boxes in its pixels, and the kinds that were looked for in it.

    `decoys` are boxes of a detector's false proposals.
    """

    image: Image.Image
    boxes: tuple[LabelledBox, ...]
    looked_for: frozenset[Kind]
    decoys: tuple[Box, ...] = ()


def photo_pictures(
    photos: Sequence[LabelledPhoto], *, decoys: Mapping[str, tuple[Box, ...]] | None = None
) -> list[LabelledPicture]:
    """Read photos into memory; `decoys` are by file name."""
    return [
        LabelledPicture(
            Image.fromarray(photo.read()),
            photo.boxes,
            photo.labelled,
            (decoys or {}).get(photo.path.name, ()),
        )
        for photo in photos
    ]


def scene_pictures(
    scenes: StoredScenes, *, decoys: Sequence[tuple[Box, ...]] | None = None
) -> list[LabelledPicture]:
    """Take drawn scenes, in which everything is labelled; `decoys` are in their order."""
    rows = zip(scenes.pictures, scenes.boxes, decoys or [()] * len(scenes.boxes), strict=True)
    return [
        LabelledPicture(Image.fromarray(picture), boxes, frozenset(KINDS), false)
        for picture, boxes, false in rows
    ]


def hazard_in(picture: LabelledPicture, region: Region) -> str:
    """Say what a region shows: fire, smoke, both or nothing of either."""
    seen = {
        kind: any(
            (
                overlap(box, region) >= _MOST * area(box)
                and overlap(box, region) >= 0.25 * share * area(region)
            )
            or overlap(box, region) >= share * area(region)
            for box in boxes_of(picture, kind)
        )
        for kind, share in _SHARES.items()
    }
    if seen["fire"] and seen["smoke"]:
        return "both"
    return "fire" if seen["fire"] else "smoke" if seen["smoke"] else "nothing"


def headgear_of(picture: LabelledPicture, person: Box) -> str:
    """Say what the labelled heads in the upper part of a person wear.

    "uncertain" is a person of whom no head is seen, "unknown" what the labels do not settle.
    """
    x1, y1, x2, y2 = upper_body(person)
    top = y1 - 0.1 * (y2 - y1)
    kinds: tuple[Kind, ...] = ("helmet", "head")
    worn = {
        kind
        for kind in kinds
        for a, b, c, d in boxes_of(picture, kind)
        if x1 <= (a + c) / 2 <= x2 and top <= (b + d) / 2 <= y2
    }
    if not worn and "head" in picture.looked_for:
        heads = boxes_of(picture, *kinds)
        return "unknown" if any(overlap(box, person) for box in heads) else "uncertain"
    if len(worn) != 1:
        return "unknown"
    return "helmet" if "helmet" in worn else "no_helmet"


def contents_of(picture: LabelledPicture) -> Contents | None:
    """Say what a whole picture holds; None where the labels do not tell enough for a sentence."""
    heads = len(boxes_of(picture, "helmet")), len(boxes_of(picture, "head"))
    if boxes_of(picture, "person") and not any(heads):
        return None
    people = "helmet" in picture.looked_for
    fire, smoke = bool(boxes_of(picture, "fire")), bool(boxes_of(picture, "smoke"))
    if not people and not fire and not smoke:
        return None  # people were not looked for and may well fill the picture
    return Contents(
        fire=fire if "fire" in picture.looked_for else None,
        smoke=smoke if "smoke" in picture.looked_for else None,
        helmets=heads[0] if people else None,
        bare_heads=heads[1] if people else None,
    )


def cells_of(picture: LabelledPicture, region: Region) -> Floats:
    """Measure how much of each of CELLS x CELLS squares of a region every kind covers."""
    x1, y1, x2, y2 = region
    columns = np.linspace(x1, x2, CELLS + 1)
    rows = np.linspace(y1, y2, CELLS + 1)
    cells = np.zeros((len(KINDS), CELLS, CELLS), np.float32)
    for number, kind in enumerate(KINDS):
        if kind not in picture.looked_for:
            cells[number] = np.nan
        for left, top, right, bottom in boxes_of(picture, kind):
            wide = np.clip(np.minimum(right, columns[1:]) - np.maximum(left, columns[:-1]), 0, None)
            high = np.clip(np.minimum(bottom, rows[1:]) - np.maximum(top, rows[:-1]), 0, None)
            share = np.outer(high / (rows[1] - rows[0]), wide / (columns[1] - columns[0]))
            cells[number] = np.fmax(cells[number], share)
    return cells


def boxes_of(picture: LabelledPicture, *kinds: Kind) -> list[Box]:
    """List the boxes of these kinds."""
    return [labelled.box for labelled in picture.boxes if labelled.kind in kinds]


def area(box: Box) -> float:
    """Measure a box in square pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(box: Box, other: Box) -> float:
    """Measure what two boxes share in square pixels."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(width, 0) * max(height, 0)


def touches(picture: LabelledPicture, kinds: tuple[Kind, ...], region: Region) -> bool:
    """Say whether any box of these kinds reaches into the region."""
    limit = 0.005 * area(region)
    return any(overlap(box, region) > limit for box in boxes_of(picture, *kinds))
