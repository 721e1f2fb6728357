"""The sampler against the logits processors of transformers, on random logits."""

from dataclasses import replace

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qianyan.engine.options import Sampling
from qianyan.engine.reply import Reply
from qianyan.engine.request import Request
from qianyan.engine.sampler import distribution, penalise

NUM_TOKENS = 500
PLAIN = Sampling(max_tokens=9, temperature=0.8)
CASES = [
    replace(PLAIN, min_p=0.05),
    replace(PLAIN, min_p=0.5, temperature=2.0),
    replace(PLAIN, min_p=1.0),
    replace(PLAIN, top_k=40, top_p=0.9, min_p=0.02),
    replace(PLAIN, logit_bias=((3, 4.0), (7, -100.0), (11, 0.25))),
    replace(PLAIN, logit_bias=((5, -3.0),), repetition_penalty=1.3, top_p=0.7, min_p=0.01),
]


class Silent:
    def push(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def processors(sampling: Sampling) -> LogitsProcessorList:
    """Compose what generate composes, in its order."""
    listed = LogitsProcessorList()
    if sampling.logit_bias:
        biases = {(token_id,): bias for token_id, bias in sampling.logit_bias}
        listed.append(SequenceBiasLogitsProcessor(biases))
    if sampling.repetition_penalty != 1.0:
        listed.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    listed.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        listed.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        listed.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        listed.append(MinPLogitsWarper(sampling.min_p))
    return listed


@pytest.mark.parametrize("sampling", CASES)
@pytest.mark.parametrize("seed", range(5))
def test_what_is_drawn_from_is_what_transformers_draws_from(sampling: Sampling, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(NUM_TOKENS, generator=generator) * 3
    prompt = torch.randint(NUM_TOKENS, (20,), generator=generator)
    expected = processors(sampling)(prompt.unsqueeze(0), logits.clone().unsqueeze(0))
    expected = expected.softmax(-1)[0].double()

    row = logits.clone()
    penalise(row, Request(0, prompt.tolist(), sampling, Reply(Silent())))
    falling, token_ids = distribution(row, sampling)
    ours = torch.zeros(NUM_TOKENS, dtype=torch.float64)
    ours[token_ids] = falling / falling.sum()

    assert torch.equal(ours > 0, expected > 0)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-9)
