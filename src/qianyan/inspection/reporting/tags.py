"""Words and places for the tags of a marked picture.

A tag says number, label, sub-label and score. It is tried beside its box first, then anywhere in
the picture; at its full size first, then smaller, then with fewer words. Accepted is the first
wording with a place that touches no other tag and hides little of another finding; where there is
none, the least bad of all places tried.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

from qianyan.inspection.records import Box, Detection, Hazard, SubLabel
from qianyan.inspection.reporting.fonts import FONT_FILE, find_font, load_font
from qianyan.inspection.words import Lang, caption, name, short_caption

log = logging.getLogger(__name__)

# Share of the picture's geometric mean side, and limits in pixels.
TEXT_SHARE, MIN_TEXT, MAX_TEXT = 0.024, 13, 170
SMALLER = 0.75
SMALLEST_TEXT = 8  # for a bare number where nothing else fits
MAX_PICTURE_SHARE = 0.4  # of the picture, for the words of all tags together
GOOD_ENOUGH = 1.0  # cost of a place above which fewer words are tried
GRID = 9  # places tried along each axis when there is no room beside the box
HEIGHT_PROBE = "国9%"


@dataclass(frozen=True)
class Wording:
    """What a tag says and the room it takes; measures are pixels from the tag's top left."""

    number: str
    words: str
    size: int
    font: Path

    @cached_property
    def pad(self) -> int:
        """Room beside the text."""
        return max(2, round(self.size * 0.26))

    @property
    def edge(self) -> int:
        """Width of the edge line."""
        return max(1, round(self.size / 24))

    @cached_property
    def _extent(self) -> tuple[int, int]:
        """How far letters reach above and below the baseline."""
        _, top, _, bottom = load_font(self.font, self.size).getbbox(HEIGHT_PROBE, anchor="ls")
        return math.ceil(-top), math.ceil(bottom)

    def _length(self, text: str) -> int:
        return math.ceil(load_font(self.font, self.size).getlength(text))

    @cached_property
    def baseline(self) -> int:
        """Where the letters stand."""
        return self.edge + self._margin + self._extent[0]

    @property
    def _margin(self) -> int:
        return max(1, round(self.size * 0.16))

    @property
    def number_x(self) -> int:
        """Where the number starts."""
        return self.edge + self.pad

    @cached_property
    def words_x(self) -> int:
        """Where the words start."""
        if not self.number:
            return self.edge + self.pad
        return self.number_x + self._length(self.number) + (2 * self.pad if self.words else 0)

    @cached_property
    def width(self) -> int:
        """Whole width."""
        return self.words_x + self._length(self.words) + self.pad + self.edge

    @cached_property
    def height(self) -> int:
        """Whole height."""
        return self.baseline + self._extent[1] + self._margin + self.edge


@dataclass(frozen=True)
class Tag(Wording):
    """A wording in its place in the picture."""

    detection: Detection
    area: Box


def text_size(photo_wh: tuple[int, int]) -> int:
    """Pick the preferred size of letters for a picture of this size, in pixels."""
    size = round(TEXT_SHARE * math.sqrt(photo_wh[0] * photo_wh[1]))
    return min(max(size, MIN_TEXT), MAX_TEXT)


def place_tags(
    photo_wh: tuple[int, int],
    detections: Sequence[Detection],
    *,
    lang: Lang,
    font_path: Path | None = None,
) -> list[Tag]:
    """Find words and a place for every detection's tag, hazards before the rest.

    Areas lie inside the picture. Left out is only a detection whose bare number does not fit.
    """
    fonts = (FONT_FILE, *([font_path] if font_path else []))
    placed: list[Tag] = []
    for index in sorted(range(len(detections)), key=lambda index: _is_calm(detections[index])):
        detection = detections[index]
        number = str(index + 1) if len(detections) > 1 else ""
        tag = _best_tag(
            list(_wordings(detection, number, text_size(photo_wh), lang=lang, fonts=fonts)),
            detection,
            photo_wh,
            tags=[tag.area for tag in placed],
            boxes=[other.box for other in detections if other is not detection],
        )
        if tag is not None:
            placed.append(tag)
    return placed


def _is_calm(detection: Detection) -> bool:
    return detection.label is Hazard.PERSON and detection.sub_label is SubLabel.HELMET


