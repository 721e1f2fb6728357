"""Training of the bundled judge: the tower first, then the decoder on it, then both together.

The tower learns from readouts that exist only in training: what each token's square shows, and
what the whole crop shows. When it can see, the decoder learns to answer from its features without
disturbing it; at the end the answers' loss reaches the tower as well. One clock, the progress
from 0 to 1, drives it all, so that a run can be interrupted and resumed at any step.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from qianyan.errors import CheckpointError, quote
from qianyan.models.attention import NoCache
from qianyan.models.detector import KINDS
from qianyan.models.registry import load_model, qwen2_5_vl_config
from qianyan.models.vision_language import VisionLanguageModel
from qianyan.models.weights import initialise
from qianyan.train.bundled.crops import Bytes, Crop, CropBook, colour_jitter
from qianyan.train.bundled.decoys import read_decoys, scene_name
from qianyan.train.bundled.judge_folder import judge_config, patch_config, write_judge
from qianyan.train.bundled.judge_measure import measure_judge, measuring_crops
from qianyan.train.bundled.labelled import CELLS, photo_pictures, scene_pictures
from qianyan.train.bundled.lessons import Lesson, Packer, letter_probabilities
from qianyan.train.bundled.photos import read_photos, split_held_out
from qianyan.train.bundled.scene_store import draw_chunk, read_chunk
from qianyan.train.bundled.sentences import (
    DECLINED,
    LANGUAGES,
    corpus,
    describe,
    load_questions,
    other_question,
)
from qianyan.train.bundled.vocabulary import train_vocabulary
from qianyan.train.checkpoint import read_run_state, write_run_state

logger = logging.getLogger(__name__)

ANSWER_FROM, JOIN_FROM = 0.4, 0.5  # progress at which the decoder starts, and reaches the tower
LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-3, 0.05, 1.0
WARM_UP_STEPS = 150
AVERAGE_DECAY = 0.998
SCENE_CHUNKS = 15
SAVE_EVERY_S, MEASURE_EVERY_S = 120.0, 240.0

HAZARDS = {"fire": 0.27, "smoke": 0.24, "both": 0.06, "look_alike": 0.38, "uncertain": 0.05}
HEADS = {"helmet": 0.30, "no_helmet": 0.28, "not_a_person": 0.36, "uncertain": 0.06}
CROPS_PER_QUESTION, SEVERITIES, WHOLES, OTHERS = 12, 2, 3, 2
# What inspection shows of whole pictures: 4:3, 3:4, square, 16:9 (width, height in pixels).
WHOLE_SIZES = ((112, 84), (84, 112), (112, 112), (140, 84))


class Readouts(nn.Module):
    """Training-only linear readouts of the tower's tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = nn.Linear(width, len(KINDS))
        self.asked = nn.ModuleDict(
            {
                name: nn.Linear(width, len(question.options))
                for name, question in load_questions().items()
                if question.options
            }
        )

    def forward(self, features: Tensor, crops: Sequence[Crop]) -> Tensor:
        """Give the loss of the readouts for crops whose tokens are packed in `features`."""
        tokens = features.view(len(crops), -1, features.shape[-1])  # (crops, cells, width)
        cells = torch.from_numpy(np.stack([crop.cells for crop in crops])).flatten(2).mT
        known = ~cells.isnan()
        loss = binary_cross_entropy_with_logits(
            self.cells(tokens).float()[known], cells[known].clamp(0, 1)
        )
        pooled = tokens.mean(dim=1)  # (crops, width)
        for name, question in load_questions().items():
            rows = [row for row, crop in enumerate(crops) if crop.asked == name]
            if not rows:
                continue
            meanings = list(question.options.values())
            targets = torch.tensor([meanings.index(crops[row].meaning) for row in rows])
            logits = self.asked[name](pooled[rows]).float()
            loss = loss + cross_entropy(logits, targets) * (len(rows) / len(crops))
        return loss


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    elapsed_s: float = 0.0
    begun_at: float = 0.0  # progress that the judge it started from had made before

    def share(self, budget_s: float) -> float:
        """Give the progress, 0..1, when all of it takes `budget_s`."""
        return self.begun_at + (1 - self.begun_at) * min(1.0, self.elapsed_s / budget_s)


