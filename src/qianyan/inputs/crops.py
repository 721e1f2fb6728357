"""The square around a box that a judge is shown: one cut for training and for inspection."""

import math

from PIL import Image

from qianyan.errors import InputError

# A judged crop shows the box and 30 % of its longer side on every side: enough context to
# tell a flame from a lamp, little enough that the subject still fills the picture.
CROP_MARGIN = 1.6
CROP_MIN_SIDE = 32


def upper_body(
    box: tuple[float, float, float, float],
) -> tuple[float, float, float, float]:
    """Give the square at the top of a person's box that holds the head, in the same pixels.

    Its side is the box's width, or 45 % of the height where the person is not upright.
    """
    x1, y1, x2, y2 = box
    side = min(x2 - x1, 0.45 * (y2 - y1))
    middle = (x1 + x2) / 2
    return middle - side / 2, y1, middle + side / 2, y1 + side


def crop_region(
    box: tuple[float, float, float, float],
    photo_wh: tuple[int, int],
    *,
    margin: float = CROP_MARGIN,
    min_side: int = CROP_MIN_SIDE,
) -> tuple[int, int, int, int]:
    """Place a square of `margin` times the box's longer side around the box, inside the photo.

    Boxes are (x1, y1, x2, y2) in photo pixels. A square that would leave the photo is shifted
    back; one that is longer than a side of the photo is cut to that side, and only then is the
    region not square.
    """
    x1, y1, x2, y2 = box
    if not all(math.isfinite(corner) for corner in box) or x2 <= x1 or y2 <= y1:
        raise InputError(f"The box is {box}; expected finite corners with x1 < x2 and y1 < y2.")
    side = max(margin * max(x2 - x1, y2 - y1), min_side)
    left, right = _span((x1 + x2) / 2, side, photo_wh[0])
    top, bottom = _span((y1 + y2) / 2, side, photo_wh[1])
    return left, top, right, bottom


def _span(centre: float, side: float, limit: int) -> tuple[int, int]:
    """Place a stretch of `side` pixels around `centre` inside [0, limit]."""
    length = min(max(round(side), 1), limit)
    start = min(max(round(centre - length / 2), 0), limit - length)
    return start, start + length


def square_crop(
    image: Image.Image,
    box: tuple[float, float, float, float],
    *,
    margin: float = CROP_MARGIN,
    min_side: int = CROP_MIN_SIDE,
) -> Image.Image:
    """Cut the square around the box out of the photo, in photo pixels.

    Where the photo is too small for a square, the region is squeezed into one, so that a judge
    with a small square picture still sees all of the box.
    """
    region = crop_region(box, image.size, margin=margin, min_side=min_side)
    cut = image.crop(region)
    if cut.width == cut.height:
        return cut
    side = max(cut.size)
    return cut.resize((side, side), Image.Resampling.BICUBIC)
