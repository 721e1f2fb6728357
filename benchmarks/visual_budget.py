"""What does looking at fewer pixels cost in recall, and what does a second look bring back?

    python benchmarks/visual_budget.py --photos FOLDER [--every 4] [--sides 128,192] [--mosaic 2]

The bundled pair cannot list, so the budget means the detector's side, for every row: what it sees
of the whole photo. Ways to look, each at each side:

* one look: the detector alone, at its own thresholds;
* judged: the judge then sees every proposal's crop, cut out of the photo at full size;
* two steps: the detector in place of a listing model, in qianyan.inspection.two_steps: what it
  finds small or doubtful in the whole photo, it is shown again, larger, with the same rules by
  which a listing model's parts are chosen. Its token is a square of TOKEN_PX pixels, so that its
  usual side is as many tokens as a large model's usual look (1,264 of 1,280).

With --mosaic 2 four photos at a time are joined into one, twice as large, in which everything is
half as large as the detector learnt it; the usual side doubles with it. Photos as for
bundled_accuracy.py. Writes benchmarks/results/<date>-visual-budget.json,
or -visual-budget-mosaic.json.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from bundled_accuracy import REPOSITORY, commit, machine, photos_of
from numpy.typing import NDArray
from PIL import Image

from qianyan import __version__
from qianyan.inputs.images import Photo, read_image
from qianyan.inspection.cascade import Cascade, choose, propose_only
from qianyan.inspection.detect import Glance, Unread
from qianyan.inspection.evaluation.figures import Figures, score
from qianyan.inspection.evaluation.rates import Rate
from qianyan.inspection.inspector import (
    BOLDER,
    HEAD_HINT,
    HEADS,
    LookSettings,
    find_pair,
    open_look,
)
from qianyan.inspection.records import Hazard, Inspection, Look, Usage
from qianyan.inspection.two_steps import TwoSteps
from qianyan.labels.photos import LabelledBox, LabelledPhoto
from qianyan.models.detector import STRIDES, Detector, Proposal, load_detector

TOKEN_PX = 9
MAX_OBJECTS = 10
CELL_SIDE = 376  # of a mosaic: the photos' median side
COLUMNS = ("fire found", "false", "smoke found", "false", "fire F1", "smoke F1", "person F1",
           "heads found", "heads right", "pixels", "looked again", "ms")  # fmt: skip


Labelled = tuple[LabelledPhoto, Photo]
Corners = tuple[float, float, float, float]


@dataclass
class Eyes:
    """The detector at any side, as something that lists; counts the pixels it is shown."""

    whole: Detector
    usual_side: int
    token_px: int
    pixels: int = 0
    asked: int = 0
    at_side: dict[int, Detector] = field(default_factory=dict)

    def propose(
        self, rgb: NDArray[np.uint8], side: int, shares: dict[str, float]
    ) -> list[Proposal]:
        """Propose in a picture stretched to a side, from these shares of the thresholds up."""
        detector = self.at_side.get(side)
        if detector is None:
            detector = Detector(replace(self.whole.config, image_size=side))
            detector.load_state_dict(self.whole.state_dict())
            self.at_side[side] = detector.eval()
        self.pixels += side**2
        self.asked += 1
        return detector.propose(
            rgb, threshold={k: shares.get(k, 1) * v for k, v in self.limits.items()}
        )

    @property
    def most(self) -> int:
        """How many objects are reported: as many more as a mosaic has photos."""
        return MAX_OBJECTS * (self.usual_side // self.whole.config.image_size) ** 2

    @property
    def limits(self) -> dict[str, float]:
        return self.whole.config.thresholds

    def seen_wh(self, photo_wh: tuple[int, int], visual_tokens: int | None) -> tuple[int, int]:
        """Every picture becomes a square, never enlarged and never larger than usual."""
        side: float = self.usual_side
        if visual_tokens is not None:
            side = min(side, math.sqrt(visual_tokens) * self.token_px, max(photo_wh))
        step = STRIDES[-1]
        return (max(int(side) // step, 2) * step,) * 2

    def count_tokens(self, seen_wh: tuple[int, int]) -> int:
        return seen_wh[0] * seen_wh[1] // self.token_px**2

    def list_all(self, glances: Sequence[Glance]) -> list[Look | Unread]:
        return [self._list(glance) for glance in glances]

    def _list(self, glance: Glance) -> Look:
        seen_wh = self.seen_wh(glance.image.size, glance.visual_tokens)
        proposals = self.propose(
            np.asarray(glance.image), seen_wh[0], dict.fromkeys(HEADS, HEAD_HINT)
        )
        found = choose(proposals, glance.image.size, limit=self.most, alone=self.limits)
        detections = tuple(propose_only(one, glance.image.size) for one in found)
        return Look(detections, usage=Usage(0, 0, 0, self.count_tokens(seen_wh)))


@dataclass(frozen=True)
class Measured:
    """One way to look: how right, and at what cost a picture."""

    evaluation: Figures
    pixels: float
    looked_again: float
    ms: float

    def as_record(self) -> dict[str, Any]:
        return {
            **self.evaluation.as_record(),
            "pixels": round(self.pixels),
            "looked_again": round(self.looked_again, 2),
            "ms": round(self.ms, 1),
        }

    def cells(self) -> list[str]:
        result = self.evaluation
        fire, smoke = result.images[Hazard.FIRE], result.images[Hazard.SMOKE]
        boxes = [result.boxes[hazard].f1.value for hazard in Hazard]
        shares: list[Rate | float | None] = [
            fire.recall, fire.false_alarms, smoke.recall, smoke.false_alarms, *boxes,
            result.heads.found, result.heads.right,
        ]  # fmt: skip
        return [
            *map(_share, shares),
            f"{self.pixels:.0f}",
            f"{self.looked_again:.2f}",
            f"{self.ms:.1f}",
        ]


def _share(value: Rate | float | None) -> str:
    number = value.value if isinstance(value, Rate) else value
    return "-" if number is None else f"{number:.3f}"


def measure(
    photos: Sequence[tuple[LabelledPhoto, Photo]], look: Callable[[Photo], Look], eyes: Eyes,
    crop_pixels: int = 0,
) -> Measured:  # fmt: skip
    """Look at every photo; `crop_pixels` is what a judge sees of one crop."""
    eyes.pixels = eyes.asked = 0
    pairs, seconds, crops = [], 0.0, 0
    for labels, photo in photos:
        started = time.perf_counter()
        found = look(photo)
        seconds += time.perf_counter() - started
        crops += found.usage.completion_tokens  # a judge answers each crop with one letter
        verdict = Inspection(source="", detections=found.detections, checked=tuple(Hazard))
        pairs.append((labels, verdict))
    number = max(len(pairs), 1)
    again = crops if crop_pixels else eyes.asked - len(pairs)
    pixels = eyes.pixels + crops * crop_pixels
    return Measured(score(pairs).figures, pixels / number, again / number, 1000 * seconds / number)


def ways(eyes: Eyes, judged: Cascade, side: int) -> Iterator[tuple[str, Callable[[Photo], Look]]]:
    """Name the three ways to look at a side."""
    heads = dict.fromkeys(HEADS, HEAD_HINT)

    def plain(rgb: NDArray[np.uint8]) -> list[Proposal]:
        return eyes.propose(rgb, side, heads)

    def bold(rgb: NDArray[np.uint8]) -> list[Proposal]:
        return eyes.propose(rgb, side, {**heads, **BOLDER})

    yield "one look", replace(judged, judge=None, propose=plain, max_objects=eyes.most).look
    yield "judged", replace(judged, propose=bold, max_objects=eyes.most).look
    if side < eyes.usual_side:
        tokens = eyes.count_tokens((side, side)) + 1
        yield (
            "two steps",
            TwoSteps(seer=eyes, lang="en", max_objects=eyes.most, visual_tokens=tokens).look,
        )


def join(photos: Sequence[Labelled], across: int) -> Labelled:
    """Lay photos out in a square, scaled to a common size, with their labels."""
    canvas = Image.new("RGB", (across * CELL_SIDE, across * CELL_SIDE))
    boxes: list[LabelledBox] = []
    for place, (labels, photo) in enumerate(photos):
        left, top = place % across * CELL_SIDE, place // across * CELL_SIDE
        canvas.paste(
            photo.rgb.resize((CELL_SIDE, CELL_SIDE), Image.Resampling.BICUBIC), (left, top)
        )
        for one in labels.boxes:
            head_box = one.head_box and _moved(one.head_box, photo, (left, top))
            box = _moved(one.box, photo, (left, top))
            boxes.append(replace(one, box=box, head_box=head_box))
    known = frozenset.intersection(*(labels.labelled for labels, _ in photos))
    return LabelledPhoto(Path("mosaic"), *canvas.size, known, tuple(boxes)), Photo(canvas)


def _moved(box: Corners, photo: Photo, corner: tuple[int, int]) -> Corners:
    """Move a box of a photo to its cell."""
    x, y = CELL_SIDE / photo.width, CELL_SIDE / photo.height
    left, top = corner
    return left + box[0] * x, top + box[1] * y, left + box[2] * x, top + box[3] * y


def parse() -> argparse.Namespace:
    shared = os.environ.get("QIANYAN_SHARED")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(shared) / "data" / "dev" if shared else None
    parser.add_argument("--photos", type=Path, default=default, required=default is None)
    parser.add_argument("--every", type=int, default=1, help="take every n-th photo only")
    parser.add_argument("--mosaic", type=int, default=1, help="photos across one picture")
    parser.add_argument("--sides", default="128,160,192,224,320")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results")
    return parser.parse_args()


def main() -> int:
    options = parse()
    pair = find_pair(options.model)
    judged = open_look(LookSettings(model=options.model, lang="en", look="cascade")).cascade
    if pair is None or judged is None or judged.judge is None:
        raise SystemExit(f"{options.model} is no pair of detector and judge")
    crop_wh = judged.judge.seen_wh((112, 112))
    detector = load_detector(pair / "detector")
    across = options.mosaic
    eyes = Eyes(detector, across * detector.config.image_size, across * TOKEN_PX)
    photos = [
        (labels, read_image(path.read_bytes()))
        for labels, path in photos_of(options.photos)[:: options.every]
    ]
    if across > 1:
        number = across**2
        photos.sort(
            key=lambda pair: sorted(pair[0].labelled)
        )  # so that all of a group are labelled alike
        groups = [photos[n : n + number] for n in range(0, len(photos) - number + 1, number)]
        photos = [join(group, across) for group in groups]
    print(f"{len(photos)} pictures\n{'side':>4} {'way':10}" + "".join(f"{c:>13}" for c in COLUMNS))
    record: dict[str, Any] = {}
    for side in map(int, options.sides.split(",")):
        for way, look in ways(eyes, judged, side):
            pixels = crop_wh[0] * crop_wh[1] if way == "judged" else 0
            measured = measure(photos, look, eyes, pixels)
            record[f"{side} {way}"] = measured.as_record()
            print(f"{side:>4} {way:10}" + "".join(f"{c:>13}" for c in measured.cells()), flush=True)
    whole = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "version": __version__,
        "machine": machine(),
        "pictures": len(photos),
        "mosaic": across,
        "token_px": eyes.token_px,
        "results": record,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = "visual-budget-mosaic" if across > 1 else "visual-budget"
    file = options.out / f"{datetime.now(UTC):%Y-%m-%d}-{name}.json"
    file.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    print(f"\nwritten to {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
