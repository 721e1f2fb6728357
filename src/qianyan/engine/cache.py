"""Keys and values of running requests: each request has buffers of its own, which grow.

`DenseCache.step` hands the model one `KVCache` for one forward pass; that view is valid until the
next call. Another way of keeping (pages, shared prefixes) is another class with the same two
methods; the model does not change.

`FeatureCache` keeps what the vision tower made of pictures beyond their requests, by content.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qianyan.engine.scheduler import Plan
from qianyan.models.attention import KVCache, NoCache, causal_attention

GROWTH_TOKENS = 256
"""Smallest step by which a buffer grows; it at least doubles, so copies stay rare."""


@dataclass
class Sequence:
    """One request's keys and values, a pair of (capacity, kv_heads, head_dim) for each layer."""

    max_num_tokens: int
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def store(self, layer: int, start: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values from `start` on and return all up to them."""
        stop = start + len(key)
        kept = self.layers.get(layer)
        if kept is None or len(kept[0]) < stop:
            kept = self.layers[layer] = self._grow(kept, start, stop, key)
        kept[0][start:stop] = key
        kept[1][start:stop] = value
        return kept[0][:stop], kept[1][:stop]

    def _grow(
        self, kept: tuple[Tensor, Tensor] | None, start: int, stop: int, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        capacity = min(max(stop, 2 * start, GROWTH_TOKENS), self.max_num_tokens)
        grown = like.new_empty(capacity, *like.shape[1:]), like.new_empty(capacity, *like.shape[1:])
        if kept is not None:
            for old, new in zip(kept, grown, strict=True):
                new[:start] = old[:start]
        return grown


@dataclass(frozen=True)
class Span:
    """Where one chunk's tokens lie: `first` to `first + count` in the packed pass."""

    sequence: Sequence
    start: int
    first: int
    count: int

    @property
    def rows(self) -> slice:
        """The chunk's rows in packed tensors."""
        return slice(self.first, self.first + self.count)


class StepCache(KVCache):
    """The requests of one forward pass, packed one after another.

    Chunks that begin a prompt need nothing but their own keys, so neighbouring ones are attended
    together; the others look back at what their request has kept.
    """

    def __init__(self, spans: list[Span]) -> None:
        self._spans = spans
        self._groups: list[list[Span]] = []
        for span in spans:
            if self._groups and span.start == 0 and self._groups[-1][-1].start == 0:
                self._groups[-1].append(span)
            else:
                self._groups.append([span])

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, window: int | None = None
    ) -> Tensor:
        """Store this pass's keys and values, then attend causally inside each request."""
        out = torch.empty_like(query)
        for group in self._groups:
            rows = slice(group[0].first, group[-1].rows.stop)
            for span in group:
                kept = span.sequence.store(layer, span.start, key[span.rows], value[span.rows])
            if group[0].start == 0:
                fresh = NoCache([span.count for span in group])
                out[rows] = fresh.attend(layer, query[rows], key[rows], value[rows], window=window)
            else:
                out[rows] = causal_attention(
                    query[rows], *kept, offset=group[0].start, window=window
                )
        return out


class DenseCache:
    """All running requests' keys and values."""

    def __init__(self) -> None:
        self._sequences: dict[int, Sequence] = {}

    def step(self, plan: Plan) -> KVCache:
        """Give the model its cache for one forward pass over the plan's chunks."""
        spans = []
        first = 0
        for chunk in plan.chunks:
            request = chunk.request
            sequence = self._sequences.setdefault(
                request.request_id, Sequence(request.max_num_tokens)
            )
            spans.append(Span(sequence, chunk.start, first, chunk.stop - chunk.start))
            first += chunk.stop - chunk.start
        return StepCache(spans)

    def release(self, request_ids: Iterable[int]) -> None:
        """Free what these requests kept; unknown ids are fine."""
        for request_id in request_ids:
            self._sequences.pop(request_id, None)


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
