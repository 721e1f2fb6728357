"""The parts of a model that stages train or freeze, told by the names of their parameters.

A merger (Qwen2-VL), resampler (Qwen-VL) or projector (of sounds) lies inside its tower's module; it
is a part of its own, because recipes that freeze the tower mostly train it.
"""

import re
from collections.abc import Collection
from typing import Literal, get_args

from torch import nn

from qianyan.errors import ConfigError

Part = Literal["vision", "audio", "merger", "projector", "language", "embeddings"]
PARTS: tuple[Part, ...] = get_args(Part)
IN_FRONT: frozenset[Part] = frozenset(("vision", "audio", "merger", "projector"))
"""What only a prompt with pictures or sounds passes through."""

_MERGER = re.compile(r"visual\.(merger|attn_pool|ln_post)\.|visual\.proj$")
_PROJECTOR = re.compile(r"audio_tower\.(ln_post|proj)\.")
_UNUSED = re.compile(r"audio_tower\.audio_bos_eos_token\.")  # saved, and never computed with
_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|lm_head)\.")
_BLOCK = re.compile(r"\b(?:blocks|resblocks|audio_tower\.layers)\.(\d+)\.")


def part_of(name: str) -> Part:
    """Say which part a parameter belongs to."""
    if _MERGER.search(name):
        return "merger"
    if _PROJECTOR.search(name):
        return "projector"
    if "visual." in name:
        return "vision"
    if "audio_tower." in name:
        return "audio"
    return "embeddings" if _EMBEDDINGS.search(name) else "language"


def tower_block(name: str) -> int:
    """Say which block of its tower a parameter lies in: 0 upwards, -1 before the blocks."""
    found = _BLOCK.search(name)
    return int(found[1]) if found else -1


def freeze(model: nn.Module, trained: Collection[Part], *, with_lora: bool = False) -> list[str]:
    """Let only the named parts learn; returns the names of the parameters that do.

    Low-rank additions learn `with_lora`, whatever part they lie in.

    Raises ConfigError for a part that this model has not.
    """
    present = {part_of(name) for name, _ in model.named_parameters()}
    for part in trained:
        if part not in present:
            raise ConfigError(
                f"The model has no {part} to train; expected some of "
                f"{', '.join(part for part in PARTS if part in present)}."
            )
    learning = []
    for name, parameter in model.named_parameters():
        is_lora = name.rpartition(".")[2].startswith("lora_")
        learns = with_lora if is_lora else part_of(name) in trained
        parameter.requires_grad_(learns and not _UNUSED.search(name))
        if parameter.requires_grad:
            learning.append(name)
    return learning
