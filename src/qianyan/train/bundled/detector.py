"""Training of the small detector on labelled photos and drawn scenes; can be interrupted.

A run folder holds the drawn scenes, `last.pt` (weights, their moving average, optimizer, counts)
and what was exported. The learning rate falls as the wanted minutes pass, so a run uses the
time it was given; every batch depends on seed and step alone.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qianyan.errors import CheckpointError
from qianyan.labels.photos import LabelledPhoto
from qianyan.models.detector import (
    Detector,
    DetectorConfig,
    Proposal,
    load_detector,
    save_detector,
)
from qianyan.train.bundled.calibration import fit_calibration
from qianyan.train.bundled.detector_loss import Targets, detector_loss
from qianyan.train.bundled.detector_scores import (
    CALIBRATED_FROM,
    choose_thresholds,
    judge_photos,
    judge_scenes,
    score_photos,
    score_scenes,
)
from qianyan.train.bundled.photos import read_photos, split_held_out
from qianyan.train.bundled.samples import USUAL_MIX, Mix, SampleSource
from qianyan.train.bundled.scene_store import CHUNK, draw_chunk
from qianyan.train.checkpoint import read_run_state, write_run_state

log = logging.getLogger(__name__)
MINED_SCORE = 0.15  # what is proposed below it is not worth showing a photo again for


@dataclass(frozen=True, kw_only=True)
class DetectorRecipe:
    """What a training does; `steps`, when given, ends it instead of the clock."""

    minutes: float
    seed: int = 0
    steps: int | None = None
    batch: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.03
    warm_up_steps: int = 150
    drawn_share: float = 0.33
    drawn_scenes: int = 5000
    mix: Mix = USUAL_MIX
    mined_from: float = 0.4  # share of the run after which hard ones are shown oftener
    plain_from: float = 0.85  # share of the run after which pictures are no longer joined or pasted
    save_every_s: float = 240.0
    report_every_s: float = 600.0
    sizes: tuple[int, ...] = ()  # of the squares, one by chance for each batch; none: the config's
    config: DetectorConfig = field(default_factory=DetectorConfig)

    def __post_init__(self) -> None:
        for size in self.sizes:
            replace(self.config, image_size=size)  # says what is wrong with it


@dataclass
class Progress:
    """How far a run has come; kept in its checkpoint."""

    step: int = 0
    elapsed_s: float = 0.0

    def share(self, recipe: DetectorRecipe) -> float:
        """Give the share of the run that is done, 0..1."""
        if recipe.steps is not None:
            return min(1.0, self.step / recipe.steps)
        return min(1.0, self.elapsed_s / (60 * recipe.minutes))


class DetectorTraining:
    """A training under way: the model, its moving average, and the optimizer."""

    def __init__(self, recipe: DetectorRecipe, source: SampleSource, run_dir: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.source, self.run_dir = recipe, source, run_dir
        self.detector = Detector(recipe.config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = deepcopy(self.detector).eval().requires_grad_(requires_grad=False)
        decayed = [p for p in self.detector.parameters() if p.ndim > 1]
        others = [p for p in self.detector.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed},
            {"params": others, "weight_decay": 0.0},
        ]
        rate, decay = recipe.learning_rate, recipe.weight_decay
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=decay)
        self.progress = Progress()

    def resume(self) -> None:
        """Continue from the run folder's last checkpoint.

        Raises:
            CheckpointError: there is none, or it is of another shape.
        """
        state = read_run_state(self.run_dir)
        self.detector.load_state_dict(state["detector"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def start_from(self, other: Detector) -> None:
        """Begin with the weights of another detector of the same widths; its size may differ.

        Raises CheckpointError when the widths are not the same.
        """
        try:
            self.detector.load_state_dict(other.state_dict())
        except RuntimeError as error:
            raise CheckpointError(
                f"The detector to start from is of other widths: {error}"
            ) from error
        self.average.load_state_dict(other.state_dict())

    def mine(self) -> None:
        """Show oftener the photos and scenes in which the average is sure of what is not there."""
        hard = self.source.mine(partial(self.average.propose, threshold=MINED_SCORE))
        log.info("%s mined=%d", self._where(), hard)

    def save(self) -> None:
        """Write the checkpoint; a run that is killed meanwhile keeps the one before."""
        state = {
            "detector": self.detector.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
        }
        write_run_state(self.run_dir, state)

    def step(self, pictures: Tensor, targets: Targets) -> float:
        """Learn from one batch; returns the loss."""
        self._set_rate()
        device_type = pictures.device.type
        if pictures.shape[-1] != self.detector.config.image_size:
            self.detector.look_at(pictures.shape[-1])
        with torch.autocast(device_type, torch.bfloat16):
            raw = self.detector(pictures)
        loss = detector_loss(raw, targets, self.detector.centres)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.detector.parameters(), 8.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        self._follow()
        return loss.item()

    def _set_rate(self) -> None:
        recipe, done = self.recipe, self.progress.share(self.recipe)
        warm = min(1.0, (self.progress.step + 1) / recipe.warm_up_steps)
        rate = recipe.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the current weights."""
        keep = min(0.9985, (1 + self.progress.step) / (20 + self.progress.step))
        current = self.detector.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[name], 1 - keep)
            else:
                value.copy_(current[name])

    def batches(self) -> Iterator[tuple[Tensor, Targets]]:
        """Make batches one step ahead, in a thread: resizing pictures leaves Python's lock."""
        with ThreadPoolExecutor(1) as pool:
            ready = pool.submit(self._make_batch, self.progress.step)
            while True:
                upcoming = pool.submit(self._make_batch, self.progress.step + 1)
                yield ready.result()
                ready = upcoming

    def _make_batch(self, step: int) -> tuple[Tensor, Targets]:
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, step])
        plain = self.progress.share(recipe) >= recipe.plain_from
        sizes = recipe.sizes or (recipe.config.image_size,)
        size = sizes[int(rng.integers(len(sizes)))] if len(sizes) > 1 else sizes[0]
        return self.source.batch(rng, recipe.batch, size, plain=plain)

    def run(
        self, report: Callable[["DetectorTraining"], str], *, on_save: Callable[[], None]
    ) -> None:
        """Train until the minutes or steps are used up; log progress, save regularly."""
        recipe, losses = self.recipe, list[float]()
        started = time.monotonic() - self.progress.elapsed_s
        saved = reported = logged = time.monotonic()
        self.detector.train()
        for pictures, targets in self.batches():
            done = self.progress.share(recipe)
            if done >= 1:
                break
            if recipe.mix.hard and not self.source.is_mined and done >= recipe.mined_from:
                self.mine()
            losses.append(self.step(pictures, targets))
            now = time.monotonic()
            self.progress.elapsed_s = now - started
            if now - logged >= 60:
                log.info("%s loss=%.3f", self._where(), float(np.mean(losses)))
                losses, logged = [], now
            if now - reported >= recipe.report_every_s:
                log.info("%s %s", self._where(), report(self))
                self.source.refresh_scenes()
                reported = time.monotonic()
            if now - saved >= recipe.save_every_s:
                self.save()
                on_save()
                saved = time.monotonic()
        self.save()

    def _where(self) -> str:
        minutes, step = self.progress.elapsed_s / 60, self.progress.step
        return f"minutes={minutes:.1f} step={step} samples={step * self.recipe.batch}"


