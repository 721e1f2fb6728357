"""Boxes, points and quads as each generation of models counts them, to and from photo pixels.

Qwen-VL writes thousandths of the picture, 0 to 1000; Qwen2-VL the same, 1000 excluded (Qwen2-VL,
section 2); Qwen2.5-VL pixels of the picture it was shown, after smart_resize (Qwen2.5-VL, section
2.1); Qwen3-VL thousandths again. Some other models write fractions, and some put y before x.
How the numbers are marked in an answer is a matter of its own: `Markup`, see marked_places.py.
"""

import math
from collections.abc import Sequence
from enum import StrEnum

Size = tuple[int, int]  # width, height
Corners = tuple[float, float, float, float]
Point = tuple[float, float]
Quad = tuple[Point, Point, Point, Point]
PhotoPoint = tuple[int, int]
PhotoQuad = tuple[PhotoPoint, PhotoPoint, PhotoPoint, PhotoPoint]


class Notation(StrEnum):
    """What the four numbers of a model's box mean; x1, y1, x2, y2 unless the name ends in _yx."""

    RESIZED_PIXELS = "resized_pixels"  # of the picture after the model's own resizing
    SENT_PIXELS = "sent_pixels"  # of the picture as it was sent
    RELATIVE_1000 = "relative_1000"
    RELATIVE_BELOW_1000 = "relative_below_1000"  # 0 to 999, still thousandths
    RELATIVE_1 = "relative_1"
    RESIZED_PIXELS_YX = "resized_pixels_yx"
    SENT_PIXELS_YX = "sent_pixels_yx"
    RELATIVE_1000_YX = "relative_1000_yx"
    RELATIVE_1_YX = "relative_1_yx"

    @property
    def is_yx(self) -> bool:
        """Whether y comes before x."""
        return self.value.endswith("_yx")

    @property
    def span(self) -> int | None:
        """What the far edge of any picture is written as; None where it is counted in pixels."""
        if "1000" in self.value:
            return 1000
        return 1 if self.value.startswith("relative_1") else None

    @property
    def largest(self) -> int | None:
        """The largest number a model writes; None where that depends on the picture's size."""
        return 999 if self is Notation.RELATIVE_BELOW_1000 else self.span

    def far_corner(self, seen_wh: Size) -> Size:
        """Give the notation's (x, y) of a picture's bottom right corner.

        `seen_wh` is the size whose pixels the model counts: as shown to the model for resized
        pixels, as sent for sent pixels. Relative notations do not depend on it.
        """
        return seen_wh if self.span is None else (self.span, self.span)


class Markup(StrEnum):
    """How a place stands in a model's answer."""

    JSON = "json"  # {"bbox_2d": [x1, y1, x2, y2], "label": "name"}
    OBJECT_REF = "object_ref"  # <|object_ref_start|>name<|object_ref_end|><|box_start|>(x1,y1),…
    REF = "ref"  # <ref>name</ref><box>(x1,y1),(x2,y2)</box>


# What an unknown endpoint may speak. A probe tries these in turn; the first best one wins, so the
# more usual of two that look alike stands first.
HYPOTHESES = (
    Notation.RESIZED_PIXELS,
    Notation.RELATIVE_1000,
    Notation.SENT_PIXELS,
    Notation.RELATIVE_1,
    Notation.RESIZED_PIXELS_YX,
    Notation.RELATIVE_1000_YX,
    Notation.SENT_PIXELS_YX,
    Notation.RELATIVE_1_YX,
)

_BY_ARCHITECTURE = {
    "QWenLMHeadModel": Notation.RELATIVE_1000,
    "Qwen2VLForConditionalGeneration": Notation.RELATIVE_BELOW_1000,
    "Qwen2_5_VLForConditionalGeneration": Notation.RESIZED_PIXELS,
    "Qwen2_5OmniModel": Notation.RESIZED_PIXELS,
    "Qwen2_5OmniForConditionalGeneration": Notation.RESIZED_PIXELS,
    "Qwen2_5OmniThinkerForConditionalGeneration": Notation.RESIZED_PIXELS,
    "Qwen3VLForConditionalGeneration": Notation.RELATIVE_1000,
    "Qwen3VLMoeForConditionalGeneration": Notation.RELATIVE_1000,
}
_MARKUP_BY_ARCHITECTURE = {
    "QWenLMHeadModel": Markup.REF,
    "Qwen2VLForConditionalGeneration": Markup.OBJECT_REF,
}


def find_notation(architecture: str) -> Notation | None:
    """Find the notation of a model class as config.json names it; None where none is known."""
    return _BY_ARCHITECTURE.get(architecture)


def find_markup(architecture: str) -> Markup:
    """Find how a model class, as config.json names it, was trained to mark places."""
    return _MARKUP_BY_ARCHITECTURE.get(architecture, Markup.JSON)


