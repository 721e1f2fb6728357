"""What the model answers while it is trained: a few held-out samples, token by token.

Greedy and without a cache: each token is one pass over the whole sample, which is short work for a
few samples and needs nothing but the model under training.
"""

import torch
from torch import Tensor

from qianyan.inputs.processor import ModelInputs
from qianyan.models.attention import NoCache
from qianyan.models.omni.thinker import Thinker
from qianyan.models.positions import continue_after_largest
from qianyan.models.registry import Model
from qianyan.train.examples import Example

MOST_TOKENS = 96
"""Tokens of an answer that is shown."""


@torch.no_grad()
def answer(
    model: Model, example: Example, *, end: int, vocab_size: int, most: int = MOST_TOKENS
) -> list[int]:
    """Answer the last question of an example; ids of the answer, without its end.

    Only ids below `vocab_size` are said: rows behind them fill a matrix up.
    """
    begin = _last_answer(example.learned)
    device = next(model.parameters()).device
    places = continue_after_largest(example.position_ids[:, :begin])
    hidden = _embed(model, example.inputs)[:begin]
    answered: list[int] = []
    while len(answered) < most:
        last = torch.tensor([len(hidden) - 1], device=device)
        position_ids = places.at(0, len(hidden)).to(device)
        logits = model(hidden, position_ids, NoCache([len(hidden)]), logits_at=last)
        token_id = int(logits[0, :vocab_size].argmax())
        if token_id == end:
            break
        answered.append(token_id)
        # A word, whichever it is: what holds a picture's place in a prompt holds none here.
        hidden = torch.cat([hidden, model.embed(torch.tensor([token_id], device=device))])
    return answered


def _embed(model: Model, inputs: ModelInputs) -> Tensor:
    """Embed a whole sample with its pictures and sounds, (tokens, hidden)."""
    device = next(model.parameters()).device
    features: list[Tensor | None] = [None]
    if inputs.pixel_values is not None:
        pixels = torch.from_numpy(inputs.pixel_values).to(device)
        features = [model.encode_images(pixels, inputs.grid_thw)]
    if inputs.input_features is not None and isinstance(model, Thinker):
        frames = torch.from_numpy(inputs.input_features).to(device)
        features.append(model.encode_audio(frames, inputs.num_audio_frames))
    return model.embed(torch.tensor(inputs.prompt_token_ids, device=device), *features)


def expected(example: Example) -> list[int]:
    """Give the ids of the answer that the sample has, without its end."""
    return example.inputs.prompt_token_ids[_last_answer(example.learned) : example.learned[-1]]


def _last_answer(learned: tuple[int, ...]) -> int:
    """Give the index at which the last run of learned tokens begins."""
    begin = learned[-1]
    for index in reversed(learned):
        if index < begin - 1:
            break
        begin = index
    return begin
