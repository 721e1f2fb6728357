"""A whole training: the stages of a recipe one after another, resumable, exported at the end."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.utils.checkpoint import checkpoint

from qianyan.errors import CheckpointError, ConfigError, quote
from qianyan.inputs.processor import Processor
from qianyan.inputs.tokenizer import Tokenizer
from qianyan.models.omni.thinker import Thinker
from qianyan.models.registry import Model, load_model
from qianyan.train.checkpoint import STATE_FILE, read_run_state, write_run_state
from qianyan.train.examples import TURN_END, Example, ExampleMaker
from qianyan.train.export import export_model, require_new
from qianyan.train.lora import add_lora
from qianyan.train.packing import TokenLosses, pack
from qianyan.train.parts import IN_FRONT, Part, freeze
from qianyan.train.predicting import answer, expected
from qianyan.train.preference import PairLosses
from qianyan.train.recipe import Dataset, Preference, Recipe, Stage
from qianyan.train.sources import FindTeacher, open_source
from qianyan.train.stage import Samples, StageRun, StepReport
from qianyan.train.world import join_world, put_whole, whole

WHOLE = StateDictOptions(full_state_dict=True)
PREDICTED = 3
"""Samples of the evaluation that are answered each time, by one process alone."""
MOST_EVALUATED = 256
"""Samples of the evaluation that are measured each time."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Mean loss of a learned token on samples that nobody learns from."""

    step: int
    loss: float
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model answers to a sample that nobody learns from, beside the sample's own answer.

    Long answers are cut.
    """

    step: int
    source: str
    expected: str
    answered: str


Report = StepReport | Evaluation | Prediction


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a training begins, keeps its state, and leaves its model."""

    source: Path
    run_dir: Path
    out: Path


