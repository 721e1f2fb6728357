"""The processes of one training: one, or those that torchrun starts."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """Which process this is, of how many."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and says how it goes."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Add up a tensor over all processes."""
        if self.size > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def gather(self, value: Value) -> list[Value]:
        """Give every process the values of all, by rank."""
        if self.size == 1:
            return [value]
        values: list[Value | None] = [None] * self.size
        distributed.all_gather_object(values, value)
        return [each for each in values if each is not None]


def join_world(device: torch.device) -> World:
    """Meet the other processes where torchrun has started several; gloo on processors, else nccl.

    Without torchrun this process is all there is.
    """
    if not distributed.is_torchelastic_launched():
        return World()
    if not distributed.is_initialized():
        distributed.init_process_group("gloo" if device.type == "cpu" else "nccl")
    return World(distributed.get_rank(), distributed.get_world_size())
