"""Keys and values of requests in the blocks that the scheduler gave them.

`PagedCache.step` hands the model one `KVCache` for one forward pass; that view is valid until the
next call. Another way of keeping is another class with the same method; the model does not change.

`FeatureCache` keeps what the vision tower made of pictures beyond their requests, by content.
"""

import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from qianyan.engine.blocks import BLOCK_SIZE, count_blocks
from qianyan.engine.paged import MAX_GATHERED_ROWS, MAX_NEW_TOKENS, Batch
from qianyan.engine.plan import Chunk, Plan
from qianyan.models.attention import KVCache, NoCache, causal_attention

Rows = slice | Tensor
"""Places in the storage: a stretch, or one place for each token."""


class Storage:
    """Keys and values of all blocks, a pair of (rows, kv_heads, head_dim) for each layer.

    On a processor all rows exist at once and cost memory only when they are first written. CUDA
    devices get all of them too: their memory was counted for it, recorded graphs need rows that
    stay where they are, and growing would hold two copies. On other devices, and where the system
    counts what is promised (Windows), the pair grows to what was needed so far, at least doubling.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def pair(self, layer: int, like: Tensor, *, num_rows: int) -> tuple[Tensor, Tensor]:
        """Give a layer's keys and values with at least `num_rows` rows, shaped as `like`."""
        held = self._layers.get(layer)
        if held is not None and len(held[0]) >= num_rows:
            return held
        capacity = self.num_rows
        if not is_whole(like.device):
            capacity = min(max(num_rows, 2 * len(held[0]) if held else 0), self.num_rows)
        grown = like.new_empty(capacity, *like.shape[1:]), like.new_empty(capacity, *like.shape[1:])
        for old, new in zip(held or (), grown, strict=False):
            new[: len(old)] = old
        self._layers[layer] = grown
        return grown


def is_whole(device: torch.device) -> bool:
    """Whether a device's storage is made once, whole, and stays where it is."""
    return device.type == "cuda" or (device.type == "cpu" and sys.platform != "win32")


@dataclass(frozen=True)
class Span:
    """Where one chunk's tokens lie: `first` to `first + count` in the packed pass.

    `written` are the rows of the storage for these tokens, `read` for all of the sequence up to
    them; `start` tokens came before.
    """

    written: Rows
    read: Rows
    start: int
    first: int
    count: int

    @property
    def rows(self) -> slice:
        """The chunk's rows in packed tensors."""
        return slice(self.first, self.first + self.count)


def find_rows(block_table: list[int], start: int, stop: int, device: torch.device) -> Rows:
    """Find the rows of tokens start to stop: a stretch where the blocks lie one after another."""
    first = start // BLOCK_SIZE
    blocks = block_table[first : count_blocks(stop)]
    offset, count = start - first * BLOCK_SIZE, stop - start
    if blocks == list(range(blocks[0], blocks[0] + len(blocks))):
        begin = blocks[0] * BLOCK_SIZE + offset
        return slice(begin, begin + count)
    places = torch.tensor(blocks, device=device).unsqueeze(1) * BLOCK_SIZE
    places = places + torch.arange(BLOCK_SIZE, device=device)  # (blocks, block_size)
    return places.flatten()[offset : offset + count]


class StepCache(KVCache):
    """The requests of one forward pass, packed one after another.

    Chunks that begin a prompt need nothing but their own keys, so neighbouring ones are attended
    together; the others look back at what their request has kept, in batches or one by one.
    """

    def __init__(
        self,
        storage: Storage,
        spans: list[Span],
        batches: Sequence[tuple[Rows, Batch]] = (),
        *,
        num_rows: int,
    ) -> None:
        """Take the chunks of a pass; `num_rows` of the storage hold all that they touch.

        `batches` are rows of the packed pass, those that stand several times among them, and what
        attends them; `spans` are all the others.
        """
        self._storage = storage
        self._num_rows = num_rows
        self._batches = batches
        self._groups: list[list[Span]] = []
        for span in spans:
            last = self._groups[-1][-1] if self._groups else None
            if last and span.start == last.start == 0 and span.first == last.rows.stop:
                self._groups[-1].append(span)
            else:
                self._groups.append([span])

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, window: int | None = None
    ) -> Tensor:
        """Store this pass's keys and values, then attend causally inside each request."""
        out = torch.empty_like(query)
        keys, values = self._storage.pair(layer, key, num_rows=self._num_rows)
        for rows, batch in self._batches:
            keys[batch.written] = key[rows]
            values[batch.written] = value[rows]
            out[rows] = batch.attend(query[rows], keys, values, window=window)
        for group in self._groups:
            rows = slice(group[0].first, group[-1].rows.stop)
            for span in group:
                keys[span.written] = key[span.rows]
                values[span.written] = value[span.rows]
            if group[0].start == 0:
                fresh = NoCache([span.count for span in group])
                out[rows] = fresh.attend(layer, query[rows], key[rows], value[rows], window=window)
            else:
                (span,) = group
                out[rows] = causal_attention(
                    query[rows],
                    keys[span.read],
                    values[span.read],
                    offset=span.start,
                    window=window,
                )
        return out


