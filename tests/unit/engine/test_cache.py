"""Keys and values over several passes: the same attention as over whole sequences at once."""

import pytest
import torch
from torch.testing import assert_close

from qianyan.engine.blocks import BLOCK_SIZE, count_blocks
from qianyan.engine.cache import FeatureCache, PagedCache, Storage, is_whole, split_batches
from qianyan.engine.options import Sampling
from qianyan.engine.paged import MAX_GATHERED_ROWS
from qianyan.engine.plan import Chunk, Plan
from qianyan.engine.reply import Reply
from qianyan.engine.request import Request
from qianyan.models.attention import NoCache

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 4, 2, 8, 2


class Silent:
    def push(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


NUM_BLOCKS = 64
CPU = torch.device("cpu")


def request(request_id: int, num_tokens: int, blocks: list[int]) -> Request:
    """A request that sits on the first of the given blocks."""
    made = Request(request_id, [0] * num_tokens, Sampling(max_tokens=4), Reply(Silent()))
    made.block_table = blocks[: count_blocks(made.max_num_tokens)]
    return made


def heads(num_tokens: int, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, count, HEAD_DIM, generator=generator)


@pytest.mark.parametrize(
    "cuts",
    [
        {1: [5], 2: [5], 3: [7]},
        {1: [2, 3], 2: [1, 1, 3], 3: [7]},
        {1: [1] * 12, 2: [4], 3: [3, 9]},
        {1: [5 * BLOCK_SIZE + 7, 1, 1], 2: [1, 4 * BLOCK_SIZE, 1, 1]},
        {1: [5, 1, 3, 1], 2: [33, 1, 3, 1], 3: [9, 1, 3, 1, 1]},
        {1: [5, 1, 7, 2], 2: [33, 16, 3, 1], 3: [9, 1, 1, 4, 1]},
    ],
)
@pytest.mark.parametrize("order", ["runs", "scattered"])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("is_batched", [False, True])
def test_any_cut_into_passes_gives_the_same_result(
    cuts: dict[int, list[int]], order: str, window: int | None, is_batched: bool
) -> None:
    cache = PagedCache(NUM_BLOCKS, CPU, is_batched=is_batched)
    blocks = list(range(NUM_BLOCKS))
    if order == "scattered":
        blocks = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(1)).tolist()
    sequences = {
        each: (
            request(each, sum(sizes), blocks[each * 10 :]),
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
            out = view.attend(layer, query, key + layer, key - layer, window=window)
            sizes_now = [c.stop - c.start for c in chunks]
            for chunk, own in zip(chunks, torch.split(out, sizes_now), strict=True):
                found.setdefault((chunk.request.request_id, layer), []).append(own)
    for (each, layer), pieces in found.items():
        _, query, key = sequences[each]
        fresh = NoCache([len(query)])
        whole = fresh.attend(layer, query, key + layer, key - layer, window=window)
        assert_close(torch.cat(pieces), whole)


def chunk(num_tokens: int, start: int) -> Chunk:
    return Chunk(request(1, num_tokens, list(range(NUM_BLOCKS))), start, num_tokens, is_last=True)


def test_neighbours_with_a_few_new_tokens_share_one_call() -> None:
    begun, long = chunk(20, 0), chunk(60, 20)
    few = [chunk(5, 4), chunk(40, 30), chunk(21, 20)]
    assert split_batches([*few, long, begun, begun]) == [few, [long], [begun], [begun]]


def test_what_one_call_gathers_is_limited() -> None:
    """One very long request among short ones must not blow all of them up to its length."""
    made = request(1, MAX_GATHERED_ROWS // 4, [])
    long = Chunk(made, made.num_tokens - 1, made.num_tokens, is_last=True)
    short = chunk(5, 4)
    sizes = [len(batch) for batch in split_batches([short] * 6 + [long] + [short] * 6)]
    assert sizes == [6, 4, 3]


def test_what_lies_behind_a_request_does_not_reach_it() -> None:
    """Blocks come with what others left in them, be it not a number."""
    cache = PagedCache(NUM_BLOCKS, CPU, is_batched=True)
    query, key = heads(40, HEADS, 1), heads(40, KV_HEADS, 2)
    for pair in cache.storage.pair(0, key, num_rows=1):
        pair.fill_(torch.nan)
    for start, stop in ((0, 39), (39, 40)):
        both = [
            Chunk(request(each, 40, blocks), start, stop, is_last=True)
            for each, blocks in ((1, [3, 4, 5]), (2, [3, 4, 9]))
        ]
        rows = torch.cat([torch.arange(start, stop)] * 2)
        out = cache.step(Plan(tuple(both))).attend(0, query[rows], key[rows], key[rows])
    assert_close(out, NoCache([40]).attend(0, query, key, key)[[39, 39]])


def test_storage_costs_what_was_written() -> None:
    """Where memory is not promised for free it grows to what was needed; what was there stays."""
    storage = Storage(100)
    meta = torch.empty(1, KV_HEADS, HEAD_DIM, device="meta")
    sizes = [len(storage.pair(0, meta, num_rows=n)[0]) for n in (10, 11, 12, 90)]
    assert sizes == [10, 20, 20, 90]
    assert len(Storage(100).pair(0, meta.new_empty(1, 2, 3, device="cpu"), num_rows=1)[0]) == 100


@pytest.mark.parametrize(("device", "expected"), [("cuda", True), ("mps", False)])
def test_storage_is_made_once_where_graphs_read_it(device: str, *, expected: bool) -> None:
    assert is_whole(torch.device(device)) is expected


def test_a_block_shared_by_two_requests_is_read_by_both() -> None:
    cache = PagedCache(NUM_BLOCKS, CPU)
    first, second = request(1, 40, [3, 4, 5]), request(2, 40, [3, 9, 7])
    query, key = heads(40, HEADS, 1), heads(40, KV_HEADS, 2)
    cache.step(Plan((Chunk(first, 0, 40, is_last=True),))).attend(0, query, key, key + 1)
    view = cache.step(Plan((Chunk(second, BLOCK_SIZE, 40, is_last=True),)))
    rows = slice(BLOCK_SIZE, None)
    out = view.attend(0, query[rows], key[rows], key[rows] + 1)
    assert_close(out, NoCache([40]).attend(0, query, key, key + 1)[rows])


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