def _wordings(
    detection: Detection, number: str, size: int, *, lang: Lang, fonts: Sequence[Path]
) -> Iterator[Wording]:
    """List what a tag may say, best first; English where no font has the characters."""
    font = find_font(caption(detection, lang), fonts)
    if font is None:
        log.warning(
            "No font at hand can write a label in the language asked for; it is drawn in "
            "English. lang=%s label=%s",
            lang,
            caption(detection, lang),
        )
        lang, font = "en", FONT_FILE
    smaller = max(round(size * SMALLER), MIN_TEXT)
    for words in (caption(detection, lang), name(detection, lang), short_caption(detection, lang)):
        yield Wording(number, words, size, font)
        if smaller < size:
            yield Wording(number, words, smaller, font)
    bare = number or "1"
    for bare_size in (size, smaller, SMALLEST_TEXT):
        yield Wording(bare, "", bare_size, font)


def _best_tag(
    wordings: Sequence[Wording],
    detection: Detection,
    photo_wh: tuple[int, int],
    *,
    tags: Sequence[Box],
    boxes: Sequence[Box],
) -> Tag | None:
    best: tuple[float, Wording, Box] | None = None
    for wording in wordings:
        if not _fits(wording, photo_wh, num_tags=len(boxes) + 1):
            continue
        for area in _places(detection.box, wording, photo_wh, tags):
            lowest = math.inf if best is None else best[0]
            cost = _cost(area, detection.box, tags=tags, boxes=boxes, lowest=lowest)
            if cost < lowest:
                best = (cost, wording, area)
            if cost == 0:
                break
        if best is not None and best[0] < GOOD_ENOUGH:
            break
    if best is None:
        return None
    _, wording, area = best
    return Tag(wording.number, wording.words, wording.size, wording.font, detection, area)


def _cost(
    area: Box, own: Box, *, tags: Sequence[Box], boxes: Sequence[Box], lowest: float
) -> float:
    """Weigh a place, 0 for the best: lying on tags, hiding findings, hiding its own, standing off.

    One alone makes a place bad (GOOD_ENOUGH): touching a tag, hiding a fifth of another finding or
    all of its own, standing two and a half of its heights away. What cannot come below `lowest` any
    more is not weighed to the end, as with most places.
    """
    width, height = area.x2 - area.x1, area.y2 - area.y1
    across = max(area.x1 - own.x2, own.x1 - area.x2, 0)
    down = max(area.y1 - own.y2, own.y1 - area.y2, 0)
    away = math.hypot(across, down) / height
    beside = max(min(area.x2, own.x2) - max(area.x1, own.x1), 0)
    aslant = 1 - beside / min(width, own.x2 - own.x1)
    hides_own = area.overlap(own) / own.area
    standing = hides_own + 0.4 * away + 0.3 * aslant
    if standing > lowest:
        return standing
    on_tags = sum(area.overlap(tag) for tag in tags) / (width * height)
    if 100 * on_tags > lowest:
        return math.inf
    hidden = max((area.overlap(box) / box.area for box in boxes), default=0.0)
    return 100 * on_tags + 5 * hidden + hides_own + 0.4 * away + 0.3 * aslant


def _fits(wording: Wording, photo_wh: tuple[int, int], *, num_tags: int) -> bool:
    width, height = photo_wh
    share = wording.width * wording.height / (width * height)
    is_inside = wording.width <= width and wording.height <= height
    return is_inside and (not wording.words or share * num_tags <= MAX_PICTURE_SHARE)


def _places(
    box: Box, wording: Wording, photo_wh: tuple[int, int], tags: Sequence[Box]
) -> Iterator[Box]:
    """List areas for a tag: around and inside its box, then over the picture; all inside it."""
    width, height = wording.width, wording.height
    right, bottom = photo_wh[0] - width, photo_wh[1] - height
    centre = (box.x1 + box.x2 - width) // 2
    next_to_tags = [x for tag in tags for x in (tag.x2, tag.x1 - width)]
    beside = product(
        # Inside, the foot first: a tag must not hide the head it speaks of.
        (
            box.y1 - height,
            box.y2,
            box.y1 - 2 * height,
            box.y2 + height,
            box.y2 - height,
            box.y1,
        ),
        (box.x1, box.x2 - width, centre, box.x2, box.x1 - width, *next_to_tags),
    )
    steps = range(GRID)
    anywhere = product(
        [bottom * step // (GRID - 1) for step in steps],
        [right * step // (GRID - 1) for step in steps],
    )
    for y, x in (*beside, *anywhere):
        left, top = min(max(x, 0), right), min(max(y, 0), bottom)
        yield Box(left, top, left + width, top + height)
