"""Draw findings into a picture: frames in the hazard's colour, tags with words and score.

Fire is red, smoke blue, a person green; a person without a hard hat keeps the green frame and gets
a red tag. What is uncertain has a dashed frame, so that colour is never the only sign. Several
findings are numbered in the order of the results, which is also the report's order.

Everything scales with the picture. A tag that does not fit is set smaller, then shorter (score,
then sub-label left out, then its number alone); it never leaves the picture, and it keeps clear of
other tags, then of other findings, as far as there is room.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from qianyan.inspection.records import Detection, Hazard, SubLabel
from qianyan.inspection.reporting.fonts import load_font
from qianyan.inspection.reporting.tags import Tag, place_tags
from qianyan.inspection.words import Lang

Colour = tuple[int, int, int]

FIRE_RED: Colour = (0xE5, 0x32, 0x2D)
SMOKE_BLUE: Colour = (0x25, 0x63, 0xEB)
PERSON_GREEN: Colour = (0x16, 0xA3, 0x4A)
FRAME_COLOURS: dict[Hazard, Colour] = {
    Hazard.FIRE: FIRE_RED,
    Hazard.SMOKE: SMOKE_BLUE,
    Hazard.PERSON: PERSON_GREEN,
}
WHITE: Colour = (255, 255, 255)
TEXT_CONTRAST = 4.5  # WCAG 2.1, level AA, for text of normal size

# Share of the picture's geometric mean side, and limits in pixels.
LINE_SHARE, MIN_LINE, MAX_LINE = 0.005, 1, 32
NUMBER_SHADE = 0.6  # how bright the field under a number is beside the rest of its tag


def mark(
    rgb: Image.Image,
    detections: Sequence[Detection],
    *,
    lang: Lang,
    font_path: Path | None = None,
) -> Image.Image:
    """Return a copy of an RGB picture with the detections drawn in.

    `font_path` is a further font, for characters that the bundled one lacks.
    """
    marked = rgb.copy()
    draw = ImageDraw.Draw(marked)
    width = line_width(rgb.size)
    for detection in sorted(detections, key=lambda found: -found.box.area):
        _draw_frame(draw, detection, width, rgb.size)
    for tag in place_tags(rgb.size, detections, lang=lang, font_path=font_path):
        _draw_tag(draw, tag, tag_colour(tag.detection))
    return marked


def line_width(photo_wh: tuple[int, int]) -> int:
    """Pick the width of frames for a picture of this size, in pixels."""
    width = round(LINE_SHARE * math.sqrt(photo_wh[0] * photo_wh[1]))
    return min(max(width, MIN_LINE), MAX_LINE)


def tag_colour(detection: Detection) -> Colour:
    """Pick the fill of a tag: the frame's colour, red for a bare head; dark enough for white."""
    is_bare_head = detection.sub_label is SubLabel.NO_HELMET
    return _darkened(FIRE_RED if is_bare_head else FRAME_COLOURS[detection.label])


def _darkened(colour: Colour) -> Colour:
    share = 1.0
    darker = colour
    while contrast(darker, WHITE) < TEXT_CONTRAST:
        share -= 0.02
        darker = (round(colour[0] * share), round(colour[1] * share), round(colour[2] * share))
    return darker


def contrast(one: Colour, other: Colour) -> float:
    """Measure the contrast ratio of two colours, 1..21 (WCAG 2.1, relative luminance)."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: Colour) -> float:
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# Frames.


def _draw_frame(
    draw: ImageDraw.ImageDraw, detection: Detection, width: int, photo_wh: tuple[int, int]
) -> None:
    """Draw a frame on the inside of the box's edge with a thin white line on both sides of it.

    A box too small to hold its own frame is framed from outside, so that the thing stays visible.
    """
    box = detection.box
    x1, y1, x2, y2 = box.x1, box.y1, box.x2 - 1, box.y2 - 1  # the last pixels inside
    halo = max(1, width // 5)
    if min(box.width, box.height) < 6 * width:
        outside = width + halo
        x1, y1 = max(x1 - outside, 0), max(y1 - outside, 0)
        x2, y2 = min(x2 + outside, photo_wh[0] - 1), min(y2 + outside, photo_wh[1] - 1)
    is_dashed = detection.sub_label is SubLabel.UNCERTAIN
    for inset, thickness, colour in (
        (-halo, width + 2 * halo, WHITE),
        (0, width, FRAME_COLOURS[detection.label]),
    ):
        sides = _sides((x1 + inset, y1 + inset, x2 - inset, y2 - inset), thickness)
        for side in sides:
            for piece in _dashes(side, 5 * width, -2 * inset) if is_dashed else (side,):
                draw.rectangle(piece, fill=colour)


Bounds = tuple[int, int, int, int]  # first and last pixel of both axes, as Pillow draws


def _sides(bounds: Bounds, thickness: int) -> tuple[Bounds, ...]:
    """Cut a frame into its four sides, each at most up to the middle."""
    x1, y1, x2, y2 = bounds
    across = min(thickness, (x2 - x1) // 2 + 1)
    down = min(thickness, (y2 - y1) // 2 + 1)
    return (
        (x1, y1, x2, y1 + down - 1),
        (x1, y2 - down + 1, x2, y2),
        (x1, y1, x1 + across - 1, y2),
        (x2 - across + 1, y1, x2, y2),
    )


def _dashes(side: Bounds, length: int, longer: int) -> Iterator[Bounds]:
    """Cut a side into an odd number of equal parts and keep every other one: corners stay whole.

    `longer` is how far this side overhangs the side it lies under, at both ends together.
    """
    x1, y1, x2, y2 = side
    is_flat = x2 - x1 >= y2 - y1
    start, end = (x1, x2 + 1) if is_flat else (y1, y2 + 1)
    margin = longer // 2
    inner = end - start - longer
    num_parts = max(3, 2 * round(inner / length / 2) + 1)
    for part in range(0, num_parts, 2):
        first = start + margin + inner * part // num_parts - margin
        last = start + margin + inner * (part + 1) // num_parts + margin - 1
        yield (first, y1, last, y2) if is_flat else (x1, first, x2, last)


def _draw_tag(draw: ImageDraw.ImageDraw, tag: Tag, fill: Colour) -> None:
    """Draw a filled tag, its number on a darker field, with a white edge inside its area."""
    edge = tag.edge
    x1, y1, x2, y2 = tag.area.x1, tag.area.y1, tag.area.x2 - 1, tag.area.y2 - 1
    draw.rectangle((x1, y1, x2, y2), fill=WHITE)
    draw.rectangle((x1 + edge, y1 + edge, x2 - edge, y2 - edge), fill=fill)
    font = load_font(tag.font, tag.size)
    baseline = tag.area.y1 + tag.baseline
    if tag.number and tag.words:
        dark = tuple(round(channel * NUMBER_SHADE) for channel in fill)
        field = (x1 + edge, y1 + edge, x1 + tag.words_x - tag.pad - 1, y2 - edge)
        draw.rectangle(field, fill=dark)
    draw.text((x1 + tag.number_x, baseline), tag.number, font=font, fill=WHITE, anchor="ls")
    draw.text((x1 + tag.words_x, baseline), tag.words, font=font, fill=WHITE, anchor="ls")
