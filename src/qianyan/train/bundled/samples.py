"""From labelled pictures to training batches: choosing, joining, and the padded labels.

Batch number `step` is a function of the seed and the step alone, so a training that is resumed
sees what it would have seen; once they are mined, also of what a detector got wrong in them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qianyan.errors import ConfigError
from qianyan.labels.photos import Corners, LabelledBox, LabelledPhoto
from qianyan.models.detector import KINDS, Kind, Proposal, normalise
from qianyan.train.bundled.augment import (
    MIN_PIXELS,
    Pixels,
    Sample,
    box_size,
    crop,
    cut_out,
    paste_fire,
    paste_head,
    recolour,
    shift_box,
    stretch,
)
from qianyan.train.bundled.detector_loss import Targets
from qianyan.train.bundled.scene_store import StoredScenes, read_chunk, whole_chunks

Scores = NDArray[np.float64]
CROP = 0.85
MOST_HARD = 20.0


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How often a photo is changed before it is shown, and how much oftener hard ones are.

    `paste_fire` is the chance of a flame in a photo without one, `paste_head` of a bare head on one
    that wears a hard hat, `mosaic` of four photos in one, `far` of a photo with people at half its
    size or less, where heads are small. `hard` is how many times oftener a photo or drawn scene is
    shown in which the detector is sure of something that is not there; 0 leaves both unmined.
    """

    paste_fire: float = 0.15
    paste_head: float = 0.18
    mosaic: float = 0.2
    far: float = 0.0
    hard: float = 0.0

    def __post_init__(self) -> None:
        for name in ("paste_fire", "paste_head", "mosaic", "far"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a chance, 0 to 1.")
        if not 0 <= self.hard <= MOST_HARD:
            raise ConfigError(f"hard is {self.hard}; expected 0 to {MOST_HARD}.")


USUAL_MIX = Mix()


class SampleSource:
    """All labelled pictures of a training, photos in memory and drawn scenes on disk."""

    def __init__(
        self,
        photos: list[LabelledPhoto],
        scene_folder: Path,
        *,
        drawn_share: float,
        mix: Mix = USUAL_MIX,
    ) -> None:
        self.mix, self.is_mined = mix, False
        self.photos = [Sample(p.read(), p.boxes, p.labelled) for p in photos]
        self.drawn_share = drawn_share if photos else 1.0
        self.scene_folder = scene_folder
        self.scenes: list[StoredScenes] = []
        self.false_in_scenes: list[Scores] = []  # of the chunks that were mined
        self.scene_chances: Scores | None = None  # chunk after chunk; all are alike until mined
        self.scene_ends = np.zeros(0, dtype=np.int64)
        self.refresh_scenes()
        self.weights = np.array([_weight(sample) for sample in self.photos])
        self.chances = self.weights / self.weights.sum() if photos else self.weights
        self.bank: dict[Kind, list[Pixels]] = {"fire": [], "head": []}
        for sample in self.photos:
            for box in sample.boxes:
                if box.kind in self.bank and min(box_size(box.box)) >= 18:
                    self.bank[box.kind].append(cut_out(sample.rgb, box.box))
        self.groups: dict[frozenset[Kind], list[int]] = {}
        for index, sample in enumerate(self.photos):
            self.groups.setdefault(sample.labelled, []).append(index)

    def refresh_scenes(self) -> None:
        """Take in chunks that were drawn since the last look."""
        chunks = whole_chunks(self.scene_folder)
        for chunk in chunks[len(self.scenes) :]:
            self.scenes.append(read_chunk(self.scene_folder, chunk))
        if self.false_in_scenes:
            self._weigh_scenes()

    def mine(self, propose: Callable[[Pixels], Iterable[Proposal]]) -> int:
        """Show pictures oftener the surer a detector is of what is not there; count such pictures.

        In photos only kinds can be wrong that somebody looked for and did not find; in drawn scenes
        any place can, because all of it is known. From here on, batches depend on what was proposed
        as well; scenes that are drawn later are shown as often as those without a mistake.
        """
        self.false_in_scenes = [
            np.array(
                [
                    _misplaced_score(boxes, propose(np.asarray(rgb)))
                    for rgb, boxes in zip(chunk.pictures, chunk.boxes, strict=True)
                ]
            )
            for chunk in self.scenes
        ]
        self._weigh_scenes()
        num_scenes = sum(int((scores > 0).sum()) for scores in self.false_in_scenes)
        false = np.array([_false_score(sample, propose(sample.rgb)) for sample in self.photos])
        weights = self.weights * (1 + self.mix.hard * false)
        self.chances = weights / weights.sum() if self.photos else weights
        self.is_mined = True
        return int((false > 0).sum()) + num_scenes

    def _weigh_scenes(self) -> None:
        sizes = [len(scenes.boxes) for scenes in self.scenes]
        weights = np.ones(sum(sizes))
        false = np.concatenate([np.zeros(0), *self.false_in_scenes])
        weights[: len(false)] += self.mix.hard * false
        self.scene_ends = np.cumsum(sizes)  # first: a thread may be drawing
        self.scene_chances = weights / weights.sum() if sizes else None

    def batch(
        self, rng: np.random.Generator, count: int, size: int, *, plain: bool = False
    ) -> tuple[Tensor, Targets]:
        """Make `count` augmented pictures (count, 3, size, size) and their targets.

        `plain` leaves out joined and pasted pictures: the last part of a training should see
        pictures as they are met.
        """
        samples = [self._draw(rng, size, is_plain=plain) for _ in range(count)]
        pictures = normalise(torch.from_numpy(np.stack([s.rgb for s in samples])))
        return recolour(rng, pictures), make_targets(samples)

    def _draw(self, rng: np.random.Generator, size: int, *, is_plain: bool) -> Sample:
        if rng.random() < self.drawn_share:
            sample = self._draw_scene(rng)
        else:
            sample = self._draw_photo(rng)
            if not is_plain and rng.random() < self.mix.mosaic:
                return self._join(rng, sample, size)
            if not is_plain:
                sample = self._paste(rng, sample)
                is_far = self.mix.far > 0 and _has_people(sample) and rng.random() < self.mix.far
                if is_far:
                    return crop(rng, sample, size, chance=1.0, is_far=True)
        return crop(rng, sample, size, chance=CROP * (0.7 if is_plain else 1.0))

    def _draw_scene(self, rng: np.random.Generator) -> Sample:
        if self.scene_chances is not None:
            place = int(rng.choice(len(self.scene_chances), p=self.scene_chances))
            chunk = int(np.searchsorted(self.scene_ends, place, side="right"))
            index = place - int(self.scene_ends[chunk]) + len(self.scenes[chunk].boxes)
        else:
            chunk = int(rng.integers(len(self.scenes)))
            index = int(rng.integers(len(self.scenes[chunk].boxes)))
        scenes = self.scenes[chunk]
        return Sample(np.asarray(scenes.pictures[index]), scenes.boxes[index], frozenset(KINDS))

    def _draw_photo(self, rng: np.random.Generator) -> Sample:
        return self.photos[int(rng.choice(len(self.photos), p=self.chances))]

    def _join(self, rng: np.random.Generator, first: Sample, size: int) -> Sample:
        """Put four photos that were labelled for the same kinds into one picture."""
        group = self.groups[first.labelled]
        others = [self.photos[group[int(rng.integers(len(group)))]] for _ in range(3)]
        x, y = (int(v) for v in rng.uniform(0.3, 0.7, 2) * size)
        corners = ((0, 0, x, y), (x, 0, size, y), (0, y, x, size), (x, y, size, size))
        canvas = np.empty((size, size, 3), dtype=np.uint8)
        boxes: list[LabelledBox] = []
        doubtful: frozenset[Kind] = frozenset()
        for sample, (x1, y1, x2, y2) in zip([first, *others], corners, strict=True):
            part = crop(rng, sample, max(x2 - x1, y2 - y1), chance=0.5)
            stretched = stretch(part, x2 - x1, y2 - y1)
            canvas[y1:y2, x1:x2] = stretched.rgb
            boxes += [
                replace(b, box=shift_box(b.box, x1, y1))
                for b in stretched.boxes
                if min(box_size(b.box)) >= MIN_PIXELS
            ]
            doubtful |= part.doubtful
        return Sample(canvas, tuple(boxes), first.labelled, doubtful)

    def _paste(self, rng: np.random.Generator, sample: Sample) -> Sample:
        """By chance add a flame to a photo without one, or bare a head that wore a helmet."""
        has_fire = any(box.kind == "fire" for box in sample.boxes)
        if (
            self.bank["fire"]
            and "fire" in sample.labelled
            and not has_fire
            and rng.random() < self.mix.paste_fire
        ):
            return paste_fire(
                rng, sample, self.bank["fire"][int(rng.integers(len(self.bank["fire"])))]
            )
        if self.bank["head"] and rng.random() < self.mix.paste_head:
            return paste_head(rng, sample, self.bank["head"])
        return sample


def _has_people(sample: Sample) -> bool:
    return any(box.kind in ("person", "helmet", "head") for box in sample.boxes)


def _false_score(sample: Sample, proposals: Iterable[Proposal]) -> float:
    """Give the best score of a kind that was looked for in a picture and is not in it."""
    absent = sample.labelled - {box.kind for box in sample.boxes}
    return max((one.score for one in proposals if one.kind in absent), default=0.0)


def _misplaced_score(boxes: Iterable[LabelledBox], proposals: Iterable[Proposal]) -> float:
    """Give the best score of what lies where nothing of its kind is."""
    return max(
        (
            one.score
            for one in proposals
            if not any(box.kind == one.kind and _touch(box.box, one.box) for box in boxes)
        ),
        default=0.0,
    )


def _touch(one: Corners, other: Corners) -> bool:
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(
        one[3], other[3]
    )


def _weight(sample: Sample) -> float:
    """Show rare things more often: bare heads above all, then smoke."""
    kinds = {box.kind for box in sample.boxes}
    return 1.0 + 3.0 * ("head" in kinds) + 0.4 * ("smoke" in kinds) + 0.2 * (not kinds)


def make_targets(samples: list[Sample]) -> Targets:
    """Pad the labels of a batch."""
    most = max(1, *(len(s.boxes) for s in samples))
    boxes = torch.zeros(len(samples), most, 4)
    kinds = torch.full((len(samples), most), -1, dtype=torch.long)
    labelled, scene = torch.zeros(len(samples), len(KINDS)), torch.zeros(len(samples), len(KINDS))
    known = torch.zeros(len(samples), len(KINDS))
    for row, sample in enumerate(samples):
        for column, each in enumerate(sample.boxes):
            boxes[row, column] = torch.tensor(each.box)
            kinds[row, column] = KINDS.index(each.kind)
            scene[row, KINDS.index(each.kind)] = 1
        for index, kind in enumerate(KINDS):
            labelled[row, index] = float(kind in sample.labelled)
            is_certain = scene[row, index] > 0 or kind not in sample.doubtful
            known[row, index] = float(kind in sample.labelled and is_certain)
    return Targets(boxes, kinds, labelled, scene, known)
