"""Labelled crops for the judge: what a detector would propose, and what it should not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from qianyan.inputs.crops import CROP_MARGIN, crop_region, upper_body
from qianyan.models.detector import KINDS, Kind
from qianyan.train.bundled.labelled import (
    Box,
    Floats,
    LabelledPicture,
    Region,
    area,
    boxes_of,
    cells_of,
    contents_of,
    hazard_in,
    headgear_of,
    overlap,
    touches,
)
from qianyan.train.bundled.sentences import Contents

Asked = Literal["hazard", "head", "severity"]
Bytes = npt.NDArray[np.uint8]

CROP_SIDE = 112  # 8 x 8 patches, 4 x 4 tokens: one window of the vision tower

# Severity of a crop: the share that the hazard covers, below which it is minor or moderate.
SEVERITY_SHARES = (0.10, 0.30)
_READABLE_PX = 14  # crops are blurred down to this; below _UNREADABLE_PX nobody could tell
_UNREADABLE_PX = 5
_JITTERED = 0.5  # of the crops: colour tells a flame, so half of them keep theirs
_DECOY_SHARE = 0.5  # of the crops without the subject, where false proposals are known


@dataclass(frozen=True)
class Crop:
    """A square picture, the question asked about it and what its answer means.

    `cells` is (kinds, rows, columns): the share of each token's square that a kind covers, NaN
    where nobody looked for the kind.
    """

    pixels: Bytes
    asked: Asked
    meaning: str
    cells: Floats


class CropBook:
    """Draws labelled crops at random from labelled pictures.

    With `spoil` some crops are blurred to the size that far subjects have in photos.
    """

    def __init__(
        self,
        pictures: Sequence[LabelledPicture],
        rng: np.random.Generator,
        *,
        spoil: bool = True,
    ) -> None:
        self.pictures = pictures
        self.rng = rng
        self.spoil = spoil
        self.places: dict[Kind, list[tuple[int, Box]]] = {kind: [] for kind in KINDS}
        for index, picture in enumerate(pictures):
            for labelled in picture.boxes:
                self.places[labelled.kind].append((index, labelled.box))
        self.free_of_hazard = _having(pictures, "fire", "smoke")
        self.free_of_people = [
            index
            for index in _having(pictures, "helmet")
            if "person" in pictures[index].looked_for or not pictures[index].boxes
        ]
        self.clear = [i for i in self.free_of_hazard if not boxes_of(pictures[i], "fire", "smoke")]
        self.described = [i for i, each in enumerate(pictures) if contents_of(each) is not None]
        self.clear_described = sorted({*self.described} & {*self.clear})
        self.hazard_decoys = self._decoys(self.free_of_hazard)
        self.people_decoys = self._decoys(self.free_of_people)

    def hazard(self, meaning: str) -> Crop:
        """Draw a crop whose answer to "hazard" is `meaning`, or the nearest that was found."""
        if meaning == "uncertain":
            return self._unreadable("hazard")
        if meaning == "look_alike":
            picture, region = self._background(hazard=True)
            return self._crop(picture, region, "hazard", "look_alike")
        places = self.places["smoke" if meaning == "smoke" else "fire"]
        if meaning == "both" and self.rng.random() < 0.5:
            places = self.places["smoke"]
        picture, region, found = self.pictures[0], (0, 0, 1, 1), meaning
        for _ in range(8):
            index, box = places[self.rng.integers(len(places))]
            picture = self.pictures[index]
            region = self._around(box, picture.image.size, spread=0.18)
            found = hazard_in(picture, region)
            if found == meaning:
                break
        if found == "nothing":  # a corner of a large box: keep the kind that was aimed at
            found = meaning
        return self._crop(picture, region, "hazard", found)

    def head(self, meaning: str) -> Crop:
        """Draw a crop whose answer to "head" is `meaning`."""
        if meaning == "uncertain" and (self.rng.random() < 0.7 or not self.places["person"]):
            return self._unreadable("head")
        if meaning == "not_a_person":
            picture, region = self._background(hazard=False)
            return self._crop(picture, region, "head", "not_a_person")
        if self.places["person"] and (meaning == "uncertain" or self.rng.random() < 0.3):
            for _ in range(12):
                index, box = self.places["person"][self.rng.integers(len(self.places["person"]))]
                picture = self.pictures[index]
                worn = headgear_of(picture, box)
                if worn == meaning:
                    region = self._around(upper_body(box), picture.image.size, spread=0.2)
                    return self._crop(picture, region, "head", worn)
        kind: Kind = "head" if meaning == "no_helmet" else "helmet"
        index, box = self.places[kind][self.rng.integers(len(self.places[kind]))]
        picture = self.pictures[index]
        region = self._around(box, picture.image.size, spread=0.35)
        return self._crop(picture, region, "head", "no_helmet" if kind == "head" else "helmet")

    def severity(self) -> Crop:
        """Draw a crop around a hazard at any distance; the share it covers is the answer."""
        if self.rng.random() < 0.15:
            return self._unreadable("severity")
        kind: Kind = "fire" if self.rng.random() < 0.6 else "smoke"
        index, box = self.places[kind][self.rng.integers(len(self.places[kind]))]
        picture = self.pictures[index]
        margin = float(np.exp(self.rng.uniform(math.log(0.8), math.log(5.0))))
        region = crop_region(box, picture.image.size, margin=margin)
        share = max(
            overlap(box, region) / area(region) for box in boxes_of(picture, "fire", "smoke")
        )
        meaning = ("minor", "moderate", "severe")[sum(share >= limit for limit in SEVERITY_SHARES)]
        return self._crop(picture, region, "severity", meaning)

    def whole(self, wh: tuple[int, int]) -> tuple[Bytes, Contents]:
        """Draw a whole picture, squeezed to `wh` pixels, with what its labels say."""
        pool = self.clear_described if self.rng.random() < 0.25 else self.described
        index = (pool or self.described)[int(self.rng.integers(len(pool or self.described)))]
        picture, contents = self.pictures[index], contents_of(self.pictures[index])
        if contents is None:
            raise ValueError(f"picture {index} is among the described ones without contents")
        image = picture.image.resize(wh, Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
        return (pixels[:, ::-1] if self.rng.random() < 0.5 else pixels), contents

    def _decoys(self, allowed: Sequence[int]) -> list[tuple[int, Box]]:
        return [(index, box) for index in allowed for box in self.pictures[index].decoys]

    def _around(self, box: Box, photo_wh: tuple[int, int], *, spread: float) -> Region:
        """Place a region around a box as an inexact detector would."""
        x1, y1, x2, y2 = box
        width, height = x2 - x1, y2 - y1
        dx, dy = self.rng.uniform(-spread, spread, 2) * 0.6 * (width, height)
        scale = np.exp(self.rng.uniform(-spread, spread, 2) * 1.2)
        cx, cy = (x1 + x2) / 2 + dx, (y1 + y2) / 2 + dy
        half_w, half_h = max(width * scale[0], 2) / 2, max(height * scale[1], 2) / 2
        margin = CROP_MARGIN * float(np.exp(self.rng.uniform(-0.15, 0.15)))
        moved = (cx - half_w, cy - half_h, cx + half_w, cy + half_h)
        return crop_region(moved, photo_wh, margin=margin)

    def _background(self, *, hazard: bool) -> tuple[LabelledPicture, Region]:
        """Find a region without the question's subject, tempting ones preferred."""
        kinds: tuple[Kind, ...] = ("fire", "smoke") if hazard else ("person", "helmet", "head")
        allowed = self.free_of_hazard if hazard else self.free_of_people
        decoys = self.hazard_decoys if hazard else self.people_decoys
        if decoys and self.rng.random() < _DECOY_SHARE:
            index, box = decoys[int(self.rng.integers(len(decoys)))]
            picture = self.pictures[index]
            region = self._around(box, picture.image.size, spread=0.15)
            if not touches(picture, kinds, region):
                return picture, region
        clear = hazard and bool(self.clear) and self.rng.random() < 0.5
        pool = self.clear if clear else allowed
        best: tuple[float, LabelledPicture, Region] | None = None
        tempting = self.rng.random() < 0.5
        for _ in range(60):
            picture = self.pictures[pool[self.rng.integers(len(pool))]]
            region = self._anywhere(picture, hazard=hazard)
            if touches(picture, kinds, region):
                continue
            score = _temptation(picture.image, region, hazard=hazard) if tempting else 0.0
            if best is None or score > best[0]:
                best = (score, picture, region)
            if not tempting or self.rng.random() < 0.25:
                break
        if best is None:
            picture = self.pictures[pool[0]]
            return picture, (0, 0, min(32, picture.image.width), min(32, picture.image.height))
        return best[1], best[2]

    def _anywhere(self, picture: LabelledPicture, *, hazard: bool) -> Region:
        """Place a region of a real box's size anywhere; for hazards often on a person."""
        people = boxes_of(picture, "person", "helmet", "head")
        if hazard and people and self.rng.random() < 0.4:
            box = people[self.rng.integers(len(people))]
            return self._around(box, picture.image.size, spread=0.4)
        width, height = picture.image.size
        side = float(np.exp(self.rng.uniform(math.log(0.06), math.log(0.9 if hazard else 0.5))))
        side *= max(width, height)
        x, y = self.rng.uniform(0, width), self.rng.uniform(0, height)
        return crop_region(
            (x - side / 3, y - side / 3, x + side / 3, y + side / 3), (width, height)
        )

    def _unreadable(self, asked: Asked) -> Crop:
        """Draw a crop and spoil it until nobody could tell what it shows."""
        if asked == "head":
            crop = self.head(("helmet", "no_helmet", "not_a_person")[self.rng.integers(3)])
        else:
            crop = self.hazard(("fire", "smoke", "look_alike")[self.rng.integers(3)])
        image = Image.fromarray(crop.pixels)
        way = self.rng.random()
        if way < 0.5:
            side = int(self.rng.integers(2, _UNREADABLE_PX + 1))
            image = image.resize((side, side)).resize(image.size, Image.Resampling.BICUBIC)
        elif way < 0.75:
            image = image.filter(ImageFilter.GaussianBlur(float(self.rng.uniform(14, 30))))
        else:
            image = image.point([int(v * 0.03) for v in range(256)] * 3)
        return Crop(np.asarray(image), asked, "uncertain", np.full_like(crop.cells, np.nan))

    def _crop(self, picture: LabelledPicture, region: Region, asked: Asked, meaning: str) -> Crop:
        """Cut, squeeze, flip and blur as small photos are."""
        image = picture.image.resize(
            (CROP_SIDE, CROP_SIDE), Image.Resampling.BICUBIC, box=region, reducing_gap=2.0
        )
        if self.spoil and self.rng.random() < 0.15:
            side = int(self.rng.integers(_READABLE_PX, 64))
            way = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)[self.rng.integers(2)]
            image = image.resize((side, side), way).resize(image.size, way)
        pixels, cells = np.asarray(image), cells_of(picture, region)
        if self.rng.random() < 0.5:
            pixels, cells = pixels[:, ::-1], cells[:, :, ::-1]
        return Crop(pixels, asked, meaning, cells)


