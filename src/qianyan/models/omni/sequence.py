"""The keys and values of one sequence that grows by itself.

Speech is made beside the engine: its passes know one sequence each, and nothing of blocks.
"""

from torch import Tensor

from qianyan.models.attention import KVCache, causal_attention

FIRST_ROOM = 256  # tokens; doubled whenever it is used up


class SequenceCache(KVCache):
    """Keeps one sequence's keys and values in memory that doubles as it fills."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}  # (room, kv_heads, head_dim) each
        self._lengths: dict[int, int] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, window: int | None = None
    ) -> Tensor:
        """Attend from new tokens over all before them and themselves."""
        start = self._lengths.get(layer, 0)
        stop = start + len(key)
        keys, values = self._with_room(layer, key, value, stop)
        keys[start:stop], values[start:stop] = key, value
        self._lengths[layer] = stop
        return causal_attention(query, keys[:stop], values[:stop], offset=start, window=window)

    def _with_room(
        self, layer: int, key: Tensor, value: Tensor, stop: int
    ) -> tuple[Tensor, Tensor]:
        """Give a layer's memory, larger than before where `stop` tokens would not fit."""
        kept = self._kept.get(layer)
        if kept is None or len(kept[0]) < stop:
            room = max(FIRST_ROOM, 2 * stop)
            grown = key.new_empty(room, *key.shape[1:]), value.new_empty(room, *value.shape[1:])
            for new, old in zip(grown, kept or (), strict=False):
                new[: len(old)] = old
            self._kept[layer] = kept = grown
        return kept
