"""The places that an answer marks, brought to the pixels that its client asked for.

Every generation of models counts in its own way (`inputs/grounding.py`), and clients that rescale
by hand get it wrong more often than right. The answer itself stays as the model wrote it: the
places stand beside it. Both ways to mark them are read, JSON and names with brackets.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from qianyan.inputs.grounding import Notation, Point, Size, to_photo_box, to_photo_point
from qianyan.inputs.loose_json import TooDeepError, Value, read_loose_json
from qianyan.inputs.marked_places import Shape, read_marked
from qianyan.inputs.media import SeenImage
from qianyan.server.ocr_places import read_corners

MAX_PLACES = 500
_LABEL_KEYS = ("label", "text_content", "text", "name")
_BOX_KEYS = ("bbox_2d", "bbox", "box", "rotate_rect", "quad")
_POINT_KEYS = ("point_2d", "point")


class CoordinateSpace(StrEnum):
    """What the numbers of places count: pixels of the picture sent, thousandths of it, or pixels
    of the picture as the model saw it.
    """

    ORIGINAL_PIXELS = "original_pixels"
    NORMALIZED_1000 = "normalized_1000"
    MODEL_PIXELS = "model_pixels"

    def size(self, image: SeenImage) -> Size:
        """Give what the far corner of a picture is called."""
        return {
            CoordinateSpace.ORIGINAL_PIXELS: image.photo_wh,
            CoordinateSpace.NORMALIZED_1000: (1000, 1000),
            CoordinateSpace.MODEL_PIXELS: image.seen_wh,
        }[self]


@dataclass(frozen=True)
class FoundPlaces:
    """The places of an answer, as they are told, and what there is to say about them.

    `is_cut` says that the answer ends inside one.
    """

    places: list[dict[str, Any]]
    notes: tuple[str, ...] = ()
    is_cut: bool = False


def read_places(
    answer: str, image: SeenImage, *, notation: Notation, space: CoordinateSpace
) -> FoundPlaces:
    """Read the places that an answer marks in its one picture; none is a statement of the model."""
    size = space.size(image)

    def place(label: str | None, corners: Shape) -> dict[str, Any] | None:
        if len(corners) == 1:
            point = to_photo_point(
                corners[0], notation=notation, seen_wh=image.seen_wh, photo_wh=size
            )
            return None if point is None else {"label": label, "point_2d": list(point)}
        xs, ys = zip(*corners, strict=True)
        around = (min(xs), min(ys), max(xs), max(ys))
        box = to_photo_box(around, notation=notation, seen_wh=image.seen_wh, photo_wh=size)
        return None if box is None else {"label": label, "bbox_2d": list(box)}

    marked, is_cut = _find(answer)
    told = [place(label, corners) for label, corners in marked[:MAX_PLACES]]
    places = [one for one in told if one is not None]
    notes = []
    if is_cut:
        notes.append("places: the answer ends inside one, which is left out")
    if len(marked) > MAX_PLACES:
        notes.append(f"places: {len(marked)} are marked, the first {MAX_PLACES} are told")
    if outside := len(told) - len(places):
        notes.append(f"places: {outside} lie outside the picture and are left out")
    return FoundPlaces(places, tuple(notes), is_cut)


def _find(answer: str) -> tuple[list[tuple[str | None, Shape]], bool]:
    """Find names and corners, as they are written; whether the text ends inside one."""
    try:
        read = read_loose_json(answer)
    except TooDeepError:
        return [], True
    found = [one for outer in read.found for one in _in_json(outer.value)]
    if found or read.is_cut:
        return found, read.is_cut
    marked = read_marked(answer)
    shapes = [
        (place.label, shape)
        for place in marked.places
        for shape in place.shapes
        if len(shape) in (1, 2, 4)
    ]
    return shapes, marked.is_cut


def _in_json(value: Value) -> Iterator[tuple[str | None, Shape]]:
    """Walk the objects that have a place, from the outermost on."""
    if isinstance(value, list):
        for item in value:
            yield from _in_json(item)
    if not isinstance(value, dict):
        return
    label = next((value[key] for key in _LABEL_KEYS if isinstance(value.get(key), str)), None)
    corners = _corners(value)
    if corners is not None:
        yield (str(label) if label is not None else None), corners
        return
    for item in value.values():
        yield from _in_json(item)


def _corners(value: dict[str, Value]) -> tuple[Point, ...] | None:
    for keys, counts in ((_BOX_KEYS, (4, 5, 8)), (_POINT_KEYS, (2,))):
        for key in keys:
            place = value.get(key)
            if not isinstance(place, list):
                continue
            numbers = [number for number in place if isinstance(number, float)]
            if len(numbers) == len(place) and len(place) in counts:
                return read_corners(numbers) or ((numbers[0], numbers[1]),)
    return None
