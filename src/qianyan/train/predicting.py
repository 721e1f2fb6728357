"""What the model answers while it is trained: a few held-out samples, token by token.

Greedy and without a cache: each token is one pass over the whole sample, which is short work for a
few samples and needs nothing but the model under training.
"""

import torch

from qianyan.models.attention import NoCache
from qianyan.models.registry import Model
from qianyan.train.examples import Example

MOST_TOKENS = 96
"""Tokens of an answer that is shown."""


@torch.no_grad()
def answer(model: Model, example: Example, *, end: int, most: int = MOST_TOKENS) -> list[int]:
    """Answer the last question of an example; ids of the answer, without its end."""
    inputs = example.inputs
    begin = _last_answer(example.learned)
    ids = inputs.prompt_token_ids[:begin]
    device = next(model.parameters()).device
    features = None
    if inputs.pixel_values is not None:
        pixels = torch.from_numpy(inputs.pixel_values).to(device)
        features = model.encode_images(pixels, inputs.grid_thw)
    while len(ids) < begin + most:
        places = model.place(ids, inputs.grid_thw, inputs.second_per_grid_ts).prompt
        hidden = model.embed(torch.tensor(ids, device=device), features)
        last = torch.tensor([len(ids) - 1], device=device)
        logits = model(hidden, places.to(device), NoCache([len(ids)]), logits_at=last)
        token_id = int(logits[0].argmax())
        if token_id == end:
            break
        ids = [*ids, token_id]
    return ids[begin:]


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