def colour_jitter(pixels: Bytes, rng: np.random.Generator) -> Bytes:
    """Change light, contrast, colour and noise of half of a batch (batch, height, width, 3)."""
    chosen = np.flatnonzero(rng.random(len(pixels)) < _JITTERED)
    changed: Bytes = pixels.copy()
    if chosen.size:
        changed[chosen] = _jittered(pixels[chosen], rng)
    return changed


def _jittered(pixels: Bytes, rng: np.random.Generator) -> Bytes:
    """Change every picture of a batch in its own way."""
    batch = len(pixels)
    values = pixels.astype(np.float32) / 255
    shape = (batch, 1, 1, 1)
    values = values ** np.exp(rng.normal(0, 0.22, shape)).astype(np.float32)
    grey = values.mean(axis=3, keepdims=True)
    values = grey + (values - grey) * rng.uniform(0.6, 1.4, shape).astype(np.float32)
    middle = values.mean(axis=(1, 2, 3), keepdims=True)
    values = middle + (values - middle) * rng.uniform(0.7, 1.3, shape).astype(np.float32)
    values *= np.exp(rng.normal(0, 0.06, (batch, 1, 1, 3))).astype(np.float32)
    values *= rng.uniform(0.75, 1.25, shape).astype(np.float32)
    strength = np.where(rng.random(shape) < 0.4, rng.uniform(0, 0.05, shape), 0).astype(np.float32)
    values += rng.standard_normal(values.shape, dtype=np.float32) * strength
    for index in np.flatnonzero(rng.random(batch) < 0.25):
        high, wide = rng.integers(12, 48, 2)
        top = rng.integers(0, max(1, values.shape[1] - high))
        left = rng.integers(0, max(1, values.shape[2] - wide))
        values[index, top : top + high, left : left + wide] = rng.random(3)
    changed: Bytes = np.clip(values * 255, 0, 255).astype(np.uint8)
    return changed


def _having(pictures: Sequence[LabelledPicture], *kinds: Kind) -> list[int]:
    """List the pictures in which all these kinds were looked for."""
    return [i for i, picture in enumerate(pictures) if picture.looked_for.issuperset(kinds)]


def _temptation(image: Image.Image, region: Region, *, hazard: bool) -> float:
    """Score how much a region looks like the subject: glowing for hazards, busy for heads."""
    values = np.asarray(image.resize((12, 12), box=region), np.float32)
    if hazard:
        return float(
            (values[..., 0] - values[..., 2]).mean() + 0.5 * values.max(axis=(0, 1)).mean()
        )
    return float(values.std())