def to_photo_box(
    box: Corners, *, notation: Notation, seen_wh: Size, photo_wh: Size
) -> tuple[int, int, int, int] | None:
    """Turn a model's box into whole pixels of the photo: ordered, inside, x1 < x2 and y1 < y2.

    Models overshoot a little (QwenLM/Qwen3-VL#1035) and swap corners; both are put right. A box
    thinner than a pixel keeps one pixel. A box with no area inside the photo is None.

    Args:
        box: the four numbers as the model wrote them.
        notation: what they mean.
        seen_wh: width and height of the picture whose pixels the model counts.
        photo_wh: width and height of the photo.
    """
    if not all(math.isfinite(number) for number in box):
        return None
    x1, y1, x2, y2 = _swapped(box) if notation.is_yx else box
    far_x, far_y = notation.far_corner(seen_wh)
    across = _span_inside(x1 / far_x, x2 / far_x, photo_wh[0])
    down = _span_inside(y1 / far_y, y2 / far_y, photo_wh[1])
    if across is None or down is None:
        return None
    return across[0], down[0], across[1], down[1]


def to_model_box(box: Corners, *, notation: Notation, seen_wh: Size, photo_wh: Size) -> Corners:
    """Turn a box in photo pixels into the notation, inside the picture, as a model would write it.

    Whole numbers, except fractions to four decimals. Arguments as for `to_photo_box`.
    """
    x1, y1 = _to_model(box[:2], notation, seen_wh=seen_wh, photo_wh=photo_wh)
    x2, y2 = _to_model(box[2:], notation, seen_wh=seen_wh, photo_wh=photo_wh)
    written = (x1, y1, x2, y2)
    return _swapped(written) if notation.is_yx else written


def to_photo_point(
    point: Point, *, notation: Notation, seen_wh: Size, photo_wh: Size
) -> PhotoPoint | None:
    """Turn a model's point into a pixel of the photo, counted from 0; None when it lies outside.

    The far edge itself still counts as inside. Arguments as for `to_photo_box`.
    """
    if not all(math.isfinite(number) for number in point):
        return None
    x, y = point[::-1] if notation.is_yx else point
    far_x, far_y = notation.far_corner(seen_wh)
    if not (0 <= x <= far_x and 0 <= y <= far_y):
        return None
    width, height = photo_wh
    return min(round(x / far_x * width), width - 1), min(round(y / far_y * height), height - 1)


def to_model_point(point: Point, *, notation: Notation, seen_wh: Size, photo_wh: Size) -> Point:
    """Turn a point in photo pixels into the notation, as a model would write it."""
    written = _to_model(point, notation, seen_wh=seen_wh, photo_wh=photo_wh)
    return written[::-1] if notation.is_yx else written


def to_photo_quad(
    quad: Quad, *, notation: Notation, seen_wh: Size, photo_wh: Size
) -> PhotoQuad | None:
    """Turn a model's four corners into corners in the photo, in the same order.

    Corners outside are moved to the nearest edge; None when nothing of the quad lies inside.
    """
    if any(not math.isfinite(number) for corner in quad for number in corner):
        return None
    around = box_around(quad)
    if to_photo_box(around, notation=notation, seen_wh=seen_wh, photo_wh=photo_wh) is None:
        return None
    far_x, far_y = notation.far_corner(seen_wh)
    corners = []
    for corner in quad:
        x, y = corner[::-1] if notation.is_yx else corner
        across, down = min(max(x / far_x, 0.0), 1.0), min(max(y / far_y, 0.0), 1.0)
        corners.append((round(across * photo_wh[0]), round(down * photo_wh[1])))
    return corners[0], corners[1], corners[2], corners[3]


def to_model_quad(quad: Quad, *, notation: Notation, seen_wh: Size, photo_wh: Size) -> Quad:
    """Turn four corners in photo pixels into the notation, in the same order."""
    first, second, third, fourth = (
        to_model_point(corner, notation=notation, seen_wh=seen_wh, photo_wh=photo_wh)
        for corner in quad
    )
    return first, second, third, fourth


def box_around(points: Sequence[Point]) -> Corners:
    """Give the upright box around some points, such as the corners of a quad."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _to_model(
    point: Sequence[float], notation: Notation, *, seen_wh: Size, photo_wh: Size
) -> Point:
    """Write (x, y) of the photo as numbers of the notation, x first in every notation."""
    digits = 4 if notation.span == 1 else 0
    numbers = []
    for place, far, length in zip(point, notation.far_corner(seen_wh), photo_wh, strict=True):
        number = round(place * (far / length), digits)
        number = min(max(number, 0.0), far if notation.largest is None else notation.largest)
        numbers.append(number if digits else int(number))
    return numbers[0], numbers[1]


def _swapped(box: Corners) -> Corners:
    return box[1], box[0], box[3], box[2]


def _span_inside(start: float, end: float, length: int) -> tuple[int, int] | None:
    """Place a stretch, given in fractions of `length`, on whole pixels; None when nothing is left.

    Clipped as fractions, because huge numbers must not overflow on the way.
    """
    start, end = sorted((start, end))
    start, end = max(start, 0.0), min(end, 1.0)
    if start >= end:
        return None
    first, last = round(start * length), round(end * length)
    if first == last:  # thinner than a pixel: the pixel that holds its middle
        first = min(int((start + end) / 2 * length), length - 1)
        last = first + 1
    return first, last
