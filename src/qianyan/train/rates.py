"""The optimizer of a stage: who learns at which rate, and how the rates move."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from qianyan.train.parts import part_of, tower_block
from qianyan.train.recipe import Rates, Stage


def make_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], stage: Stage
) -> torch.optim.AdamW:
    """Make AdamW over the named parameters that learn, grouped by rate and decay.

    Each group has its highest rate as `peak`.
    """
    learning = [(name, each) for name, each in parameters if each.requires_grad]
    depths: dict[str, int] = {}
    for name, _ in learning:
        depths[part_of(name)] = max(depths.get(part_of(name), 0), 1 + tower_block(name))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in learning:
        decays = parameter.ndim > 1 and not _is_norm(name)
        decay = stage.optimizer.weight_decay if decays else 0.0
        peak = stage.rates.of(part_of(name)) * _layer_share(
            name, stage.rates, depths[part_of(name)]
        )
        groups.setdefault((peak, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": group, "lr": peak, "peak": peak, "weight_decay": decay}
            for (peak, decay), group in groups.items()
        ],
        betas=stage.optimizer.betas,
        eps=stage.optimizer.eps,
    )


def _is_norm(name: str) -> bool:
    return "norm" in name or ".ln_" in name


def _layer_share(name: str, rates: Rates, depth: int) -> float:
    """Give the share of its tower's rate that a parameter learns at; 1 outside towers."""
    if part_of(name) not in ("vision", "audio"):
        return 1.0
    return float(rates.layer_decay ** (depth - 1 - tower_block(name)))


def rate_share(rates: Rates, step: int, num_steps: int) -> float:
    """Give the share of the highest rate at a step, 0 being the first."""
    warmup = rates.warmup_steps or round(rates.warmup_share * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    if rates.schedule == "constant":
        return 1.0
    falling = (1 + math.cos(math.pi * progress)) / 2 if rates.schedule == "cosine" else 1 - progress
    return rates.floor + (1 - rates.floor) * falling


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group to a share of its highest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
