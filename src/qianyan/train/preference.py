"""Direct preference optimisation (arXiv 2305.18290): of two answers the better one gains.

A pack holds pairs, the better answer's example before the worse one's. What is held against is the
model as the stage began: without its low-rank additions where it has some, else a copy of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from qianyan.models.registry import Model
from qianyan.train.lora import lora_layers, without_lora
from qianyan.train.packing import Pack, TokenLosses
from qianyan.train.recipe import Preference


class PairLosses(nn.Module):
    """Packs of pairs to the loss of each pair."""

    def __init__(self, losses: TokenLosses, preference: Preference) -> None:
        """Remember the model as it is now."""
        super().__init__()
        self.losses = losses
        self._preference = preference
        self._has_lora = any(True for _ in lora_layers(losses))
        if not self._has_lora:
            # Kept out of the module: it neither learns nor is shared out.
            self._before = [deepcopy(losses).requires_grad_(requires_grad=False)]

    @property
    def model(self) -> Model:
        """The model that learns."""
        return self.losses.model

    def forward(self, packed: Pack) -> Tensor:
        """Give the loss of each pair, (pairs,)."""
        taught = self.losses(packed)
        with torch.no_grad(), self._reference() as reference:
            known = reference(packed)
        gains = _by_example(known - taught, packed).view(-1, 2)  # (pairs, better|worse)
        margin = gains[:, 0] - gains[:, 1]
        loss = -logsigmoid(self._preference.beta * margin)
        if self._preference.sft_weight:
            lengths = torch.tensor(packed.num_learned, device=taught.device).view(-1, 2)[:, 0]
            answers = _by_example(taught, packed).view(-1, 2)[:, 0] / lengths
            loss = loss + self._preference.sft_weight * answers
        return loss

    @contextmanager
    def _reference(self) -> Iterator[nn.Module]:
        if not self._has_lora:
            yield self._before[0]
            return
        with without_lora(self.losses):
            yield self.losses


def _by_example(losses: Tensor, packed: Pack) -> Tensor:
    """Add the tokens' numbers up for each example, (examples,)."""
    parts = torch.split(losses, list(packed.num_learned))
    return torch.stack([part.sum() for part in parts])