def prepare_scenes(folder: Path, count: int, *, seed: int) -> None:
    """Draw the training scenes that are missing in `folder`."""
    chunks = max(1, count // CHUNK)
    for chunk in range(chunks):
        draw_chunk(folder, chunk, seed=seed)


def propose_all(
    detector: Detector, photos: list[LabelledPhoto], *, threshold: float
) -> Iterator[tuple[LabelledPhoto, list[Proposal]]]:
    """Yield each photo with the detector's proposals; false ones are what a judge must learn."""
    for photo in photos:
        yield photo, detector.propose(photo.read(), threshold=threshold)


def calibrate(detector: Detector, held_out: list[LabelledPhoto], *, scenes: int = 150) -> None:
    """Choose thresholds and fit calibration on held-out photos and fresh scenes, in place.

    Without photos the scenes alone decide.
    """
    drawn = judge_scenes(detector, scenes, first=CALIBRATED_FROM)
    judged = judge_photos(detector, held_out)
    thresholds = choose_thresholds(judged or drawn, drawn)
    detector.config = replace(
        detector.config,
        thresholds=thresholds,
        calibration=fit_calibration(judged, drawn, thresholds),
    )


def train_detector(
    photos_dir: Path | None,
    run_dir: Path,
    recipe: DetectorRecipe,
    *,
    resume: bool = False,
    start: Path | None = None,
    export_dir: Path | None = None,
) -> Path:
    """Train a detector by a recipe and export it; returns the folder of the exported model.

    Without `photos_dir` it learns from drawn scenes alone. `run_dir` keeps everything needed to
    continue with `resume`; `start` is the folder of a detector to begin with.

    Raises:
        ConfigError: the photos' annotations cannot be read.
        CheckpointError: `resume` was asked for and the run folder has no checkpoint, or `start` is
            no detector of the recipe's widths.
    """
    scene_folder, target = run_dir / "scenes", export_dir or run_dir / "export"
    first = load_detector(start) if start is not None else None
    prepare_scenes(scene_folder, recipe.drawn_scenes, seed=recipe.seed)
    photos = read_photos(photos_dir, "train") if photos_dir else []
    checked = read_photos(photos_dir, "val")[::2] if photos_dir else []
    kept, held_out = split_held_out(photos)
    source = SampleSource(kept, scene_folder, drawn_share=recipe.drawn_share, mix=recipe.mix)
    training = DetectorTraining(recipe, source, run_dir)
    if resume:
        training.resume()
    elif first is not None:
        training.start_from(first)
    log.info("photos=%d scenes=%d parameters=%d", len(kept), CHUNK * len(source.scenes),
             sum(p.numel() for p in training.detector.parameters()))  # fmt: skip

    def report(state: DetectorTraining) -> str:
        return f"{score_photos(state.average, checked)} {score_scenes(state.average, 100)}"

    training.run(report, on_save=lambda: save_detector(training.average, target))
    log.info("finished %s", report(training))
    calibrate(training.average, held_out)
    save_detector(training.average, target)
    return target
