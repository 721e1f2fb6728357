"""Which tokens of which requests run in the next forward pass, and what follows from the result.

Knows no torch. Decoding requests go first, so that a long prompt never stalls them; prompts are
computed in chunks that share what is left of `max_batch_tokens`. A request is admitted when the
cache has room for all the tokens it can ever hold, so a running request never has to be put back.
What the cache already knows of a prompt's beginning is not computed again (`blocks.py`).
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from qianyan.engine.blocks import BLOCK_SIZE, BlockPool, count_blocks
from qianyan.engine.request import Request, Sampled
from qianyan.errors import ConfigError, GrammarError


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Limits of an engine.

    max_model_len: tokens of prompt and answer together; None takes the checkpoint's
        max_position_embeddings. Never more than max_cache_tokens.
    max_num_requests: requests that run at the same time; more wait in line.
    max_batch_tokens: tokens of one forward pass; longer prompts are computed in chunks.
    max_cache_tokens: tokens whose keys and values are kept at the same time, all requests.
    max_reuse_tokens: tokens of finished requests whose keys and values stay for prompts that begin
        alike; 0 keeps none. They make way for running requests.
    max_encode_patches: image patches of one call of the vision tower that serves several
        requests; one request's own pictures are always encoded together.
    """

    max_model_len: int | None = None
    max_num_requests: int = 64
    max_batch_tokens: int = 2048
    max_cache_tokens: int = 131_072
    max_reuse_tokens: int = 16_384
    max_encode_patches: int = 16_384

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "max_reuse_tokens" else 1
            if value is not None and value < least:
                raise ConfigError(f"{field.name} is {value}; expected at least {least}.")


@dataclass(frozen=True)
class Chunk:
    """Tokens start to stop of one request; `is_last` when the next token follows from them."""

    request: Request
    start: int
    stop: int
    is_last: bool


@dataclass(frozen=True)
class Plan:
    """The chunks of one forward pass, in the order in which their tokens are packed."""

    chunks: tuple[Chunk, ...]

    def __bool__(self) -> bool:
        return bool(self.chunks)

    @property
    def sampling_requests(self) -> list[Request]:
        """List the requests whose next token is drawn from this pass, in packed order."""
        return [chunk.request for chunk in self.chunks if chunk.is_last]


class Scheduler:
    """First come, first served, within the limits of an EngineConfig."""

    def __init__(self, config: EngineConfig) -> None:
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._config = config
        # Each request's last block may be partly empty: that costs no room of the others.
        self.pool = BlockPool(
            count_blocks(config.max_cache_tokens) + config.max_num_requests,
            max_kept=config.max_reuse_tokens // BLOCK_SIZE,
        )

    def add(self, request: Request) -> None:
        """Queue a request that fits into the cache by itself; the caller has checked that."""
        assert request.max_num_tokens <= self._config.max_cache_tokens
        self.waiting.append(request)

    def plan(self) -> Plan:
        """Choose the next forward pass; an empty plan when there is nothing to run."""
        self._admit()
        chunks = []
        room = self._config.max_batch_tokens
        for request in sorted(self.running, key=_is_prompt_pending):
            size = min(request.num_tokens - request.num_computed_tokens, room)
            if size == 0:
                break
            stop = request.num_computed_tokens + size
            is_last = stop == request.num_tokens
            chunks.append(Chunk(request, request.num_computed_tokens, stop, is_last))
            room -= size
        return Plan(tuple(chunks))

    def settle(self, plan: Plan, samples: Sequence[Sampled]) -> list[Request]:
        """Record what ran and what was drawn; return the requests that finished."""
        for chunk in plan.chunks:
            chunk.request.num_computed_tokens = chunk.stop
            for block, key in chunk.request.new_full_blocks():
                self.pool.register(block, key)
        for request, sampled in zip(plan.sampling_requests, samples, strict=True):
            if request.error is None:
                try:
                    request.append_sampled(sampled)
                except GrammarError as error:
                    request.error = error
        finished = [request for request in self.running if request.is_finished]
        self.running = [request for request in self.running if not request.is_finished]
        self._release(finished)
        return finished

    def drop(self, requests: Iterable[Request]) -> None:
        """Forget requests that nobody waits for any more."""
        gone = {request.request_id for request in requests}
        self._release(request for request in self.running if request.request_id in gone)
        self.running = [request for request in self.running if request.request_id not in gone]
        self.waiting = deque(request for request in self.waiting if request.request_id not in gone)

    def _admit(self) -> None:
        reserved = sum(request.max_num_tokens for request in self.running)
        while self.waiting and len(self.running) < self._config.max_num_requests:
            reserved += self.waiting[0].max_num_tokens
            if reserved > self._config.max_cache_tokens or not self._seat(self.waiting[0]):
                return
            self.running.append(self.waiting.popleft())

    def _seat(self, request: Request) -> bool:
        """Give a request all blocks it can ever need, known ones first; say whether there were."""
        # The last token is always computed: the next one follows from its logits.
        keys = request.block_keys((request.num_tokens - 1) // BLOCK_SIZE)
        known = self.pool.match(keys)
        fresh = self.pool.allocate(count_blocks(request.max_num_tokens) - len(known))
        if fresh is None:
            self.pool.release(known)
            return False
        request.sit(known, fresh)
        return True

    def _release(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.pool.release(request.block_table)
            request.block_table = []


def _is_prompt_pending(request: Request) -> bool:
    return request.num_computed_tokens < len(request.prompt_token_ids)
