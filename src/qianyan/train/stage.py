"""One stage of a training: a step at a time, in a state that can be written down at any of them."""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qianyan.errors import ConfigError, QianyanError, quote
from qianyan.train.examples import Example, ExampleMaker
from qianyan.train.packing import Pack, TokenLosses, pack
from qianyan.train.preference import PairLosses
from qianyan.train.rates import make_optimizer, rate_share, set_rates
from qianyan.train.recipe import Precision, Stage
from qianyan.train.samples import Sample, Source
from qianyan.train.streams import Draw, Draws, Made, Stream, StreamState
from qianyan.train.world import World, put_whole, whole

logger = logging.getLogger(__name__)

BAD_SAMPLES_NAMED = 20
"""Samples that cannot be used are named up to here, and counted beyond."""
MOST_STEPS = 100_000_000
PROBED = 64
"""Samples that are measured to tell how many steps an epoch has."""


class DivergedError(QianyanError):
    """The loss or its gradient is no number any more."""

    code = "diverged"


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step came to: mean loss of a learned token or pair, and how many there were.

    `gradient_norm` is that before the clip.
    """

    step: int
    num_steps: int
    loss: float
    gradient_norm: float
    rate: float
    num_tokens: int
    num_learned: int
    seconds: float


class Samples:
    """The sources of a stage with what makes examples of them.

    `bad` has the code of the error for each sample that cannot be used.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        make: ExampleMaker,
        *,
        seed: int,
        in_pairs: bool = False,
    ) -> None:
        self.draws = Draws([len(source) for source in sources], weights, seed=seed)
        self.bad: dict[Draw, str] = {}
        self._sources, self._maker, self._in_pairs = sources, make, in_pairs

    def make(self, draw: Draw) -> Made | None:
        """Make what a draw gives to learn; None, with a warning, where that cannot be done."""
        source, index = draw
        name = ""  # what cannot be read says itself which it is
        try:
            sample = self._sources[source].read(index)
            name = sample.source
            return self._made(sample)
        except QianyanError as error:
            if draw not in self.bad and len(self.bad) < BAD_SAMPLES_NAMED:
                said = str(error)
                logger.warning("sample left out: %s", said if name in said else f"{name}: {said}")
            self.bad[draw] = error.code
            return None

    def tell_bad(self) -> None:
        """Warn of how many samples could not be used, and why, where there were any."""
        if self.bad:
            kinds = Counter(self.bad.values()).most_common()
            logger.warning(
                "%d of %d samples were left out: %s",
                len(self.bad),
                sum(map(len, self._sources)),
                ", ".join(f"{count} {code}" for code, count in kinds),
            )

    def _made(self, sample: Sample) -> Made:
        wanted = (sample, sample.worse()) if self._in_pairs else (sample,)
        made = tuple(
            self._maker(one.messages, source=one.source, tools=one.tools) for one in wanted
        )
        self._maker.require_room(sum(map(len, made)), sample.source)
        return made

    def steps(self, stage: Stage) -> int:
        """Count the steps of `stage.epochs`; with packing, as the first samples' lengths say."""
        per_pack = 1.0
        if stage.packing:
            probed = (self.make(self.draws[number]) for number in range(self._num_probed))
            lengths = [sum(map(len, made)) for made in probed if made is not None]
            if lengths:
                per_pack = max(1.0, stage.max_tokens * len(lengths) / sum(lengths))
        return max(1, math.ceil(self.draws.epoch_size * stage.epochs / per_pack / stage.batch))

    @property
    def _num_probed(self) -> int:
        return min(PROBED, self.draws.epoch_size)


