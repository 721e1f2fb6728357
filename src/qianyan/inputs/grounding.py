"""Boxes as each generation of models writes them, to and from pixels of the photo.

Qwen-VL writes thousandths of the picture, 0 to 1000; Qwen2-VL the same, 1000 excluded (Qwen2-VL,
section 2); Qwen2.5-VL pixels of the picture it was shown, after smart_resize (Qwen2.5-VL, section
2.1); Qwen3-VL thousandths again. Some other models write fractions, and some put y before x.
"""

import math
from enum import StrEnum

Size = tuple[int, int]  # width, height
Corners = tuple[float, float, float, float]


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

    def far_corner(self, seen_wh: Size) -> Size:
        """Give the notation's (x, y) of a picture's bottom right corner.

        `seen_wh` is the size whose pixels the model counts: as shown to the model for resized
        pixels, as sent for sent pixels. Relative notations do not depend on it.
        """
        return seen_wh if self.span is None else (self.span, self.span)


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


def find_notation(architecture: str) -> Notation | None:
    """Find the notation of a model class as config.json names it; None where none is known."""
    return _BY_ARCHITECTURE.get(architecture)


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
    far_x, far_y = notation.far_corner(seen_wh)
    scales = (far_x / photo_wh[0], far_y / photo_wh[1])
    digits = 4 if notation.span == 1 else 0
    reach = 999 if notation is Notation.RELATIVE_BELOW_1000 else None
    numbers = []
    for index, corner in enumerate(box):
        far = (far_x, far_y)[index % 2]
        number = round(corner * scales[index % 2], digits)
        number = min(max(number, 0.0), far if reach is None else reach)
        numbers.append(number if digits else int(number))
    written = (numbers[0], numbers[1], numbers[2], numbers[3])
    return _swapped(written) if notation.is_yx else written


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