class Training:
    """A recipe under way: `run` it to the end, from the last saved state where asked to."""

    def __init__(
        self,
        recipe: Recipe,
        places: Places,
        *,
        device: str = "cpu",
        on_report: Callable[[Stage, Report], None] | None = None,
        teacher: FindTeacher | None = None,
    ) -> None:
        """Load the model; raises CheckpointError and ConfigError.

        `teacher` says what is asked and answered about labelled photos.
        """
        self.recipe, self.places = recipe, places
        self._world = join_world(torch.device(device))
        if self._world.size > 1 and device == "cuda":
            device = f"cuda:{torch.cuda.current_device()}"
        self._report, self._teacher = on_report or _ignore, teacher
        require_new(places.out)
        self.model = load_model(
            places.source, dtype="float32", device=device, quantize=recipe.quantize
        )
        if recipe.export == "thinker" and not isinstance(self.model, Thinker):
            raise ConfigError(
                'export is "thinker", and the model has none to be written alone; expected a '
                'Qwen2.5-Omni, or export = "whole".'
            )
        if recipe.lora is not None:
            add_lora(self.model, recipe.lora, seed=recipe.seed)
        self._tokenizer = Tokenizer.from_folder(places.source)
        self._changed: set[str] = set()
        runs_all = self._world.size > 1 or not IN_FRONT.isdisjoint(_trained(recipe))
        losses = TokenLosses(self.model, runs_all=runs_all)
        self._losses = self._world.share_out(losses)
        for stage in recipe.stages:  # what is wrong with a later stage is said at once
            freeze(self.model, stage.train, with_lora=stage.lora is not None)

    def run(self, *, resume: bool = False) -> None:
        """Take all stages and export the model.

        Raises DivergedError and InputError; the last state saved stays then.
        """
        state = self._resumed() if resume else None
        begun_at = 0 if state is None else state["stage"]
        for number, stage in enumerate(self.recipe.stages[begun_at:], begun_at):
            is_begun = state is not None and state["is_begun"] and number == begun_at
            self._run_stage(number, stage, state if is_begun else None)
        export_model(
            self.model,
            self.places.source,
            self.places.out,
            lora=self.recipe.lora,
            world=self._world,
            export=self.recipe.export,
        )
        self._world.leave()

    def _run_stage(self, number: int, stage: Stage, state: dict[str, Any] | None) -> None:
        self._changed |= set(freeze(self.model, stage.train, with_lora=stage.lora is not None))
        run = self._begin(number, stage)
        held_out = self._held_out(stage)
        if state is not None:
            run.load(state["run"])
            set_optimizer_state_dict(self._losses, run.optimizer, state["optimizer"], options=WHOLE)
        self.model.train()
        with _checkpointing(self.model, is_on=stage.checkpointing):
            try:
                while not run.is_done:
                    self._report(stage, run.step())
                    if run.is_done or _is_due(run.step_number, stage.evaluate_every):
                        self._evaluate(stage, run, held_out)
                    if not run.is_done and _is_due(run.step_number, stage.save_every):
                        self._save(number, run)
            finally:
                run.close()
                self.model.eval()
        run.samples.tell_bad()
        if run.average is not None:
            run.average.keep()
        self._save(number, run)

    def _begin(self, number: int, stage: Stage) -> StageRun:
        data = stage.data or self.recipe.data
        if not data:
            raise ConfigError(f"Stage {quote(stage.name)} has no data; expected at least one file.")
        samples = self._samples(
            stage, data, seed=self.recipe.seed + number, in_pairs=stage.preference is not None
        )
        return StageRun(
            stage,
            self._losses if stage.preference is None else self._pair_losses(stage.preference),
            samples,
            world=self._world,
            precision=self.recipe.precision,
            seed=self.recipe.seed + number,
        )

    def _pair_losses(self, preference: Preference) -> PairLosses:
        if self._world.size > 1 and self.recipe.lora is None:
            raise ConfigError(
                "Preference training on several processes needs lora, whose absence is the model "
                "as it was; expected lora, or one process."
            )
        return PairLosses(self._losses, preference)

    def _samples(
        self, stage: Stage, data: Sequence[Dataset], *, seed: int, in_pairs: bool
    ) -> Samples:
        """Open data with pictures in the size that the stage shows them in."""
        processor = Processor.from_folder(
            self.places.source, min_pixels=stage.min_pixels, max_pixels=stage.max_pixels
        )
        return Samples(
            [open_source(one, teacher=self._teacher, seen_wh=processor.seen_wh) for one in data],
            [one.weight for one in data],
            ExampleMaker(self.model, processor, loss=stage.loss, max_tokens=stage.max_tokens),
            seed=seed,
            in_pairs=in_pairs,
        )

    def _held_out(self, stage: Stage) -> Samples | None:
        data = self.recipe.evaluation
        return self._samples(stage, data, seed=0, in_pairs=False) if data else None

    @torch.no_grad()
    def _evaluate(self, stage: Stage, run: StageRun, held_out: Samples | None) -> None:
        """Measure the loss on samples held out, with the averaged weights where there are any."""
        if held_out is None:
            return
        loss = num_learned = num_samples = 0.0
        self.model.eval()
        with run.average.in_place() if run.average is not None else nullcontext():
            for draw in range(min(MOST_EVALUATED, held_out.draws.epoch_size)):
                made = held_out.make(held_out.draws[draw])
                if made is not None:
                    packed = pack(made).to(next(self.model.parameters()).device)
                    with run.computing():
                        loss += float(self._losses(packed).sum())
                    num_learned += len(packed.targets)
                    num_samples += 1
                    if draw < PREDICTED and self._world.size == 1:
                        self._predict(stage, run.step_number, made[-1])
        self.model.train()
        if num_learned:
            mean = loss / num_learned
            report = Evaluation(step=run.step_number, loss=mean, num_samples=int(num_samples))
            self._report(stage, report)

    def _predict(self, stage: Stage, step: int, example: Example) -> None:
        tokenizer = self._tokenizer
        end = tokenizer.token_id(TURN_END)
        answered = answer(
            self.model,
            example,
            end=-1 if end is None else end,
            vocab_size=tokenizer.vocab_size,
        )
        self._report(
            stage,
            Prediction(
                step=step,
                source=example.source,
                expected=tokenizer.decode(expected(example)),
                answered=tokenizer.decode(answered),
            ),
        )

    def _save(self, number: int, run: StageRun) -> None:
        """Write down where the training is: every parameter that any stage has changed."""
        named = dict(self.model.named_parameters())
        state = {
            "recipe": _fingerprint(self.recipe),
            "stage": number + 1 if run.is_done else number,
            "is_begun": not run.is_done,
            "parameters": {name: whole(named[name].detach()) for name in sorted(self._changed)},
            "optimizer": get_optimizer_state_dict(self._losses, run.optimizer, options=WHOLE),
            "run": run.state(),
        }
        if self._world.is_first:
            write_run_state(self.places.run_dir, state)

    def _resumed(self) -> dict[str, Any] | None:
        """Put the last saved parameters in place; raises CheckpointError where none fit."""
        state = read_run_state(self.places.run_dir)
        if state.get("recipe") != _fingerprint(self.recipe):
            raise CheckpointError(
                f"{STATE_FILE} in {quote(self.places.run_dir.name)} is of another recipe; expected "
                "the one that the run began with. Use its recipe or start without resuming."
            )
        named = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in state["parameters"].items():
                put_whole(named[name], value)
        self._changed = set(state["parameters"])
        return state


def _trained(recipe: Recipe) -> set[Part]:
    """List the parts that any stage trains, low-rank additions to them included."""
    parts: set[Part] = set(recipe.lora.parts) if recipe.lora is not None else set()
    return parts.union(*(stage.train for stage in recipe.stages))


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _fingerprint(recipe: Recipe) -> str:
    """Tell recipes apart by what changes a run: not how often it is saved, nor what is exported."""
    stages = tuple(replace(stage, save_every=0, evaluate_every=0) for stage in recipe.stages)
    essence = repr(replace(recipe, stages=stages, evaluation=(), export="whole"))
    return hashlib.sha256(essence.encode()).hexdigest()


@contextmanager
def _checkpointing(model: Model, *, is_on: bool) -> Iterator[None]:
    """Let every block compute its activations a second time instead of keeping them."""
    blocks = [
        block
        for holder in model.modules()
        for block in (holder if isinstance(holder, nn.ModuleList) else ())
    ]
    for block in blocks if is_on else ():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks if is_on else ():
            del block.forward


def _ignore(stage: Stage, report: Report) -> None:
    """Take no notice."""
