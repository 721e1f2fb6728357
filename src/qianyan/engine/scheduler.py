"""Which tokens of which requests run in the next forward pass, and what follows from the result.

Knows no torch. Decoding requests go first, so that a long prompt never stalls them; prompts are
computed in chunks that share what is left of `max_batch_tokens`. What the cache already knows of a
prompt's beginning is not computed again (`blocks.py`).

Requests are ranked when they arrive, by priority and then by age: one step of priority is worth
`AGING_PASSES` passes, so nobody waits for ever. A request is seated with the blocks of its present
tokens, while `ROOM_TOKENS` of every running answer would still fit, and takes more block by block.
Where none is left, the last in rank gives its blocks back and waits to be computed again; its
tokens are never drawn again. The first in rank always goes on.

What is computed for later, with no answer wanted yet, comes after all others: it is seated last and
gives its seat and its blocks to whoever needs them.
"""

import itertools
from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

from qianyan.engine.blocks import BLOCK_SIZE, BlockPool, count_blocks
from qianyan.engine.plan import Chunk, Draw, Plan
from qianyan.engine.request import Request, Sampled
from qianyan.errors import ConfigError, GrammarError

AGING_PASSES = 1000
"""Passes by which a request may arrive later for each step of priority and still go first."""
ROOM_TOKENS = 256
"""Tokens of an answer for which there must be room before another request is seated."""
DRAFT_TOKENS = 3
"""What is guessed ahead unasked, where reading the weights takes most of a pass; with the token
before them as many rows as the kernels for quantised weights take at memory's pace."""
BESIDE_TOKENS = 256
"""Tokens that are computed for later in a pass that others wait for."""
LATER = 1 << 62
"""The rank of what is computed for later, behind every number of passes."""
RECOVERY_PASSES = 16
"""Passes after which one may be twice as large again as those that found memory."""


