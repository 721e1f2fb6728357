"""What the Talker of Qwen2.5-Omni reads of a conversation: two numbers' sum for every token.

H + X is the Thinker's last hidden state at a token and the embedding that went in there. The
engine's passes keep neither: they leave out what a prompt shares with an earlier one, and compute
an answer's states many requests at a time. So whoever is to speak follows the conversation with a
Thinker pass of its own, a few tokens behind the answer: the prompt once more, then its tokens.
"""

import torch
from torch import Tensor

from qianyan.models.omni.sequence import SequenceCache
from qianyan.models.omni.thinker import Thinker
from qianyan.models.positions import Positions

PASS_TOKENS = 2048  # of a prompt, in one pass


class ThinkerStates:
    """Follows one conversation through the Thinker, from the beginning."""

    def __init__(self, thinker: Thinker, positions: Positions) -> None:
        self._thinker, self._positions = thinker, positions
        self._cache = SequenceCache()
        self._num_tokens = 0
        self._device = next(thinker.parameters()).device

    @torch.inference_mode()
    def prompt(self, input_ids: list[int], rows: Tensor, features: Tensor | None) -> Tensor:
        """Give (tokens, hidden) for a prompt with the features of media at its `rows`.

        Of what stands for a picture, video or sound it is the hidden state alone.
        """
        embedded = self._thinker.embed(torch.tensor(input_ids, device=self._device))
        rows = rows.to(self._device)
        if features is not None:
            embedded[rows] = features.to(embedded.dtype)
        hidden = torch.cat([self._pass(some) for some in torch.split(embedded, PASS_TOKENS)])
        embedded[rows] = 0
        return hidden + embedded

    @torch.inference_mode()
    def tokens(self, token_ids: list[int]) -> Tensor:
        """Give (tokens, hidden) for the answer's next tokens, in one pass."""
        embedded = self._thinker.embed(torch.tensor(token_ids, device=self._device))
        return self._pass(embedded) + embedded

    @torch.inference_mode()
    def embed(self, token_id: int) -> Tensor:
        """Give the embedding of a token, (1, hidden), which does not join the conversation."""
        return self._thinker.embed(torch.tensor([token_id], device=self._device))

    def _pass(self, embedded: Tensor) -> Tensor:
        start = self._num_tokens
        self._num_tokens += len(embedded)
        positions = self._positions.at(start, self._num_tokens)
        hidden: Tensor = self._thinker.model(embedded, positions, self._cache)
        return hidden
