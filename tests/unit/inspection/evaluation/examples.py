"""Labels and verdicts by hand, for the tests of figures."""

from pathlib import Path

from qianyan.inspection.records import (
    Box,
    Detection,
    Failure,
    Hazard,
    Inspection,
    SubLabel,
    Usage,
)
from qianyan.labels.photos import KINDS, Kind, LabelledBox, LabelledPhoto

ALL: frozenset[Kind] = frozenset(KINDS)
FLAME = LabelledBox("fire", (0, 0, 100, 100), sub_label="minor")
HELMET = LabelledBox("helmet", (30, 95, 70, 115), head_box=(30, 95, 70, 145))
BARE = LabelledBox("head", (230, 100, 270, 140))


def photo(
    *boxes: LabelledBox, labelled: frozenset[Kind] = ALL, name: str = "a.jpg"
) -> LabelledPhoto:
    return LabelledPhoto(Path(name), 400, 400, labelled, boxes)


def fire(
    x: int,
    y: int = 0,
    side: int = 100,
    *,
    score: float | None = 0.5,
    said: SubLabel = SubLabel.MINOR,
) -> Detection:
    return Detection(Hazard.FIRE, said, Box(x, y, x + side, y + side), score, "detector")


def person(x: int, said: SubLabel) -> Detection:
    return Detection(Hazard.PERSON, said, Box(x, 100, x + 100, 400))


def looked(*found: Detection, total_s: float = 0.0, usage: Usage | None = None) -> Inspection:
    return Inspection(
        source="a",
        detections=found,
        checked=tuple(Hazard),
        total_s=total_s,
        usage=usage or Usage(),
    )


def failed(code: str) -> Inspection:
    return Inspection(
        source="a", detections=None, checked=tuple(Hazard), error=Failure(code, "No.")
    )
