"""A labelled photo: boxes by kind, and the kinds that somebody looked for in it.

A kind that nobody looked for is never taken as absent: a fire photo in which nobody boxed the
firefighters says nothing about persons.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qianyan.errors import ConfigError, MediaError, quote

Kind = Literal["fire", "smoke", "person", "helmet", "head"]
"""`helmet` is a head with a hard hat, `head` one without."""
KINDS: tuple[Kind, ...] = get_args(Kind)
Corners = tuple[float, float, float, float]

NAMES: dict[str, Kind] = {
    "fire": "fire", "flame": "fire", "flames": "fire", "火": "fire", "火焰": "fire", "明火": "fire",
    "smoke": "smoke", "烟": "smoke", "烟雾": "smoke",
    "person": "person", "people": "person", "human": "person", "worker": "person",
    "pedestrian": "person", "人": "person", "人员": "person", "工人": "person",
    "helmet": "helmet", "hardhat": "helmet", "hat": "helmet", "withhelmet": "helmet",
    "安全帽": "helmet", "戴安全帽": "helmet", "已戴安全帽": "helmet",
    "head": "head", "nohelmet": "head", "nohardhat": "head", "nohat": "head", "barehead": "head",
    "withouthelmet": "head", "未戴安全帽": "head", "无安全帽": "head",
}  # fmt: skip
"""How data sets call the kinds, without blanks, dashes and capitals."""


@dataclass(frozen=True)
class LabelledBox:
    """A labelled thing; x1, y1, x2, y2 in pixels of its photo.

    `head_box` is the whole head where `box` is only the hat. `sub_label` is what the annotators say
    beside the kind, such as a fire's severity; None where they say nothing. `score` is how sure a
    model is of a box that it proposes, 0..1; None where a person says so, or a model gives none.
    """

    kind: Kind
    box: Corners
    head_box: Corners | None = None
    sub_label: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class LabelledPhoto:
    """Where a photo lies, its size, and what is known about it."""

    path: Path
    width: int
    height: int
    labelled: frozenset[Kind]
    boxes: tuple[LabelledBox, ...]
    source: str = ""
    tags: tuple[str, ...] = field(default=())

    @property
    def file(self) -> str:
        """The name of its file."""
        return self.path.name

    def read(self) -> NDArray[np.uint8]:
        """Read the photo as (height, width, 3) uint8; MediaError where that cannot be done."""
        try:
            with Image.open(self.path) as image:
                return np.asarray(image.convert("RGB"))
        except OSError as error:
            raise MediaError(
                f"{quote(self.path.name)} is missing or cannot be decoded; expected a picture.",
                code="unreadable",
            ) from error

    def has(self, kind: Kind) -> bool:
        """Say whether the photo shows something of this kind, as far as it was labelled."""
        return any(box.kind == kind for box in self.boxes)

    def of_kind(self, *kinds: Kind) -> list[LabelledBox]:
        """List the labels of these kinds."""
        return [label for label in self.boxes if label.kind in kinds]


def find_kind(name: str, *, where: str, others: frozenset[str] = frozenset()) -> Kind | None:
    """Find the kind that a data set's class stands for; None for one of `others`.

    Raises ConfigError for a class that is neither, because leaving it out silently would turn
    what it marks into a false alarm.
    """
    if name in others:
        return None
    kind = known_kind(name)
    if kind is None:
        raise ConfigError(
            f"{where} has the class {quote(name)}; expected {', '.join(KINDS)} or a usual name of "
            "one of them. Rename it, or say that it is to be left out."
        )
    return kind


def known_kind(name: str) -> Kind | None:
    """Find the kind that goes by a name in any data set; None where none does."""
    return NAMES.get("".join(char for char in name.casefold() if char not in " -_"))


def inside(box: Corners, *, width: int, height: int) -> Corners | None:
    """Cut a box to its photo; None where nothing of it lies inside."""
    x1, y1, x2, y2 = box
    x1, y1, x2, y2 = max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def from_xywh(box: "tuple[float, ...] | list[float]") -> Corners:
    """Turn x, y, width, height into corners."""
    x, y, width, height = box
    return (x, y, x + width, y + height)


def iou(first: Corners, second: Corners) -> float:
    """Intersection over union of two boxes in the same pixels, 0..1."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    whole = _area(first) + _area(second) - shared
    return shared / whole if whole > 0 else 0.0


def _area(box: Corners) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
