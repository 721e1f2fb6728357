"""How many pictures' questions are answered together: what memory, the engine and the cores bear.

More of them at once share one reading of the weights, until computing takes as long as reading;
beyond that they only take memory and make the first one wait.
"""

import os
from dataclasses import dataclass
from typing import Literal

import torch

from qianyan.engine.costs import kept_bytes_per_token
from qianyan.engine.engine import Engine
from qianyan.engine.free_memory import find_free_bytes
from qianyan.engine.sizes import part_of
from qianyan.inputs.patches import PatchConfig
from qianyan.inputs.squares import SquareConfig
from qianyan.models.registry import Model

Limit = Literal["given", "memory", "requests", "cores", "pictures"]

MEMORY_SHARE = 0.5
"""Of the memory that is free behind the weights; the rest is for other programs and slips."""
PROMPT_TOKENS = 768
"""Words of an inspection's question, generously."""
ACTIVATION_COPIES = 4
"""Arrays of the tower's widest layer that live at the same time, generously."""
ANSWERS_PER_CORE = 4
"""A core multiplies some 4 numbers in the time in which it reads one of them (bfloat16, AVX-512,
and int8 likewise): from so many answers on, a pass takes longer with each."""
ANSWERS_ON_DEVICE = 64
MOST = 256


@dataclass(frozen=True, kw_only=True)
class BatchSize:
    """Pictures that are answered together, and why not more."""

    size: int
    limit: Limit

    def within(self, pictures: int) -> "BatchSize":
        """Take no more than there are."""
        if pictures >= self.size:
            return self
        return BatchSize(size=max(pictures, 1), limit="pictures")


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one picture asks of the engine: questions at once, tokens of an answer."""

    questions: int
    answer_tokens: int


def choose_batch(engine: Engine, need: Need, *, device: str) -> BatchSize:
    """Choose a number from what is free now that the model is loaded."""
    where = torch.device(device)
    tokens, patches, row_bytes = _largest_picture(engine.processor.pictures)
    tokens = need.questions * (tokens + PROMPT_TOKENS + need.answer_tokens)
    kept = tokens * kept_bytes_per_token(engine.model)
    rows = 2 * need.questions * patches * row_bytes  # of its own, and packed with others
    passes = ACTIVATION_COPIES * patches * 4 * _widest(engine.model)
    free = find_free_bytes(where)
    limits: dict[Limit, int] = {
        "cores": cores_limit(where),
        "requests": engine.config.max_num_requests // need.questions,
    }
    room = engine.config.max_cache_tokens
    if room is not None:
        limits["memory"] = room // tokens
    if free is not None:
        fitting = int(MEMORY_SHARE * free) // (kept + rows + passes)
        limits["memory"] = min(fitting, limits.get("memory", fitting))
    limit = min(limits, key=lambda name: limits[name])
    return BatchSize(size=max(1, limits[limit]), limit=limit)


def cores_limit(device: torch.device) -> int:
    """Say from how many answers on a pass takes longer with each."""
    if device.type != "cpu":
        return ANSWERS_ON_DEVICE
    return min(ANSWERS_PER_CORE * (os.cpu_count() or 1), ANSWERS_ON_DEVICE)


def _largest_picture(pictures: PatchConfig | SquareConfig | None) -> tuple[int, int, int]:
    """Give tokens and patches of the largest picture that is looked at, and bytes of a patch."""
    if pictures is None:
        return 0, 0, 0
    if isinstance(pictures, SquareConfig):
        patches = (pictures.image_size // pictures.patch_size) ** 2
        return pictures.n_queries, patches, 4 * 3 * pictures.patch_size**2
    patches = pictures.max_pixels // pictures.patch_size**2
    return patches // pictures.merge_size**2, patches, 4 * pictures.row_size


def _widest(model: Model) -> int:
    """Give the widest output of the tower's matrices; 0 without a tower."""
    widths = (
        int(module.out_features)
        for name, module in model.named_modules()
        if hasattr(module, "out_features") and part_of(name) == "vision"
    )
    return max(widths, default=0)
