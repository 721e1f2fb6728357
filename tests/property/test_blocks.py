"""The block pool under any order of work: no block lost, none shared by mistake."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qianyan.engine.blocks import BLOCK_SIZE, BlockPool, count_blocks

NUM_BLOCKS = 12
MAX_KEPT = 5


class Pool(RuleBasedStateMachine):
    """Sequences over {0, 1}, one letter a block: beginnings meet all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, max_kept=MAX_KEPT)
        self.sequences: list[tuple[list[int], str]] = []  # block table, what its full blocks hold
        self.contents: dict[int, str] = {}  # block -> the whole beginning that it ends

    @rule(
        letters=st.text("01", min_size=1, max_size=6),
        spare=st.integers(0, 3),
        room=st.integers(0, 3),
    )
    def admit(self, letters: str, spare: int, room: int) -> None:
        keys = [letters[: n + 1].encode() for n in range(len(letters))]
        known = self.pool.match(keys[:-1])
        for block, key in zip(known, keys, strict=False):
            assert self.contents[block] == key.decode(), "a block that holds something else"
        fresh = self.pool.allocate(len(letters) + spare - len(known), room=room)
        if fresh is None:
            assert len(letters) + spare - len(known) > self.pool.num_available
            self.pool.release(known)
            return
        table = known + fresh
        assert len(set(table)) == len(table)
        for index in range(len(known), len(letters)):
            self.contents[table[index]] = letters[: index + 1]
            self.pool.register(table[index], keys[index])
        for block in table[len(letters) :]:
            self.contents.pop(block, None)
        self.sequences.append((table, letters))

    @rule(which=st.integers(0, 100))
    def finish(self, which: int) -> None:
        if self.sequences:
            table, _ = self.sequences.pop(which % len(self.sequences))
            self.pool.release(table)

    @rule(which=st.integers(0, 100), count=st.integers(0, 3), room=st.integers(0, 2))
    def grow(self, which: int, count: int, room: int) -> None:
        if self.sequences:
            table, _ = self.sequences[which % len(self.sequences)]
            before, num_available = list(table), self.pool.num_available
            if self.pool.extend(table, count, room=room):
                assert table[: len(before)] == before
                assert len(set(table)) == len(before) + count
                for block in table[len(before) :]:
                    self.contents.pop(block, None)
            else:
                assert count > num_available
                assert table == before

    @rule(which=st.sets(st.integers(0, 100), max_size=4))
    def what_would_be_freed_is_told(self, which: set[int]) -> None:
        chosen = {index % len(self.sequences) for index in which} if self.sequences else set()
        leaving = [self.sequences[index][0] for index in chosen]
        staying = [t for i, (t, _) in enumerate(self.sequences) if i not in chosen]
        held = {block for table in leaving for block in table}
        held -= {block for table in staying for block in table}
        assert self.pool.count_freed(leaving) == len(held)

    @invariant()
    def every_block_is_held_or_available(self) -> None:
        held = {block for table, _ in self.sequences for block in table}
        assert len(held) + self.pool.num_available == NUM_BLOCKS
        holders = [sum(table.count(b) for table, _ in self.sequences) for b in range(NUM_BLOCKS)]
        assert holders == self.pool._holders

    @invariant()
    def what_is_held_still_holds_what_was_written(self) -> None:
        for table, letters in self.sequences:
            for index in range(len(letters)):
                assert self.contents[table[index]] == letters[: index + 1]

    @invariant()
    def the_index_is_consistent_and_bounded(self) -> None:
        pool = self.pool
        assert {block: key for key, block in pool._block_of.items()} == pool._key_of
        assert len(pool._kept) <= MAX_KEPT
        for block in pool._kept:
            assert pool._holders[block] == 0
            assert block in pool._key_of
            assert not pool._is_free[block]
        assert all(pool._holders[b] == 0 for b in range(NUM_BLOCKS) if pool._is_free[b])


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_run_is_preferred_and_pieces_are_taken_when_there_is_none() -> None:
    pool = BlockPool(6, max_kept=6)
    first, second, third = (pool.allocate(2) for _ in range(3))
    assert first == [0, 1]
    assert second == [2, 3]
    assert third == [4, 5]
    pool.release(first)
    pool.release(third)
    assert pool.allocate(4) == [0, 1, 4, 5]
    assert pool.allocate(1) is None


def test_room_is_left_between_neighbours_so_that_both_can_grow() -> None:
    pool = BlockPool(16, max_kept=0)
    first, second = pool.allocate(2, room=2), pool.allocate(3, room=2)
    assert first == [2, 3]
    assert second == [6, 7, 8]
    assert pool.extend(first, 2)
    assert first == [2, 3, 4, 5]
    assert pool.extend(first, 1)
    assert first == [2, 3, 4, 5, 0], "its neighbour is in the way"
    assert not pool.extend(first, 12)


def test_the_least_recently_used_beginning_is_forgotten_first() -> None:
    pool = BlockPool(4, max_kept=4)
    for name in (b"a", b"b", b"c", b"d"):
        (block,) = pool.allocate(1) or []
        pool.register(block, name)
        pool.release([block])
    pool.release(pool.match([b"a"]))  # used again
    pool.allocate(1)
    assert pool.match([b"b"]) == []
    assert pool.match([b"a"]) == [0]


def test_blocks_are_counted_upwards() -> None:
    counts = [count_blocks(n) for n in (0, 1, BLOCK_SIZE, BLOCK_SIZE + 1)]
    assert counts == [0, 1, 1, 2]