class StageRun:
    """A stage under way on one device: `step` until `is_done`.

    The parameters that learn are those with `requires_grad`.
    """

    def __init__(
        self,
        stage: Stage,
        losses: TokenLosses | PairLosses,
        samples: Samples,
        *,
        world: World,
        precision: Precision,
        seed: int = 0,
    ) -> None:
        if stage.batch % world.size:
            raise ConfigError(
                f"batch is {stage.batch}; expected a multiple of the {world.size} processes."
            )
        self.stage, self.losses, self.samples = stage, losses, samples
        model = losses.model
        self._seed = seed
        self.step_number = 0
        self.num_steps = samples.steps(stage) if stage.steps is None else stage.steps
        self._world, self._precision = world, precision
        self._device = next(model.parameters()).device
        self.optimizer = make_optimizer(model.named_parameters(), stage)
        self.average = _Average(model, stage.average) if stage.average else None
        self._mine = range(world.rank, stage.batch, world.size)
        self._states = {number: StreamState(number) for number in self._mine}
        self._open()
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="pack")

    @property
    def is_done(self) -> bool:
        """Whether all steps have been taken."""
        return self.step_number >= self.num_steps

    def step(self) -> StepReport:
        """Learn from one pack of each stream.

        Raises DivergedError, before anything is changed, when the loss or gradient is no number.
        """
        begun = time.monotonic()
        torch.manual_seed(  # what a low-rank addition leaves out is drawn from it
            (self._seed * MOST_STEPS + self.step_number) * self._world.size + self._world.rank
        )
        share = rate_share(self.stage.rates, self.step_number, self.num_steps)
        set_rates(self.optimizer, share)
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3, dtype=torch.float64)  # loss, what it is a sum of, tokens
        sources: list[str] = []
        for packed in self._packs():
            sources += packed.sources
            loss, count = self._backward(packed)
            sums += torch.tensor([loss, count, len(packed.input_ids)])
        sums = self._world.sum(sums.to(self._device) if self._world.size > 1 else sums)
        norm = self._scale_and_clip(float(sums[1]))
        mean = float(sums[0] / sums[1])
        if not math.isfinite(mean) or not math.isfinite(norm):
            raise DivergedError(
                f"The {'gradient' if math.isfinite(mean) else 'loss'} of step "
                f"{self.step_number + 1} is no number. It learned from {_some(sources)}; the last "
                "state saved is good. Lower the rates or look at these samples, and resume."
            )
        self.optimizer.step()
        self.step_number += 1
        if self.average is not None:
            self.average.follow(self.step_number)
        return StepReport(
            step=self.step_number,
            num_steps=self.num_steps,
            loss=mean,
            gradient_norm=norm,
            rate=self.stage.rates.language * share,
            num_tokens=int(sums[2]),
            num_learned=int(sums[1]),
            seconds=time.monotonic() - begun,
        )

    def computing(self) -> torch.autocast:
        """Let products be computed in the recipe's precision, for the length of a block."""
        return torch.autocast(
            self._device.type, torch.bfloat16, enabled=self._precision == "bfloat16"
        )

    def state(self) -> dict[str, Any]:
        """Give what `load` goes on from, of all processes; parameters are not in it."""
        gathered: dict[int, tuple[int, list[int]]] = {}
        for states in self._world.gather(self._states):
            gathered |= {
                number: (one.next_draw, list(one.waiting)) for number, one in states.items()
            }
        return {
            "step": self.step_number,
            "num_steps": self.num_steps,
            "streams": gathered,
            "average": None if self.average is None else self.average.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state, of as many processes as it may have been."""
        self.step_number, self.num_steps = state["step"], state["num_steps"]
        self._states = {
            number: StreamState(state["streams"][number][0], tuple(state["streams"][number][1]))
            for number in self._mine
        }
        if self.average is not None:
            self.average.load(state["average"])
        self._open()

    def close(self) -> None:
        """Stop making packs ahead."""
        self._ahead.shutdown(cancel_futures=True)

    def _open(self) -> None:
        self._streams = {
            number: Stream(
                self.samples.draws,
                self.samples.make,
                state=self._states[number],
                stride=self.stage.batch,
                max_tokens=self.stage.max_tokens,
                joins=self.stage.packing,
            )
            for number in self._mine
        }
        self._next: Future[tuple[list[Example], StreamState]] | None = None

    def _packs(self) -> Iterator[Pack]:
        """Yield this process's packs of a step; the next is made while one is learned from."""
        for place, number in enumerate(self._mine):
            following = self._mine[(place + 1) % len(self._mine)]
            made = self._next or self._ahead.submit(self._streams[number].next)
            examples, state = made.result()
            self._next = self._ahead.submit(self._streams[following].next)
            self._states[number] = state
            yield pack(examples).to(self._device)

    def _backward(self, packed: Pack) -> tuple[float, int]:
        """Add a pack's gradient, of the sum of its losses; returns that sum, and of how many."""
        with self.computing():
            losses = self.losses(packed)
            total = losses.sum()
        torch.autograd.backward(total)
        return float(total.detach()), len(losses)

    def _scale_and_clip(self, count: float) -> float:
        """Turn summed gradients into those of the mean loss, clip, and return their norm."""
        learning = [each for group in self.optimizer.param_groups for each in group["params"]]
        gradients = [each.grad for each in learning if each.grad is not None]
        torch._foreach_mul_(gradients, self._world.size / count)
        return float(whole(nn.utils.clip_grad_norm_(learning, self.stage.optimizer.clip)))


class _Average:
    """A running average of the parameters that learn; young averages follow more quickly."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._learning = {
            name: each for name, each in model.named_parameters() if each.requires_grad
        }
        self._decay = decay
        self.values = {name: each.detach().clone() for name, each in self._learning.items()}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move towards the parameters."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), list(self._learning.values()), share)

    def state(self) -> dict[str, Tensor]:
        """Give the whole of every average, on all processes."""
        return {name: whole(value) for name, value in self.values.items()}

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> None:
        """Go on from an average."""
        for name, value in values.items():
            put_whole(self.values[name], value)

    @torch.no_grad()
    def keep(self) -> None:
        """Make the parameters the average."""
        for name, parameter in self._learning.items():
            parameter.copy_(self.values[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the parameters' place for the length of a block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._learning.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(kept)


def _some(sources: Sequence[str]) -> str:
    named = ", ".join(quote(source) for source in sources[:3])
    return named if len(sources) <= 3 else f"{named} and {len(sources) - 3} more"
