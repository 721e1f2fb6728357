"""Which parts of a photo deserve a second look, after a first one at the whole of it, shown small.

Parts are squares of the photo in its own pixels, most important first:

* around what was found too small to be told apart, or what the model could not tell;
* tiles, where the photo was shown so small that heads vanished, those with people in them first.

A part that would be shown no larger than before is left out, and so is everything beyond the
limits. What they are is a house rule; what it costs in recall: `benchmarks/visual_budget.py`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from qianyan.inputs.crops import CROP_MARGIN, crop_region, upper_body
from qianyan.inspection.records import Box, Detection, Hazard, SubLabel

MAX_PARTS = 12
PART_TOKENS = 256
"""Most visual tokens of one part: a square of 448 pixels where a token is 28 pixels wide."""
SECOND_LOOK_TOKENS = 1024
"""Most visual tokens of all parts of a photo together."""
# Sides in tokens. A part is at least 12 tokens wide, 336 pixels for most models: in pictures below
# 320 x 320 they draw biased boxes (QwenLM/Qwen3-VL#721). Of what is less than two tokens wide, such
# as an upper body whose head has one, nothing can be told.
MIN_PART_SIDE, SMALL_SIDE = 12, 2
SURE_SCORE = 0.6
GAIN = 1.25  # how much larger a part has to be shown than before
# A head of 40 pixels, the least that can be told apart, vanishes when it has half a token's side.
HEAD_PX, VANISHED_SIDE = 40, 0.5
TILE_OVERLAP = 0.2

SeenWH = Callable[[tuple[int, int], int | None], tuple[int, int]]


@dataclass(frozen=True)
class Part:
    """A region of a photo; `targets` are the findings it was chosen for, by index."""

    name: str
    region: Box
    targets: tuple[int, ...] = ()


@dataclass(frozen=True)
class Showing:
    """How a model shows pictures, and how the whole photo was shown first.

    `room` is the number of visual tokens that the second look may take.
    """

    photo_wh: tuple[int, int]
    shown_wh: tuple[int, int]
    seen_wh: SeenWH
    count_tokens: Callable[[tuple[int, int]], int]
    room: int = SECOND_LOOK_TOKENS

    @property
    def shrink(self) -> float:
        """How many times smaller than in the photo things were shown."""
        return _shrink(self.photo_wh, self.shown_wh)

    @property
    def token_px(self) -> float:
        """Measure the side of a token in pixels of the picture shown."""
        width, height = self.shown_wh
        return math.sqrt(width * height / self.count_tokens(self.shown_wh))

    def part_shrink(self, region: Box) -> float:
        """How many times smaller things are shown in a part."""
        part_wh = region.width, region.height
        return _shrink(part_wh, self.seen_wh(part_wh, PART_TOKENS))

    def tokens(self, region: Box) -> int:
        """Count the visual tokens of a part."""
        return self.count_tokens(self.seen_wh((region.width, region.height), PART_TOKENS))


@dataclass
class _Choice:
    """The parts chosen so far, the tokens they leave, and how many did not fit."""

    showing: Showing
    parts: list[Part] = field(default_factory=list)
    spent: int = 0
    num_left_out: int = 0

    def add(self, part: Part) -> None:
        """Take a part if there is room for it."""
        tokens = self.showing.tokens(part.region)
        if len(self.parts) == MAX_PARTS or self.spent + tokens > self.showing.room:
            self.num_left_out += 1
            return
        self.parts.append(part)
        self.spent += tokens


def choose_parts(detections: Sequence[Detection], showing: Showing) -> tuple[tuple[Part, ...], int]:
    """Choose the parts to look at again, and count those for which there was no room."""
    choice = _Choice(showing)
    for index in sorted(_doubtful(detections, showing), key=_importance(detections)):
        box = detections[index].box
        holder = next((part for part in choice.parts if _holds(part.region, box)), None)
        if holder is not None:
            place = choice.parts.index(holder)
            choice.parts[place] = Part(holder.name, holder.region, (*holder.targets, index))
            continue
        region = _region(detections[index], showing)
        if region is not None:
            choice.add(Part(f"around {index + 1}", region, (index,)))
    for tile in _tiles(detections, showing):
        choice.add(tile)
    return tuple(choice.parts), choice.num_left_out


def _shrink(photo_wh: tuple[int, int], shown_wh: tuple[int, int]) -> float:
    return math.sqrt(photo_wh[0] * photo_wh[1] / (shown_wh[0] * shown_wh[1]))


def _doubtful(detections: Sequence[Detection], showing: Showing) -> Iterable[int]:
    """List what was shown too small, or is uncertain, or said with little certainty."""
    small = SMALL_SIDE * showing.token_px * showing.shrink
    for index, found in enumerate(detections):
        is_unsure = found.score is not None and found.score < SURE_SCORE
        if found.sub_label is SubLabel.UNCERTAIN or is_unsure or _extent(found) < small:
            yield index


def _extent(found: Detection) -> float:
    """Measure what has to be seen of a finding: its shorter side; of a person the upper body."""
    if found.label is not Hazard.PERSON:
        return min(found.box.width, found.box.height)
    left, _, right, _ = upper_body(_corners(found.box))
    return right - left


def _importance(detections: Sequence[Detection]) -> Callable[[int], tuple[int, float]]:
    """Fire before smoke before persons, small before large."""

    def key(index: int) -> tuple[int, float]:
        return list(Hazard).index(detections[index].label), _extent(detections[index])

    return key


def _region(found: Detection, showing: Showing) -> Box | None:
    """Place a square around a finding, or around the upper body of a tall person."""
    min_side = round(MIN_PART_SIDE * showing.token_px)
    around = [_corners(found.box)]
    if found.label is Hazard.PERSON:
        around.append(upper_body(_corners(found.box)))
    for corners in around:
        region = Box(*crop_region(corners, showing.photo_wh, margin=CROP_MARGIN, min_side=min_side))
        if showing.part_shrink(region) * GAIN <= showing.shrink:
            return region
    return None


def _tiles(detections: Sequence[Detection], showing: Showing) -> list[Part]:
    """Cut the photo into tiles in which heads can be seen that were not seen in the whole of it."""
    visible = HEAD_PX / (VANISHED_SIDE * showing.token_px)
    if showing.shrink < visible:
        return []
    width, height = showing.photo_wh
    side = int(visible * math.sqrt(PART_TOKENS) * showing.token_px)
    tiles = [
        Box(left, top, right, bottom)
        for top, bottom in _stretches(height, side)
        for left, right in _stretches(width, side)
    ]
    named = [Part(f"tile {n} of {len(tiles)}", tile) for n, tile in enumerate(tiles, start=1)]
    people = [one.box for one in detections if one.label is Hazard.PERSON]
    return sorted(named, key=lambda part: not any(part.region.overlap(box) for box in people))


def _stretches(length: int, side: int) -> list[tuple[int, int]]:
    """Cover a length with stretches of `side` that overlap, evenly spread."""
    if side >= length:
        return [(0, length)]
    count = math.ceil((length - side) / (side * (1 - TILE_OVERLAP))) + 1
    starts = [round(index * (length - side) / (count - 1)) for index in range(count)]
    return [(start, start + side) for start in starts]


def _holds(region: Box, box: Box) -> bool:
    return region.overlap(box) == box.area


def _corners(box: Box) -> tuple[float, float, float, float]:
    return float(box.x1), float(box.y1), float(box.x2), float(box.y2)
