"""Packs: several examples as one pass, each attending to itself alone, positions its own.

A packed pass gives every example the loss that it has alone. Sequences are filled from a small
buffer, the first that fits first, so that little is left empty and the order stays reproducible.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qianyan.models.attention import NoCache
from qianyan.models.omni.thinker import Thinker
from qianyan.models.positions import Grid
from qianyan.models.qwen import QWenLMHeadModel
from qianyan.models.registry import Model
from qianyan.models.vision_language import VisionLanguageModel
from qianyan.train.examples import Example

FRAMES_OF_A_TOKEN = 4
BUFFERED_SEQUENCES = 2
"""Sequences' worth of tokens that wait while one is filled; pictures are held as pixels."""


class _Sized(Protocol):
    def __len__(self) -> int: ...


Item = TypeVar("Item", bound=_Sized)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Examples as one pass; `logits_at` are the tokens before those that are learned."""

    sources: tuple[str, ...]
    input_ids: Tensor  # (tokens,)
    position_ids: Tensor  # (axes, tokens)
    lengths: tuple[int, ...]
    logits_at: Tensor  # (learned,)
    targets: Tensor  # (learned,)
    num_learned: tuple[int, ...]  # of each example
    pixel_values: Tensor | None
    grid_thw: tuple[Grid, ...]
    input_features: Tensor | None  # (frames, mel), of all sounds
    num_audio_frames: tuple[int, ...]  # of each sound

    def to(self, device: torch.device | str) -> "Pack":
        """Give the same on a device."""
        tensors: dict[str, Any] = {
            one.name: value.to(device)
            for one in fields(self)
            if isinstance(value := getattr(self, one.name), Tensor)
        }
        return replace(self, **tensors)


def pack(examples: Sequence[Example]) -> Pack:
    """Lay examples one after another."""
    starts = np.cumsum([0, *(len(example) for example in examples)]).tolist()
    at = [
        start + index
        for start, example in zip(starts, examples, strict=False)
        for index in example.learned
    ]
    input_ids = torch.tensor([id_ for each in examples for id_ in each.inputs.prompt_token_ids])
    inputs = [example.inputs for example in examples]
    return Pack(
        sources=tuple(example.source for example in examples),
        input_ids=input_ids,
        position_ids=torch.cat([example.position_ids for example in examples], dim=1),
        lengths=tuple(len(example) for example in examples),
        logits_at=torch.tensor(at) - 1,
        targets=input_ids[at],
        num_learned=tuple(len(example.learned) for example in examples),
        pixel_values=_joined(one.pixel_values for one in inputs),
        grid_thw=tuple(grid for one in inputs for grid in one.grid_thw),
        input_features=_joined(one.input_features for one in inputs),
        num_audio_frames=tuple(count for one in inputs for count in one.num_audio_frames),
    )


def _joined(arrays: Iterable[np.ndarray | None]) -> Tensor | None:
    """Lay what there is one after another; None for nothing."""
    present = [array for array in arrays if array is not None]
    return torch.from_numpy(np.concatenate(present)) if present else None


class TokenLosses(nn.Module):
    """A model as what training asks of it: a pack to the loss of each learned token.

    All that is done with the parameters is done inside this module's call, so that they may lie in
    pieces on several devices between two calls.
    """

    def __init__(self, model: Model, *, runs_all: bool) -> None:
        """Wrap a model; with `runs_all` a pack without pictures or sounds is given blank ones.

        Their features count nothing, but every pack then runs, and trains, the same modules:
        devices whose packs differ would wait for one another without end.
        """
        super().__init__()
        self.model = model
        self._blank = blank_picture(model) if runs_all else None
        self._hush = blank_sound(model) if runs_all else None

    def forward(self, packed: Pack) -> Tensor:
        """Give the losses in float32, (learned,)."""
        hidden, unused = self._embed(packed)
        logits = self.model(
            hidden, packed.position_ids, NoCache(packed.lengths), logits_at=packed.logits_at
        )
        losses = cross_entropy(logits, packed.targets, reduction="none")
        for features in unused:
            losses = losses + 0 * features.float().sum()
        return losses

    def _embed(self, packed: Pack) -> tuple[Tensor, list[Tensor]]:
        """Embed a pack, (tokens, hidden); also the features of what only keeps modules running."""
        seen = heard = None
        unused: list[Tensor] = []
        if packed.pixel_values is not None:
            seen = self.model.encode_images(packed.pixel_values, packed.grid_thw)
        elif self._blank is not None:
            pixels, grid = self._blank
            unused.append(self.model.encode_images(pixels.to(packed.input_ids.device), [grid]))
        if not isinstance(self.model, Thinker):
            return self.model.embed(packed.input_ids, seen), unused
        if packed.input_features is not None:
            heard = self.model.encode_audio(packed.input_features, packed.num_audio_frames)
        elif self._hush is not None:
            hush = self._hush.to(packed.input_ids.device)
            unused.append(self.model.encode_audio(hush, [len(hush)]))
        return self.model.embed(packed.input_ids, seen, heard), unused


def blank_sound(model: Model) -> Tensor | None:
    """Give the mel frames of the shortest sound that makes a token; None for what does not hear."""
    if not isinstance(model, Thinker):
        return None
    return torch.zeros(FRAMES_OF_A_TOKEN, model.config.audio.num_mel_bins)


def blank_picture(model: Model) -> tuple[Tensor, Grid] | None:
    """Give the smallest picture that a model sees, as pixels and grid; None for text only."""
    if isinstance(model, VisionLanguageModel):
        vision = model.config.vision
        merge = vision.spatial_merge_size
        return torch.zeros(merge**2, vision.patch_values), (1, merge, merge)
    if isinstance(model, QWenLMHeadModel) and model.config.visual is not None:
        visual = model.config.visual
        side = visual.grid_side
        return torch.zeros(1, 3, visual.image_size, visual.image_size), (1, side, side)
    return None


class Filler(Generic[Item]):
    """Fills sequences of at most `max_tokens` from a stream; what waits is part of its state."""

    def __init__(self, stream: Iterator[Item], *, max_tokens: int, joins: bool) -> None:
        self._stream, self._max_tokens, self._joins = stream, max_tokens, joins
        self.waiting: list[Item] = []

    def next(self) -> list[Item]:
        """Give the next sequence's items; empty when the stream has ended and nothing waits."""
        if not self._joins:
            return [one] if (one := next(self._stream, None)) is not None else []
        wanted = BUFFERED_SEQUENCES * self._max_tokens
        while (
            sum(map(len, self.waiting)) < wanted and (one := next(self._stream, None)) is not None
        ):
            self.waiting.append(one)
        room, taken, left = self._max_tokens, [], []
        for item in self.waiting:
            if len(item) <= room:
                taken.append(item)
                room -= len(item)
            else:
                left.append(item)
        self.waiting = left
        return taken