MAY_BE_ZERO = frozenset({"max_reuse_tokens", "max_draft_tokens", "use_graphs", "use_speech"})


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Limits of an engine.

    max_model_len: tokens of prompt and answer together; None takes the checkpoint's
        max_position_embeddings. Never more than max_cache_tokens.
    max_num_requests: requests that run at the same time; more wait in line.
    max_batch_tokens: tokens of one forward pass; longer prompts are computed in chunks.
    max_cache_tokens: tokens whose keys and values are kept at the same time, all requests; None
        takes half of the memory that is free when the model is loaded (`free_memory.py`).
    max_reuse_tokens: tokens of finished requests whose keys and values stay for prompts that begin
        alike; 0 keeps none. They make way for running requests.
    max_encode_patches: image patches of one call of the vision tower that serves several
        requests; one request's own pictures are always encoded together.
    max_draft_tokens: tokens that one pass guesses ahead, from what followed the same words before,
        less one for each further answer in it; answers stay the same. 0 guesses nothing. None takes
        3 on a processor and 0 on other devices, where the gain is not measured yet.
    use_graphs: whether CUDA devices record their decoding steps once and replay them; no other
        device does.
    use_speech: whether a checkpoint that speaks may be asked to: memory is set aside for what
        speaks, which is loaded when speech is asked for. Without it only the Thinker is there.
    """

    max_model_len: int | None = None
    max_num_requests: int = 64
    max_batch_tokens: int = 2048
    max_cache_tokens: int | None = None
    max_reuse_tokens: int = 16_384
    max_encode_patches: int = 16_384
    max_draft_tokens: int | None = None
    use_graphs: bool = True
    use_speech: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in MAY_BE_ZERO else 1
            if value is not None and value < least:
                raise ConfigError(f"{field.name} is {value}; expected at least {least}.")

    def on(self, device: str) -> "EngineConfig":
        """Fill in what depends on the kind of device, such as "cpu" or "cuda"."""
        if self.max_draft_tokens is not None:
            return self
        return replace(self, max_draft_tokens=DRAFT_TOKENS if device == "cpu" else 0)


class Scheduler:
    """Decides by rank, within the limits of an EngineConfig whose cache has a size."""

    def __init__(self, config: EngineConfig) -> None:
        assert config.max_cache_tokens is not None
        self.waiting: list[Request] = []  # both in order of rank
        self.running: list[Request] = []
        self._config = config
        self.pool = BlockPool(
            count_blocks(config.max_cache_tokens), max_kept=config.max_reuse_tokens // BLOCK_SIZE
        )
        self._num_passes = 0
        self._max_pass_tokens = config.max_batch_tokens
        self._max_draft_tokens = config.max_draft_tokens or 0
        self._recovers_at = 0
        self._arrivals = itertools.count()

    def add(self, request: Request) -> bool:
        """Queue a request that fits into the cache by itself; the caller has checked that.

        False, and it is finished, where it wants no answer and all of it is known.
        """
        assert count_blocks(request.max_num_tokens) <= self.pool.num_blocks
        due = self._num_passes + request.sampling.priority * AGING_PASSES
        if not request.is_answered:
            due = LATER
            if self._knows(request):
                request.know_all()
                return False
        request.rank = (due, next(self._arrivals))
        insort(self.waiting, request, key=_rank)
        return True

    def plan(self) -> Plan:
        """Choose the next forward pass; an empty plan when there is nothing to run."""
        self._grow()
        while self.waiting and self._admit(self.waiting[0]):
            pass
        return Plan(tuple(self._cut()))

    def take(self, draws: Sequence[Draw], samples: Sequence[Sampled]) -> list[Draw]:
        """Append what was drawn; return the rows that are to be drawn from next."""
        for draw, sampled in zip(draws, samples, strict=True):
            request = draw.chunk.request
            if request.error is None:
                try:
                    request.append_sampled(sampled, has_own_pass=draw.index == 0)
                except GrammarError as error:
                    request.error = error
        return [further for draw in draws if (further := draw.next()) is not None]

    def settle(self, plan: Plan) -> list[Request]:
        """Record what ran, after all its tokens were drawn; return the requests that finished."""
        self._num_passes += 1
        for chunk in plan.chunks:
            if chunk.request.error is None:
                chunk.request.num_computed_tokens = chunk.num_known + chunk.num_agreed
                chunk.request.note_drafts(len(chunk.drafts), chunk.num_agreed)
                if not (chunk.request.is_answered or chunk.request.is_catching_up):
                    chunk.request.finish_reason = "stop"
                for block, key in chunk.request.new_full_blocks():
                    self.pool.register(block, key)
        self._recover()
        finished = [request for request in self.running if request.is_finished]
        for request in finished:
            if request.error is not None:  # what it computed may be no numbers
                self.pool.unregister(request.block_table)
        self.running = [request for request in self.running if not request.is_finished]
        self._release(finished)
        return finished

    def halve(self, plan: Plan) -> bool:
        """Make passes half as large as one that found no memory; False for the smallest one."""
        if plan.num_tokens == 1:
            self._max_pass_tokens = self._config.max_batch_tokens
            return False
        self._max_pass_tokens = plan.num_tokens // 2
        self._recovers_at = self._num_passes + RECOVERY_PASSES
        return True

    def drop(self, requests: Iterable[Request]) -> None:
        """Forget requests that nobody waits for any more."""
        gone = {request.request_id for request in requests}
        self._release(request for request in self.running if request.request_id in gone)
        self.running = [request for request in self.running if request.request_id not in gone]
        self.waiting = [request for request in self.waiting if request.request_id not in gone]

    def _knows(self, request: Request) -> bool:
        """Whether all of a prompt of whole blocks is known; if so it counts as just used."""
        keys = request.block_keys(request.num_tokens // BLOCK_SIZE)
        known = self.pool.match(keys)
        self.pool.release(known)
        return bool(keys) and len(known) == len(keys)

    def _recover(self) -> None:
        """Let passes grow again some time after one found no memory."""
        most = self._config.max_batch_tokens
        if self._max_pass_tokens < most and self._num_passes >= self._recovers_at:
            self._max_pass_tokens = min(2 * self._max_pass_tokens, most)
            self._recovers_at += RECOVERY_PASSES

    def _cut(self) -> Iterator[Chunk]:
        """Share a pass's tokens among the running requests, answers before prompts."""
        room = self._max_pass_tokens
        num_answers = sum(not request.is_catching_up for request in self.running)
        num_drafts = max(0, self._max_draft_tokens + 1 - num_answers)
        for request in sorted(self.running, key=_is_catching_up):
            start = request.num_computed_tokens
            most = room if request.is_answered or not num_answers else min(room, BESIDE_TOKENS)
            stop = min(request.num_tokens, start + most)
            if stop == start:
                return
            drafts = self._draft(request, min(room - (stop - start), num_drafts))
            num_drafts -= len(drafts)
            stop += len(drafts)
            is_last = request.is_answered and stop - len(drafts) == request.num_tokens
            yield Chunk(request, start, stop, is_last, drafts)
            room -= stop - start

    def _draft(self, request: Request, most: int) -> tuple[int, ...]:
        """Guess an answer's next tokens, as far as they find room without anybody making way."""
        most = min(most, request.max_num_tokens - request.num_tokens - 1)
        if most <= 0 or request.is_catching_up:
            return ()
        drafts = request.propose(most, limit=self._max_draft_tokens)
        table = request.block_table
        more = count_blocks(request.num_tokens + len(drafts)) - len(table)
        if more > 0:
            self.pool.extend(table, more, room=_room_blocks(request))
        return drafts[: len(table) * BLOCK_SIZE - request.num_tokens]

    def _grow(self) -> None:
        """Give running requests blocks for the tokens they know, the first in rank first."""
        index = 0
        while index < len(self.running):
            request = self.running[index]
            count = count_blocks(request.num_tokens) - len(request.block_table)
            if self.pool.extend(request.block_table, count, room=_room_blocks(request)):
                index += 1
            else:
                assert len(self.running) > 1, "one request alone always fits"
                self._preempt(self.running[-1])

    def _admit(self, request: Request) -> bool:
        """Seat a waiting request, in place of others if they come after it; say whether it sits."""
        # The last token is always computed: the next one follows from its logits.
        known = self.pool.match(request.block_keys((request.num_tokens - 1) // BLOCK_SIZE))
        count = count_blocks(request.num_tokens) - len(known)
        num_staying = self._find_place(request, count)
        if num_staying is None:
            self.pool.release(known)
            return False
        while len(self.running) > num_staying:
            self._preempt(self.running[-1])
        fresh = self.pool.allocate(count, room=_room_blocks(request))
        assert fresh is not None
        request.sit(known, fresh)
        self.waiting.remove(request)
        insort(self.running, request, key=_rank)
        return True

    def _find_place(self, request: Request, count: int) -> int | None:
        """Count the running requests that may stay when one with `count` new blocks is seated.

        None when it has to wait.
        """
        for num_staying in range(len(self.running), -1, -1):
            staying, leaving = self.running[:num_staying], self.running[num_staying:]
            if leaving and leaving[0].rank < request.rank:
                return None
            needed = count
            if staying:
                needed += sum(_room_blocks(one) for one in (*staying, request))
            free = self.pool.num_available + self.pool.count_freed(r.block_table for r in leaving)
            if num_staying < self._config.max_num_requests and needed <= free:
                return num_staying
        return None

    def _preempt(self, request: Request) -> None:
        """Take a running request's blocks; what they hold stays known while there is room."""
        self.running.remove(request)
        self._release([request])
        insort(self.waiting, request, key=_rank)

    def _release(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.pool.release(request.block_table)
            request.leave()


def _rank(request: Request) -> tuple[int, int]:
    return request.rank


def _is_catching_up(request: Request) -> bool:
    return request.is_catching_up


def _room_blocks(request: Request) -> int:
    """Count the blocks that an answer takes beyond its present ones if it goes on for a while."""
    num_tokens = min(request.num_tokens + ROOM_TOKENS, request.max_num_tokens)
    return count_blocks(num_tokens) - count_blocks(request.num_tokens)
