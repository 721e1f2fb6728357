"""The processes of one training: one, or those that torchrun starts.

Several share the parameters out among themselves (FSDP2, arXiv 2304.11277): each keeps a piece of
every one, and a block's are put together while it is computed.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

Value = TypeVar("Value")
Sharded = TypeVar("Sharded", bound=nn.Module)


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

    def leave(self) -> None:
        """Part from the other processes; what speaks to them may not outlive the program."""
        if self.size > 1:
            distributed.barrier()
            distributed.destroy_process_group()

    def share_out(self, module: Sharded) -> Sharded:
        """Keep a piece of each parameter on each process, block by block; one keeps all."""
        if self.size == 1:
            return module
        device_type = next(module.parameters()).device.type
        mesh = init_device_mesh(device_type, (self.size,))
        for holder in module.modules():
            for block in holder if isinstance(holder, nn.ModuleList) else ():
                if not isinstance(block, FSDPModule):
                    fully_shard(block, mesh=mesh)
        if not isinstance(module, FSDPModule):
            fully_shard(module, mesh=mesh)
        return module

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
    if device.type == "cuda":
        torch.cuda.set_device(distributed.get_node_local_rank())
    if not distributed.is_initialized():
        distributed.init_process_group("gloo" if device.type == "cpu" else "nccl")
    return World(distributed.get_rank(), distributed.get_world_size())


def whole(value: Tensor) -> Tensor:
    """Put a parameter together from its pieces; all processes must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def put_whole(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, which every process has, into what may be a piece of it here."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)