class JudgeTrainer:
    """The judge, its readouts, its optimizer and the books its crops come from."""

    def __init__(
        self, photos: CropBook, scenes: CropBook, *, seed: int, width: int = 192, depth: int = 6
    ) -> None:
        torch.manual_seed(seed)
        self.seed = seed
        self.photos, self.scenes = photos, scenes
        self.tokenizer = train_vocabulary(corpus())
        self.config = judge_config(self.tokenizer, width=width, depth=depth)
        self.model = VisionLanguageModel(qwen2_5_vl_config(self.config))
        initialise(self.model, std=0.03)
        self.readouts = Readouts(width)
        self.packer = Packer(self.model, self.tokenizer, patch_config())
        self.questions = load_questions()
        self.learner = nn.ModuleDict({"judge": self.model, "readouts": self.readouts})
        self.optimizers = self._make_optimizers()
        self.average = {
            name: parameter.detach().clone() for name, parameter in self.learner.named_parameters()
        }
        self.progress = Progress()
        self.answers = False

    def step(self, progress: float) -> dict[str, float]:
        """Learn from one batch; `progress` (0..1) sets the rates and what takes part.

        What is drawn depends on the seed and the number of steps alone, so that a resumed run
        sees what it would have seen.
        """
        self.rng = np.random.default_rng([self.seed, self.progress.step])
        self.photos.rng = self.scenes.rng = self.rng
        crops = self._draw_crops(progress)
        self.answers = answering = progress >= ANSWER_FROM
        # The decoder is asked about every other crop; the readouts see them all.
        lessons = self._lessons(crops[::2]) if answering else []
        extra = [lesson.pixels for lesson in lessons[len(crops[::2]) :]]
        pictures = [crop.pixels for crop in crops] + [each for each in extra if each is not None]
        shown = self._jittered(pictures)
        grids = [self.packer.pixels.grid((each.shape[1], each.shape[0])) for each in shown]
        self._set_rates(progress)
        with (
            sdpa_kernel(SDPBackend.MATH),  # twice as fast as the fused kernel on so few tokens
            torch.autocast("cpu", torch.bfloat16),
        ):
            features = self.model.encode_images(self.packer.patches(shown), grids)
            of_crops, of_others = features.tensor_split([len(crops) * CELLS**2])
            losses = {"see": self.readouts(of_crops, crops)}
            if answering:
                asked = of_crops.view(len(crops), CELLS**2, -1)[::2].flatten(0, 1)
                joined = torch.cat([asked, of_others])
                joined = joined if progress >= JOIN_FROM else joined.detach()
                losses["say"] = self._answer_loss(lessons, joined)
        total = torch.stack(list(losses.values())).sum()
        self.learner.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(self.learner.parameters(), CLIP)
        for optimizer in self.optimizers:
            optimizer.step()
        self.progress.step += 1
        self._update_average()
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def save(self, run_dir: Path) -> None:
        """Write the whole state of the run."""
        state = {
            "vocabulary": self.tokenizer.to_str(),
            "learner": self.learner.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": vars(self.progress),
        }
        write_run_state(run_dir, state)

    def load(self, run_dir: Path) -> None:
        """Continue from what save() wrote; raises CheckpointError where there is nothing."""
        state = read_run_state(run_dir)
        if state["vocabulary"] != self.tokenizer.to_str():
            raise CheckpointError(
                f"The run in {quote(run_dir)} was started with another vocabulary; the closed "
                "questions or answers have changed since. Start without resuming."
            )
        self.learner.load_state_dict(state["learner"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress(**state["progress"])

    def start_from(self, judge_dir: Path) -> None:
        """Begin with a trained judge, which answers already: tower and decoder learn together.

        Raises CheckpointError for a judge of another vocabulary or other widths.
        """
        if Tokenizer.from_file(str(judge_dir / "tokenizer.json")).to_str() != (
            self.tokenizer.to_str()
        ):
            raise CheckpointError(
                f"The judge in {quote(judge_dir)} has another vocabulary; the closed questions or "
                "answers have changed since. Start without it."
            )
        try:
            self.model.load_state_dict(load_model(judge_dir, dtype="float32").state_dict())
        except RuntimeError as error:
            raise CheckpointError(f"The judge to start from is of other widths: {error}") from error
        for name, parameter in self.learner.named_parameters():
            self.average[name].copy_(parameter.detach())
        self.progress.begun_at = JOIN_FROM

    @torch.no_grad()
    def ask(self, pictures: Sequence[Bytes], asked: str) -> np.ndarray:
        """Give the options' probabilities, from the readouts until the decoder can answer."""
        question = self.questions[asked]
        if self.answers:
            words = question.words("en")
            return letter_probabilities(self.packer, pictures, words, list(question.options))
        rows = []
        for start in range(0, len(pictures), 64):
            part = pictures[start : start + 64]
            grids = [self.packer.pixels.grid((each.shape[1], each.shape[0])) for each in part]
            features = self.model.encode_images(self.packer.patches(part), grids)
            logits = self.readouts.asked[asked](
                features.view(len(part), -1, features.shape[-1]).mean(dim=1)
            )
            rows.append(logits.softmax(dim=-1).numpy())
        return np.concatenate(rows)

    def averaged(self) -> "AveragedWeights":
        """Put the averaged weights in for the length of a `with` block."""
        return AveragedWeights(self)

    def _draw_crops(self, progress: float) -> list[Crop]:
        """Draw the crops of one batch: hazards, heads and severities."""
        drawn_share = 0.5 if progress < 0.1 else 0.25
        crops = []
        for wanted, ask in ((HAZARDS, "hazard"), (HEADS, "head")):
            meanings = self.rng.choice(
                list(wanted), CROPS_PER_QUESTION, p=list(wanted.values())
            ).tolist()
            for meaning in meanings:
                book = self._book(drawn_share)
                crops.append(book.hazard(meaning) if ask == "hazard" else book.head(meaning))
        return crops + [self._book(drawn_share).severity() for _ in range(SEVERITIES)]

    def _book(self, drawn_share: float) -> CropBook:
        return self.scenes if self.rng.random() < drawn_share else self.photos

    def _lessons(self, crops: Sequence[Crop]) -> list[Lesson]:
        """Ask about every crop, describe whole pictures, and decline everything else."""
        languages = {name: LANGUAGES[self.rng.integers(len(LANGUAGES))] for name in self.questions}
        lessons = []
        for crop in crops:
            question = self.questions[crop.asked]
            words = question.words(languages[crop.asked])
            lessons.append(Lesson(crop.pixels, words, question.letter(crop.meaning)))
        size = WHOLE_SIZES[self.rng.integers(len(WHOLE_SIZES))]
        for _ in range(WHOLES):
            pixels, contents = self._book(0.4).whole(size)
            language = LANGUAGES[self.rng.integers(len(LANGUAGES))]
            words = self.questions["describe"].words(language)
            lessons.append(Lesson(pixels, words, describe(contents, language)))
        for number in range(OTHERS):
            language = LANGUAGES[self.rng.integers(len(LANGUAGES))]
            words = other_question(self.rng, language)
            picture = crops[int(self.rng.integers(len(crops)))].pixels if number == 0 else None
            lessons.append(Lesson(picture, words, DECLINED[language]))
        return lessons

    def _jittered(self, shown: Sequence[Bytes]) -> list[Bytes]:
        """Change the colours of all pictures, sizes apart, in their order."""
        changed = list(shown)
        for shape in dict.fromkeys(picture.shape for picture in shown):
            rows = [row for row, picture in enumerate(shown) if picture.shape == shape]
            batch = colour_jitter(np.stack([shown[row] for row in rows]), self.rng)
            for row, picture in zip(rows, batch, strict=True):
                changed[row] = picture
        return changed

    def _answer_loss(self, lessons: Sequence[Lesson], features: Tensor) -> Tensor:
        """Give the weighted next-token loss of the answers."""
        pack = self.packer.pack(lessons)
        logits = self.model(
            self.model.embed(pack.input_ids, features),
            pack.position_ids,
            NoCache(pack.lengths),
            logits_at=pack.logits_at,
        )
        losses = cross_entropy(logits, pack.targets, reduction="none")
        return (losses * pack.weights).sum() / len(lessons)

    def _make_optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """Make Muon for the matrices inside the blocks (arXiv 2502.16982), AdamW for the rest.

        On so few steps Muon lowered the loss on unseen crops several times faster.
        """
        tower = [*self.model.visual.named_parameters(), *self.readouts.named_parameters()]
        decoder = [*self.model.model.named_parameters()]
        split = [
            {
                "params": [
                    parameter
                    for name, parameter in part
                    if _is_block_matrix(name, parameter) == is_in
                ],
                "is_decoder": part is decoder,
            }
            for is_in in (True, False)
            for part in (tower, decoder)
        ]
        muon = torch.optim.Muon(
            split[:2], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
        )
        adam = torch.optim.AdamW(
            split[2:], lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True
        )
        return muon, adam

    def _set_rates(self, progress: float) -> None:
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        warm = min(1.0, (self.progress.step + 1) / WARM_UP_STEPS)
        # The decoder starts late; its own warm-up takes 2 % of the run.
        late = min(1.0, max(0.0, progress - ANSWER_FROM) / 0.02)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * cosine * (late if group["is_decoder"] else warm)

    @torch.no_grad()
    def _update_average(self) -> None:
        """Follow the weights slowly; early on more quickly, as there is nothing to keep."""
        follow = 1 - min(AVERAGE_DECAY, (1 + self.progress.step) / (10 + self.progress.step))
        averages = [self.average[name] for name, _ in self.learner.named_parameters()]
        torch._foreach_lerp_(averages, list(self.learner.parameters()), follow)


def _is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and name.startswith(("blocks.", "layers."))


class AveragedWeights:
    """The averaged weights in place of the trained ones, until the block ends."""

    def __init__(self, trainer: JudgeTrainer) -> None:
        self.trainer = trainer

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.trainer.learner.named_parameters():
            average = self.trainer.average[name]
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)


def train_judge(
    photos_dir: Path,
    run_dir: Path,
    *,
    minutes: float,
    seed: int,
    export_dir: Path,
    start: Path | None = None,
) -> None:
    """Train the judge for `minutes` of this machine's time and write its folder.

    `start` is the folder of a judge to begin with, or `run_dir` itself, to go on where its run was
    saved last; its minutes count. What mine_decoys() left in the run folder takes part.

    Raises:
        CheckpointError: there is nothing to resume, or the judge to start from is another kind.
    """
    trainer = prepare_trainer(photos_dir, run_dir, seed=seed)
    if start == run_dir:
        trainer.load(run_dir)
    elif start is not None:
        trainer.start_from(start)
    book = CropBook(
        photo_pictures(read_photos(photos_dir, "val")), np.random.default_rng(99), spoil=False
    )
    crops = measuring_crops(book)
    budget_s, started = minutes * 60, time.monotonic() - trainer.progress.elapsed_s
    saved = measured = trainer.progress.elapsed_s
    losses: list[dict[str, float]] = []
    while (elapsed := time.monotonic() - started) < budget_s:
        losses.append(trainer.step(trainer.progress.share(budget_s)))
        trainer.progress.elapsed_s = elapsed
        if elapsed - saved >= SAVE_EVERY_S:
            trainer.save(run_dir)
            saved = elapsed
        if elapsed - measured >= MEASURE_EVERY_S:
            _report(trainer, crops, losses)
            measured, losses = elapsed, []
    trainer.save(run_dir)
    _report(trainer, crops, losses)
    with trainer.averaged():
        write_judge(trainer.model, trainer.tokenizer, trainer.config, export_dir)


def prepare_trainer(photos_dir: Path, run_dir: Path, *, seed: int) -> JudgeTrainer:
    """Read the photos, draw the scenes that are not drawn yet, and set up a fresh judge."""
    kept, _ = split_held_out(read_photos(photos_dir, "train"))
    decoys = read_decoys(run_dir)
    scenes = []
    for chunk in range(SCENE_CHUNKS):
        draw_chunk(run_dir / "scenes", chunk, seed=seed)
        stored = read_chunk(run_dir / "scenes", chunk)
        false = [decoys.get(scene_name(chunk, index), ()) for index in range(len(stored.boxes))]
        scenes += scene_pictures(stored, decoys=false)
    rng = np.random.default_rng(seed)
    photos = CropBook(photo_pictures(kept, decoys=decoys), rng)
    return JudgeTrainer(photos, CropBook(scenes, rng), seed=seed)


def _report(trainer: JudgeTrainer, crops: Sequence[Crop], losses: list[dict[str, float]]) -> None:
    """Log where the run stands: losses, and right answers on crops of validation photos."""
    means = {
        name: round(float(np.mean([each[name] for each in losses if name in each])), 3)
        for name in dict.fromkeys(name for each in losses for name in each)
    }
    with trainer.averaged():
        figures = measure_judge(crops, trainer.ask)
    logger.info(
        "judge elapsed_s=%d step=%d %s %s",
        trainer.progress.elapsed_s, trainer.progress.step, means, figures,
    )  # fmt: skip
