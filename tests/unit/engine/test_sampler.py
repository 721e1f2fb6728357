"""From logits to tokens, without a model."""

import math
from typing import Any

import pytest
import torch

from qianyan.engine.options import Sampling
from qianyan.engine.reply import Reply
from qianyan.engine.request import Request
from qianyan.engine.sampler import Sampler
from qianyan.errors import CheckpointError

LOGITS = [1.0, 3.0, 2.0, 0.0, 99.0]
"""Four tokens, and one row of padding that must never be drawn."""


class Silent:
    def push(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def request(prompt: tuple[int, ...] = (), answered: tuple[int, ...] = (), **how: Any) -> Request:
    made = Request(0, list(prompt), Sampling(max_tokens=99, **how), Reply(Silent()))
    made.output_token_ids += answered
    made.seen_token_ids.update(answered)
    return made


def draw(*requests: Request, logits: list[float] = LOGITS) -> list[int]:
    sampler = Sampler(num_tokens=4)
    rows = torch.tensor([logits] * len(requests))
    return [sampled.token_id for sampled in sampler(rows, requests)]


def drawn(times: int = 400, **how: float) -> set[int]:
    """Draw many times from one request and tell which tokens came."""
    each = request(temperature=1.0, seed=1, **how)
    return {draw(each)[0] for _ in range(times)}


def test_temperature_zero_takes_the_likeliest_real_token() -> None:
    assert draw(request()) == [1]


def test_padding_is_never_drawn() -> None:
    assert drawn() == {0, 1, 2, 3}


def test_top_k_keeps_the_k_likeliest() -> None:
    assert drawn(top_k=2) == {1, 2}


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    probabilities = torch.tensor(LOGITS[:4]).softmax(-1)  # 0.09, 0.64, 0.24, 0.03
    assert probabilities[1] < 0.8 < probabilities[1] + probabilities[2]
    assert drawn(top_p=0.8) == {1, 2}
    assert drawn(top_p=0.0001) == {1}


def test_frequencies_follow_the_temperature() -> None:
    each = request(temperature=2.0, seed=3)
    count = sum(draw(each)[0] == 1 for _ in range(4000))
    expected = float((torch.tensor(LOGITS[:4]) / 2.0).softmax(-1)[1])
    assert count / 4000 == pytest.approx(expected, abs=0.03)


def test_the_same_seed_draws_the_same_tokens_alone_or_in_a_batch() -> None:
    alone = request(temperature=1.5, seed=11)
    tokens = [draw(alone)[0] for _ in range(30)]
    batched = [request(temperature=1.5, seed=11), request(temperature=1.0, seed=5), request()]
    assert [draw(*batched)[0] for _ in range(30)] == tokens
    assert len(set(tokens)) > 1


def test_a_repetition_penalty_counts_prompt_and_answer() -> None:
    assert draw(request(prompt=(1,), repetition_penalty=2.0)) == [2]
    assert draw(request(prompt=(1,), answered=(2,), repetition_penalty=4.0)) == [0]


def test_a_repetition_penalty_lowers_negative_scores_too() -> None:
    logits = [-1.0, -1.1, -9.0, -9.0, 0.0]
    assert draw(request(prompt=(0,), repetition_penalty=1.5), logits=logits) == [1]


def test_a_presence_penalty_counts_the_answer_only_and_once() -> None:
    assert draw(request(prompt=(1,), presence_penalty=2.0)) == [1]
    assert draw(request(answered=(1, 1), presence_penalty=2.0)) == [2]
    assert draw(request(answered=(1, 1), presence_penalty=0.9)) == [1]


def test_a_frequency_penalty_counts_every_time() -> None:
    assert draw(request(prompt=(1, 1, 1), frequency_penalty=2.0)) == [1]
    assert draw(request(answered=(1,), frequency_penalty=0.9)) == [1]
    assert draw(request(answered=(1, 1), frequency_penalty=0.9)) == [2]
    assert draw(request(answered=(1, 3, 3), frequency_penalty=-2.0, presence_penalty=1.0)) == [1]


def test_min_p_keeps_what_is_likely_beside_the_likeliest() -> None:
    probabilities = torch.tensor(LOGITS[:4]).softmax(-1)  # 0.09, 0.64, 0.24, 0.03
    assert probabilities[0] < 0.2 * probabilities[1] < probabilities[2]
    assert drawn(min_p=0.2) == {1, 2}
    assert drawn(min_p=1.0) == {1}


def test_a_logit_bias_forbids_or_forces_a_token() -> None:
    assert draw(request(logit_bias=((1, -100.0),))) == [2]
    assert draw(request(logit_bias=((3, 100.0), (0, 1.0)))) == [3]


def test_log_probabilities_are_the_models_own() -> None:
    sampler = Sampler(num_tokens=4)
    each = request(prompt=(1,), repetition_penalty=4.0, logprobs=2)
    sampled = sampler(torch.tensor([LOGITS]), [each])[0]
    expected = torch.tensor(LOGITS[:4]).log_softmax(-1)
    assert sampled.token_id == 2
    assert sampled.logprobs == pytest.approx({1: expected[1].item(), 2: expected[2].item()})
    assert math.fsum(math.exp(value) for value in expected.tolist()) == pytest.approx(1)


def test_the_chosen_token_is_among_the_log_probabilities() -> None:
    sampler = Sampler(num_tokens=4)
    plain, with_zero = (
        request(prompt=(1, 2), repetition_penalty=9.0, logprobs=1),
        request(logprobs=0),
    )
    first, second = sampler(torch.tensor([LOGITS] * 2), [plain, with_zero])
    assert first.logprobs is not None
    assert second.logprobs is not None
    assert list(first.logprobs) == [1, first.token_id]
    assert list(second.logprobs) == [1]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_logits_that_are_no_numbers_end_their_own_request(broken: float) -> None:
    whole, failing, drawing = request(), request(), request(temperature=1.0, seed=1)
    rows = torch.tensor([LOGITS, [1.0, broken, 0.0, 0.0, 0.0], LOGITS])
    expected = draw(request(temperature=1.0, seed=1))
    samples = Sampler(num_tokens=4)(rows, [whole, failing, drawing])
    assert isinstance(failing.error, CheckpointError)
    assert "not a number" in str(failing.error)
    assert whole.error is None
    assert [samples[0].token_id, samples[2].token_id] == [1, *expected]
