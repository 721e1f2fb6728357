"""From logits to one token per request.

The order is that of Hugging Face generate: logit bias, repetition penalty, temperature, top-k,
top-p, min-p; presence and frequency penalties (OpenAI) follow the repetition penalty, and the
grammar's mask precedes all.
Each request draws from its own random numbers, so an answer does not depend on its neighbours.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from qianyan.engine.mask import forbid
from qianyan.engine.options import Sampling
from qianyan.engine.request import Logprobs, Request, Sampled
from qianyan.errors import CheckpointError


class Sampler:
    """Draw tokens from logits; knows how many rows of the vocabulary are real tokens."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens

    def __call__(self, logits: Tensor, requests: Sequence[Request]) -> list[Sampled]:
        """Draw one token for each request.

        Logits are (requests, vocab), float; they are changed in place. A request whose row is not
        of numbers gets its `error` set, and a token that means nothing.
        """
        if not requests:
            return []
        num_tokens = min(self._num_tokens, logits.shape[-1])
        recorded = _model_logprobs(logits[:, :num_tokens], requests)
        forbid(logits, requests, num_tokens)
        for row, request in zip(logits, requests, strict=True):
            penalise(row, request)
        likeliest = logits.argmax(dim=-1)  # where one is, that of a NaN
        highest = logits.gather(1, likeliest.unsqueeze(1)).squeeze(1)
        is_number = highest < torch.inf
        # One look at both: a device is waited for once a step.
        token_ids, are_numbers = torch.stack((likeliest, is_number)).tolist()
        for index, request in enumerate(requests):
            if not are_numbers[index]:
                request.error = CheckpointError(
                    "The model's output is not a number; expected finite logits. "
                    'Try dtype="float32" or "bfloat16".'
                )
            elif request.sampling.temperature > 0:
                token_ids[index] = draw(logits[index], request.sampling, request.random)
        return [
            Sampled(token_id=token_id, logprobs=_with_chosen(row, request, token_id))
            for token_id, row, request in zip(token_ids, recorded, requests, strict=True)
        ]


def _model_logprobs(logits: Tensor, requests: Sequence[Request]) -> list[Tensor | None]:
    """Compute log-probabilities (vocab,) before any change, for the requests that want them."""
    wanted = [request.sampling.logprobs is not None for request in requests]
    if not any(wanted):
        return [None] * len(wanted)
    rows = iter(logits[torch.tensor(wanted, device=logits.device)].log_softmax(dim=-1))
    return [next(rows) if is_wanted else None for is_wanted in wanted]


def _with_chosen(row: Tensor | None, request: Request, token_id: int) -> Logprobs | None:
    """Return the likeliest tokens, likeliest first, and the chosen one."""
    if row is None:
        return None
    count = min(request.sampling.logprobs or 0, row.shape[-1])
    top = row.topk(count)
    logprobs = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    if token_id not in logprobs:
        logprobs[token_id] = row[token_id].item()
    return logprobs


def penalise(row: Tensor, request: Request) -> None:
    """Add logit biases and apply the penalties to a row of logits (vocab,), in place.

    The repetition penalty is for tokens of prompt and output, the others for the output's.
    """
    sampling = request.sampling
    if sampling.logit_bias:
        token_ids, biases = zip(*sampling.logit_bias, strict=True)
        row[_index(token_ids, row)] += torch.tensor(biases, dtype=row.dtype, device=row.device)
    if sampling.repetition_penalty != 1.0:
        penalise_seen(row, request.seen_token_ids, sampling.repetition_penalty)
    if (sampling.presence_penalty or sampling.frequency_penalty) and request.output_token_ids:
        counts = Counter(request.output_token_ids)
        times = torch.tensor(list(counts.values()), dtype=row.dtype, device=row.device)
        penalties = sampling.presence_penalty + sampling.frequency_penalty * times
        row[_index(counts, row)] -= penalties


def penalise_seen(row: Tensor, token_ids: Iterable[int], penalty: float) -> None:
    """Apply a repetition penalty to the logits (vocab,) of tokens, in place."""
    seen = _index(token_ids, row)
    scores = row[seen]
    row[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)


def _index(token_ids: Iterable[int], row: Tensor) -> Tensor:
    return torch.tensor(list(token_ids), dtype=torch.long, device=row.device)


def distribution(row: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Give the probabilities (vocab,) that are drawn from, falling, and their token ids.

    On the CPU and in float64, so that every device draws alike; not normalised.
    """
    scores, token_ids = (row.cpu() / sampling.temperature).sort(descending=True, stable=True)
    if sampling.top_k:
        # ties with the k-th score stay in, as in Hugging Face
        last = scores[min(sampling.top_k, len(scores)) - 1]
        scores = scores.masked_fill(scores < last, -torch.inf)
    probabilities = scores.softmax(dim=-1).double()
    if sampling.top_p < 1.0:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities[before >= sampling.top_p] = 0.0  # the likeliest token has 0 before it
    if sampling.min_p:
        probabilities[probabilities < sampling.min_p * probabilities[0]] = 0.0
    return probabilities, token_ids


def draw(row: Tensor, sampling: Sampling, random: np.random.Generator) -> int:
    """Draw a token from a row of logits (vocab,) with the next random number."""
    probabilities, token_ids = distribution(row, sampling)
    cumulative = probabilities.cumsum(dim=-1)
    point = random.random() * cumulative[-1]
    # right=True: a token of probability 0 is never drawn
    index = int(torch.searchsorted(cumulative, point, right=True))
    return int(token_ids[min(index, int((probabilities > 0).sum()) - 1)])
