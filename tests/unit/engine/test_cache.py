"""Keys and values over several passes: the same attention as over whole sequences at once."""

import pytest
import torch
from torch.testing import assert_close

from qianyan.engine.cache import GROWTH_TOKENS, DenseCache
from qianyan.engine.options import Sampling
from qianyan.engine.reply import Reply
from qianyan.engine.request import Request
from qianyan.engine.scheduler import Chunk, Plan
from qianyan.models.attention import NoCache

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 4, 2, 8, 2


class Silent:
    def push(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def request(request_id: int, num_tokens: int) -> Request:
    return Request(request_id, [0] * num_tokens, Sampling(max_tokens=4), Reply(Silent()))


def heads(num_tokens: int, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, count, HEAD_DIM, generator=generator)


@pytest.mark.parametrize(
    "cuts",
    [
        {1: [5], 2: [5], 3: [7]},
        {1: [2, 3], 2: [1, 1, 3], 3: [7]},
        {1: [1] * 12, 2: [4], 3: [3, 9]},
        {1: [GROWTH_TOKENS + 7, 1, 1], 2: [1, GROWTH_TOKENS, 1, 1]},
    ],
)
def test_any_cut_into_passes_gives_the_same_result(cuts: dict[int, list[int]]) -> None:
    cache = DenseCache()
    sequences = {
        each: (
            request(each, sum(sizes)),
            *(heads(sum(sizes), n, each * 10 + n) for n in (HEADS, KV_HEADS)),
        )
        for each, sizes in cuts.items()
    }
    done = dict.fromkeys(cuts, 0)
    found: dict[tuple[int, int], list[torch.Tensor]] = {}
    for turn in range(max(map(len, cuts.values()))):
        chunks = []
        for each, sizes in cuts.items():
            if turn < len(sizes):
                begin, end = done[each], done[each] + sizes[turn]
                chunks.append(Chunk(sequences[each][0], begin, end, is_last=True))
                done[each] = end
        view = cache.step(Plan(tuple(chunks)))
        for layer in range(LAYERS):
            query, key = (
                torch.cat([sequences[c.request.request_id][i][c.start : c.stop] for c in chunks])
                for i in (1, 2)
            )
            out = view.attend(layer, query, key + layer, key - layer)
            sizes_now = [c.stop - c.start for c in chunks]
            for chunk, own in zip(chunks, torch.split(out, sizes_now), strict=True):
                found.setdefault((chunk.request.request_id, layer), []).append(own)
    for (each, layer), pieces in found.items():
        _, query, key = sequences[each]
        whole = NoCache([len(query)]).attend(layer, query, key + layer, key - layer)
        assert_close(torch.cat(pieces), whole)


def test_buffers_never_outgrow_the_request() -> None:
    cache = DenseCache()
    one = request(1, 10)
    for start, stop in ((0, 10), (10, 11), (11, 14)):
        key = heads(stop - start, KV_HEADS, 0)
        view = cache.step(Plan((Chunk(one, start, stop, is_last=True),)))
        view.attend(0, heads(stop - start, HEADS, 1), key, key)
    assert len(cache._sequences[1].layers[0][0]) == one.max_num_tokens


def test_a_released_request_keeps_nothing() -> None:
    cache = DenseCache()
    cache.step(Plan((Chunk(request(1, 2), 0, 2, is_last=True),)))
    cache.release([1, 99])
    assert not cache._sequences
