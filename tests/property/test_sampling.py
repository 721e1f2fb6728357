"""The sampler against the plain definition of each filter."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qianyan.engine.options import Sampling
from qianyan.engine.reply import Reply
from qianyan.engine.request import Request
from qianyan.engine.sampler import Sampler


class Silent:
    def push(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def support(logits: list[float], sampling: Sampling, seen: set[int]) -> set[int]:
    """Tell which tokens may be drawn, by the definitions, in the order of Hugging Face."""
    penalty = sampling.repetition_penalty
    scores = [
        score if i not in seen else score * penalty if score < 0 else score / penalty
        for i, score in enumerate(logits)
    ]
    # margins of rounding: a token on an edge may fall either way
    scores = [score / sampling.temperature for score in scores]
    if sampling.top_k:
        last = sorted(scores, reverse=True)[min(sampling.top_k, len(scores)) - 1]
        scores = [score if score > last - 1e-3 else -math.inf for score in scores]
    peak = max(scores)
    weights = [math.exp(score - peak) for score in scores]
    order = sorted(range(len(scores)), key=lambda i: -weights[i])
    kept, before, last = set(), 0.0, 1.0
    for i in order:
        is_tied = weights[i] > last - 1e-6  # float32 may see no difference
        if weights[i] > 0 and (before < sampling.top_p + 1e-5 or is_tied):
            kept.add(i)
            last = weights[i]
        before += weights[i] / sum(weights)
    return kept


numbers = st.floats(-30, 30, width=32)


@settings(max_examples=200, deadline=None)
@given(
    logits=st.lists(numbers, min_size=1, max_size=12),
    seen=st.sets(st.integers(0, 11)),
    temperature=st.floats(0.05, 2),
    top_k=st.integers(0, 15),
    top_p=st.floats(0.01, 1),
    repetition_penalty=st.floats(0.5, 2),
    seed=st.integers(0, 1000),
)
def test_a_drawn_token_is_one_that_the_filters_leave(
    logits: list[float], seen: set[int], seed: int, **how: float
) -> None:
    seen = {token_id for token_id in seen if token_id < len(logits)}
    sampling = Sampling(max_tokens=9, seed=seed, **how)  # type: ignore[arg-type]
    request = Request(0, sorted(seen), sampling, Reply(Silent()))
    sampler = Sampler(num_tokens=len(logits))
    padded = torch.tensor([[*logits, 99.0]])
    drawn = {sampler(padded.clone(), [request])[0].token_id for _ in range(8)}
    assert drawn <= support(logits, sampling, seen)


@settings(max_examples=60, deadline=None)
@given(logits=st.lists(numbers, min_size=2, max_size=12), seed=st.integers(0, 1000))
def test_neighbours_in_the_batch_change_nothing(logits: list[float], seed: int) -> None:
    sampler = Sampler(num_tokens=len(logits))

    def make(**how: float) -> Request:
        return Request(0, [0], Sampling(max_tokens=9, logprobs=2, **how), Reply(Silent()))  # type: ignore[arg-type]

    alone, batched = make(temperature=1.0, seed=seed), make(temperature=1.0, seed=seed)
    others = [make(), make(temperature=0.5, top_k=2, repetition_penalty=1.5)]
    row = torch.tensor([logits])
    for _ in range(4):
        expected = sampler(row.clone(), [alone])
        found = sampler(row.repeat(3, 1), [others[0], batched, others[1]])
        assert found[1] == expected[0]
