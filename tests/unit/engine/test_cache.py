"""Keys and values over several passes: the same attention as over whole sequences at once."""

import pytest
import torch
from torch.testing import assert_close

from qianyan.engine.cache import GROWTH_TOKENS, DenseCache, FeatureCache
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


def test_features_beyond_the_limit_go_in_the_order_of_their_last_use() -> None:
    rows = torch.randn(2, 4)  # 32 bytes
    cache = FeatureCache(2 * rows.nbytes)
    cache.keep({b"one": rows})
    cache.keep({b"two": rows + 1})
    assert cache.find([b"one"]).keys() == {b"one"}
    cache.keep({b"three": rows + 2})
    assert cache.find([b"one", b"two", b"three"]).keys() == {b"one", b"three"}
    assert cache.num_bytes == 2 * rows.nbytes


def test_features_larger_than_the_limit_are_not_kept_and_push_nothing_out() -> None:
    rows = torch.randn(2, 4)
    cache = FeatureCache(rows.nbytes)
    cache.keep({b"fits": rows})
    cache.keep({b"too large": torch.randn(3, 4)})
    assert_close(cache.find([b"fits", b"too large"]), {b"fits": rows})


def test_features_kept_twice_count_once() -> None:
    cache = FeatureCache(1000)
    for _ in range(2):
        cache.keep({b"one": torch.zeros(2, 4)})
    assert cache.num_bytes == 32


def test_a_part_of_a_pass_does_not_hold_on_to_the_whole_of_it() -> None:
    cache = FeatureCache(1000)
    together = torch.randn(8, 4)
    cache.keep({b"part": together[2:4]})
    kept = cache.find([b"part"])[b"part"]
    assert_close(kept, together[2:4])
    assert kept.untyped_storage().nbytes() == kept.nbytes
