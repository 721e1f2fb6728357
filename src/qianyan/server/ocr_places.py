"""Where a line of text is: corners and turned rectangles, from a model's numbers to the picture's.

A turned rectangle is Bailian's rotate_rect: centre x and y, width along the text, height, and the
angle in degrees, clockwise as seen, -90 to 90. Corners go round the text from its upper left one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qianyan.inputs.grounding import Notation, PhotoQuad, Point, Quad, Size, to_photo_quad


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of text and its four corners in pixels of the picture, the right way up."""

    text: str
    corners: PhotoQuad

    def to_json(self) -> dict[str, object]:
        """Write it as an entry of words_info."""
        return {
            "text": self.text,
            "location": [number for corner in self.corners for number in corner],
            "rotate_rect": to_turned(self.corners),
        }


def read_corners(numbers: Sequence[float]) -> Quad | None:
    """Read a box (4 numbers), a turned rectangle (5) or corners (8); None for other counts."""
    if len(numbers) == 4:
        x1, y1, x2, y2 = numbers
        (x1, x2), (y1, y2) = sorted((x1, x2)), sorted((y1, y2))
        return (x1, y1), (x2, y1), (x2, y2), (x1, y2)
    if len(numbers) == 5:
        return _turned_corners(*numbers)
    if len(numbers) == 8:
        x1, y1, x2, y2, x3, y3, x4, y4 = numbers
        return (x1, y1), (x2, y2), (x3, y3), (x4, y4)
    return None


def to_photo(
    numbers: Sequence[float], *, notation: Notation, seen_wh: Size, photo_wh: Size
) -> PhotoQuad | None:
    """Bring a place in a model's numbers to the picture; None when it is none or lies outside."""
    if not all(math.isfinite(number) for number in numbers):
        return None
    corners = read_corners(numbers)
    if corners is None:
        return None
    return to_photo_quad(corners, notation=notation, seen_wh=seen_wh, photo_wh=photo_wh)


def to_turned(corners: Sequence[Point]) -> list[int]:
    """Fit a turned rectangle to four corners."""
    first, second, third, fourth = corners
    across = _between(_middle(first, fourth), _middle(second, third))
    down = _between(_middle(first, second), _middle(fourth, third))
    angle = math.degrees(math.atan2(across[1], across[0]))
    if angle > 90:
        angle -= 180
    elif angle < -90:
        angle += 180
    centre = _middle(_middle(first, third), _middle(second, fourth))
    sizes = (math.hypot(*across), math.hypot(*down))
    return [round(number) for number in (*centre, *sizes, angle)]


def _turned_corners(cx: float, cy: float, width: float, height: float, angle: float) -> Quad:
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))

    def corner(right: float, below: float) -> Point:
        return cx + right * cosine - below * sine, cy + right * sine + below * cosine

    x, y = width / 2, height / 2
    return corner(-x, -y), corner(x, -y), corner(x, y), corner(-x, y)


def _middle(one: Point, other: Point) -> Point:
    return (one[0] + other[0]) / 2, (one[1] + other[1]) / 2


def _between(start: Point, end: Point) -> Point:
    return end[0] - start[0], end[1] - start[1]
