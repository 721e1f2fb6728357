"""Low-rank additions to linear layers (arXiv 2106.09685), and the same on quantised ones (QLoRA).

A layer keeps its class and its names; two factors are registered beside its weight and what they
make of its input is added to its output. Merged into the weight the sum is the same.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import dropout

from qianyan.errors import ConfigError
from qianyan.models.quantize import QuantizedLinear
from qianyan.train.parts import part_of
from qianyan.train.recipe import Lora
from qianyan.train.world import World, whole

DOWN, UP = "lora_A", "lora_B"
"""(rank, in), drawn; (out, rank), zeros at first: the model begins as it was."""
ADDITION = "lora"
EVERY = "all"


def add_lora(model: nn.Module, lora: Lora, *, seed: int) -> list[str]:
    """Give the chosen layers their factors; returns the paths of the layers.

    Raises ConfigError for a target that no layer of the chosen parts is called.
    """
    chosen = list(_chosen(model, lora))
    found = {path.rpartition(".")[2] for path, _ in chosen}
    missing = [name for name in lora.targets if name != EVERY and name not in found]
    if missing or not chosen:
        known = sorted({path.rpartition(".")[2] for path, _ in _linears(model, lora)})
        raise ConfigError(
            f"lora.targets names {', '.join(missing) or 'no layer'}; expected some of "
            f"{', '.join(known)}, or {EVERY}."
        )
    drawn = torch.Generator().manual_seed(seed)
    for _, layer in chosen:
        device = next(layer.buffers() if isinstance(layer, QuantizedLinear) else
                      layer.parameters()).device  # fmt: skip
        bound = 1 / math.sqrt(layer.in_features)
        down = (torch.rand(lora.rank, layer.in_features, generator=drawn) * 2 - 1) * bound
        layer.register_parameter(DOWN, nn.Parameter(down.to(device)))
        up = torch.zeros(layer.out_features, lora.rank, device=device)
        layer.register_parameter(UP, nn.Parameter(up))
        addition = Addition(lora)
        setattr(layer, ADDITION, addition)
        layer.register_forward_hook(addition)
    return [path for path, _ in chosen]


class Addition:
    """Adds what the factors make of a layer's input to its output."""

    def __init__(self, lora: Lora) -> None:
        self.scale = lora.alpha / lora.rank
        self.dropout = lora.dropout
        self.is_on = True

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Give a layer's output with its addition; a forward hook."""
        if not self.is_on:
            return output
        hidden = dropout(inputs[0], self.dropout, training=layer.training)
        down: Tensor = getattr(layer, DOWN)
        up: Tensor = getattr(layer, UP)
        added = (hidden.to(down.dtype) @ down.t()) @ up.t()
        return output + (added * self.scale).to(output.dtype)

    @torch.no_grad()
    def weight(self, layer: nn.Module) -> Tensor:
        """Give what is to be added to a layer's weight, (out, in); all processes must ask."""
        up, down = whole(getattr(layer, UP)), whole(getattr(layer, DOWN))
        return up @ down * self.scale


def lora_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, Addition]]:
    """Yield every layer that has factors, with its path."""
    for path, layer in model.named_modules():
        addition = getattr(layer, ADDITION, None)
        if isinstance(addition, Addition):
            yield path, layer, addition


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Let the model be what it was before, for the length of a block."""
    hooks = [hook for _, _, hook in lora_layers(model)]
    for hook in hooks:
        hook.is_on = False
    try:
        yield
    finally:
        for hook in hooks:
            hook.is_on = True


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Let the weights of plain layers hold their additions, for the length of a block."""
    kept: list[tuple[nn.Linear, Tensor]] = []
    with torch.no_grad(), without_lora(model):
        for _, layer, addition in lora_layers(model):
            if isinstance(layer, nn.Linear):
                kept.append((layer, layer.weight.detach().clone()))
                layer.weight += addition.weight(layer).to(layer.weight.dtype)
        try:
            yield
        finally:
            for layer, weight in kept:
                layer.weight.copy_(weight)


def save_adapter(model: nn.Module, lora: Lora, folder: Path, *, world: World, source: str) -> None:
    """Write the factors alone, as peft reads them; every process takes part."""
    tensors = {
        f"base_model.model.{path}.{factor}.weight": whole(getattr(layer, factor).detach()).cpu()
        for path, layer, _ in lora_layers(model)
        for factor in (DOWN, UP)
    }
    if not world.is_first:
        return
    folder.mkdir(parents=True, exist_ok=True)
    paths = [path for path, _, _ in lora_layers(model)]
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": source,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "target_modules": paths,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    save_file({name: each.contiguous() for name, each in tensors.items()},
              folder / "adapter_model.safetensors", metadata={"format": "pt"})  # fmt: skip


def _linears(model: nn.Module, lora: Lora) -> Iterator[tuple[str, nn.Linear | QuantizedLinear]]:
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear | QuantizedLinear) and part_of(f"{path}.") in lora.parts:
            yield path, layer


def _chosen(model: nn.Module, lora: Lora) -> Iterator[tuple[str, nn.Linear | QuantizedLinear]]:
    for path, layer in _linears(model, lora):
        if EVERY in lora.targets or path.rpartition(".")[2] in lora.targets:
            yield path, layer
