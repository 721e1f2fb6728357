"""Which block of the cache belongs to whom: fixed-size blocks, shared where prompts begin alike.

Knows no torch. A block holds the keys and values of `BLOCK_SIZE` consecutive tokens of one
sequence. A full block has a key, which says everything that its contents depend on: the key of the
block before it, its tokens, where they stand, and the pictures among them. A request whose first
blocks have known keys starts behind them (vLLM's automatic prefix caching, arXiv 2309.06180,
section 4.4, is the model). Blocks that nobody holds are kept for that until they are needed or
there are more than `max_kept`; the least recently used go first.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

BLOCK_SIZE = 16
"""Tokens of one block: small enough to share most of a prompt, large enough to be found fast."""


def count_blocks(num_tokens: int) -> int:
    """Count the blocks that hold so many tokens."""
    return -(-num_tokens // BLOCK_SIZE)


class BlockPool:
    """A fixed number of blocks, by number; each is free, kept, or held by some requests."""

    def __init__(self, num_blocks: int, *, max_kept: int) -> None:
        self.num_blocks = num_blocks
        self.max_kept = max_kept
        self._is_free = bytearray(b"\1" * num_blocks)  # searched for runs of free blocks
        self._holders = [0] * num_blocks
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # full, held by nobody

    @property
    def num_available(self) -> int:
        """Count the blocks that nobody holds."""
        return self._is_free.count(1) + len(self._kept)

    def count_freed(self, tables: Iterable[Sequence[int]]) -> int:
        """Count the blocks that nobody would hold if these tables were released."""
        holds = Counter(block for table in tables for block in table)
        return sum(self._holders[block] == count for block, count in holds.items())

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """Hold and return the blocks of the longest known beginning; the caller releases them."""
        blocks = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            self._kept.pop(block, None)
            self._holders[block] += 1
            blocks.append(block)
        return blocks

    def allocate(self, count: int, *, room: int = 0) -> list[int] | None:
        """Hold `count` blocks with nothing in them; None, and nothing held, when there are not.

        In one run where there is one, because a run needs no gathering when it is read, and where
        possible with `room` free blocks on both sides, so that neighbours can grow. Kept blocks
        are forgotten only where there are not enough free ones, never to make a run.
        """
        if count > self.num_available:
            return None
        while self._is_free.count(1) < count:
            self._forget(next(iter(self._kept)))
        blocks = self._find_free(count, room)
        for block in blocks:
            self._is_free[block] = 0
            self._holders[block] = 1
        return blocks

    def extend(self, table: list[int], count: int, *, room: int = 0) -> bool:
        """Hold `count` more blocks for a table, the next ones where they are free, or hold none."""
        following = range(table[-1] + 1, table[-1] + 1 + count)
        if self._is_free[following.start : following.stop] == b"\1" * count:
            for block in following:
                self._is_free[block] = 0
                self._holders[block] = 1
            table += following
            return True
        fresh = self.allocate(count, room=room)
        table += fresh or []
        return fresh is not None

    def _find_free(self, count: int, room: int) -> list[int]:
        """Choose among the free blocks: the first run with most room around it, else pieces."""
        for before, after in ((room, room), (0, room), (0, 0)):
            start = self._is_free.find(b"\1" * (before + count + after)) if count else 0
            if start >= 0:
                return list(range(start + before, start + before + count))
        return [block for block, is_free in enumerate(self._is_free) if is_free][:count]

    def register(self, block: int, key: bytes) -> None:
        """Make a held, full block known by its key; the first block of a key stays its block."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def unregister(self, blocks: Sequence[int]) -> None:
        """Forget what held blocks are known by."""
        for block in blocks:
            if block in self._key_of:
                del self._block_of[self._key_of.pop(block)]

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of held blocks; the last of a sequence become the first to be forgotten."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._key_of:
                    self._kept[block] = None
                else:
                    self._is_free[block] = 1
        while len(self._kept) > self.max_kept:
            self._forget(next(iter(self._kept)))

    def _forget(self, block: int) -> None:
        """Make a kept block free."""
        del self._kept[block]
        del self._block_of[self._key_of.pop(block)]
        self._is_free[block] = 1