class PagedCache:
    """All keys and values, in blocks; one block more than the scheduler has is for padding."""

    def __init__(
        self, num_blocks: int, device: torch.device, *, is_batched: bool | None = None
    ) -> None:
        """Make room for `num_blocks`.

        With `is_batched`, requests that go on behind what they have kept are attended in one call;
        None chooses what suits the device.
        """
        self.padding_block = num_blocks
        self.storage = Storage((num_blocks + 1) * BLOCK_SIZE)
        self._device = device
        self._is_batched = device.type != "cpu" if is_batched is None else is_batched

    def step(self, plan: Plan) -> KVCache:
        """Give the model its cache for one forward pass over the plan's chunks."""
        spans: list[Span] = []
        batches: list[tuple[Rows, Batch]] = []
        first = last_block = 0
        alone = [[chunk] for chunk in plan.chunks]
        for chunks in split_batches(plan.chunks) if self._is_batched else alone:
            if len(chunks) > 1:
                batches.append(self._batch(chunks, first))
                first += sum(chunk.stop - chunk.start for chunk in chunks)
            else:
                spans.append(self._span(chunks[0], first))
                first = spans[-1].rows.stop
            for chunk in chunks:
                last_block = max(last_block, *chunk.request.block_table[: count_blocks(chunk.stop)])
        return StepCache(self.storage, spans, batches, num_rows=(last_block + 1) * BLOCK_SIZE)

    def _span(self, chunk: Chunk, first: int) -> Span:
        table = chunk.request.block_table
        written = find_rows(table, chunk.start, chunk.stop, self._device)
        read = find_rows(table, 0, chunk.stop, self._device) if chunk.start else written
        return Span(written, read, chunk.start, first, chunk.stop - chunk.start)

    def _batch(self, chunks: Sequence[Chunk], first: int) -> tuple[Rows, Batch]:
        """Put the tables of several requests into one, and bring it to the device at once.

        The first token is the row `first` of the packed pass.
        """
        tables = [chunk.request.block_table[: count_blocks(chunk.stop)] for chunk in chunks]
        counts = [chunk.stop - chunk.start for chunk in chunks]
        firsts = accumulate(counts[:-1], initial=first)
        width, most = max(map(len, tables)), max(counts)
        lines = []
        for chunk, table, count, row in zip(chunks, tables, counts, firsts, strict=True):
            places = [min(index, count - 1) for index in range(most)]
            lines.append(
                [row + place for place in places]
                + [chunk.start + place for place in places]
                + table
                + [self.padding_block] * (width - len(table))
            )
        packed = torch.tensor(lines).to(self._device)  # (requests, 2*count + blocks)
        rows, at, block_tables = torch.split(packed, [most, most, width], dim=1)
        is_even = min(counts) == most
        return (
            slice(first, first + most * len(chunks)) if is_even else rows.flatten(),
            Batch(block_tables, at),
        )


def split_batches(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Part a pass into neighbours that one call can attend, and single chunks."""
    batches: list[list[Chunk]] = []
    longest = 0
    for chunk in chunks:
        own = count_blocks(chunk.stop) * BLOCK_SIZE
        longest = max(longest, own)
        if (
            batches
            and _goes_on(batches[-1][-1])
            and _goes_on(chunk)
            and (len(batches[-1]) + 1) * longest <= MAX_GATHERED_ROWS
        ):
            batches[-1].append(chunk)
        else:
            batches.append([chunk])
            longest = own
    return batches


def _goes_on(chunk: Chunk) -> bool:
    """Whether a chunk is a few tokens behind what its request has kept."""
    return chunk.start > 0 and chunk.stop - chunk.start <= MAX_NEW_TOKENS


class FeatureCache:
    """Features of pictures and videos by the digest of their pixels, least recently used first.

    A second question about a picture, or the same picture in several requests, needs no second
    pass of the tower. What is found stays valid when it is dropped here: tensors are shared and
    never written to.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()

    def find(self, digests: Iterable[bytes]) -> dict[bytes, Tensor]:
        """Give the features that are kept, and count them as just used."""
        found = {digest: self._features[digest] for digest in digests if digest in self._features}
        for digest in found:
            self._features.move_to_end(digest)
        return found

    def keep(self, features: Mapping[bytes, Tensor]) -> None:
        """Keep features (merged_tokens, hidden) within `max_bytes`; the oldest make way."""
        for digest, own in features.items():
            if own.nbytes > self.max_bytes or digest in self._features:
                continue
            # A part of a larger tensor would hold on to all of it.
            is_part = own.untyped_storage().nbytes() > own.nbytes
            self._features[digest] = own.clone() if is_part else own
            self.num_bytes += own.nbytes
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self._features.popitem(last=False)[1].nbytes
