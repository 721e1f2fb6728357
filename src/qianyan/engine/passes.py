"""When each pass of a model began and ended, watched from outside while an engine works.

Hooks on the model and its tower, so that neither the engine nor the model knows of it. An
accelerator is waited for at both ends, which costs it some overlap.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qianyan.engine.limits import synchronise
from qianyan.models import qwen2_5_vl, qwen2_vl, qwen_vl
from qianyan.models.positions import Grid
from qianyan.models.registry import Model

TOWER_CLASSES = (qwen2_vl.VisionTower, qwen2_5_vl.VisionTower, qwen_vl.VisionTransformer)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass of the decoder: tokens in, rows of logits out (0 of them inside a prompt)."""

    started: float
    stopped: float
    num_tokens: int
    num_rows: int

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.stopped - self.started


@dataclass(frozen=True, kw_only=True)
class Look:
    """One pass of the tower over the pictures of these grids."""

    started: float
    stopped: float
    grids: tuple[Grid, ...]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.stopped - self.started


@dataclass
class PassLog:
    """Watches a model; everything it does between enter and exit is noted."""

    model: Model
    device: str
    passes: list[Pass] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._handles: list[RemovableHandle] = [
            self.model.register_forward_pre_hook(self._begin_pass),
            self.model.register_forward_hook(self._end_pass),
        ]
        tower = find_tower(self.model)
        if tower is not None:
            self._handles += [
                tower.register_forward_pre_hook(self._begin_look),
                tower.register_forward_hook(self._end_look),
            ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()

    def _begin_pass(self, *_: Any) -> None:
        self._pass_started = self._now()

    def _end_pass(self, _: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> None:
        self.passes.append(
            Pass(
                started=self._pass_started,
                stopped=self._now(),
                num_tokens=len(inputs[0]),
                num_rows=len(logits),
            )
        )

    def _begin_look(self, *_: Any) -> None:
        self._look_started = self._now()

    def _end_look(self, tower: nn.Module, inputs: tuple[Any, ...], _: Tensor) -> None:
        self.looks.append(
            Look(started=self._look_started, stopped=self._now(), grids=_grids(tower, inputs))
        )


def _grids(tower: nn.Module, inputs: Sequence[Any]) -> tuple[Grid, ...]:
    """Read the grids of a tower's call; those of the first generation are all alike."""
    if isinstance(tower, qwen_vl.VisionTransformer):
        side = tower.config.grid_side
        return ((1, side, side),) * len(inputs[0])
    return tuple((int(t), int(h), int(w)) for t, h, w in inputs[1])


def find_tower(model: nn.Module) -> nn.Module | None:
    """Find the vision tower of a model; None for a model that reads text only."""
    return next((one for one in model.modules() if isinstance(one, TOWER_CLASSES)), None)
