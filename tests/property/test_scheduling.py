"""Planning under any load: every answer comes, as it comes alone, and no block is lost."""

import hashlib
from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from qianyan.engine.blocks import BLOCK_SIZE, count_blocks
from qianyan.engine.options import Sampling
from qianyan.engine.plan import Chunk, Plan
from qianyan.engine.reply import Reply
from qianyan.engine.request import Request, Sampled
from qianyan.engine.scheduler import AGING_PASSES, EngineConfig, Scheduler

MAX_TOKENS = 160
"""Of one request; the smallest cache that is tried holds just as many."""


class Silent:
    """A decoder for tests that read no text."""

    def push(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


@dataclass(frozen=True)
class Ask:
    """A request, the pass at which it arrives, and the pass at which its caller goes away.

    Not answered, only its prompt's whole blocks are computed.
    """

    num_prompt_tokens: int
    family: int
    max_tokens: int
    priority: int
    arrives: int
    leaves: int | None
    is_answered: bool = True


def asks() -> st.SearchStrategy[list[Ask]]:
    one = st.builds(
        Ask,
        num_prompt_tokens=st.integers(1, 100),
        family=st.integers(0, 1),
        max_tokens=st.integers(1, 60),
        priority=st.integers(-2, 2),
        arrives=st.integers(0, 30),
        leaves=st.none() | st.none() | st.integers(0, 60),
        is_answered=st.sampled_from([True, True, False]),
    )
    return st.lists(one, min_size=1, max_size=9)


configs = st.builds(
    EngineConfig,
    max_num_requests=st.integers(1, 6),
    max_batch_tokens=st.sampled_from([1, 5, 40, 2048]),
    max_cache_tokens=st.sampled_from([MAX_TOKENS, 240, 500]),
    max_reuse_tokens=st.sampled_from([0, 48, 500]),
    max_draft_tokens=st.sampled_from([0, 1, 6]),
)


def to_request(ask: Ask, request_id: int) -> Request:
    """Make a request; prompts of one family begin alike and differ at the end."""
    prompt = [ask.family] * (ask.num_prompt_tokens - 1) + [10 + request_id % 3]
    if not ask.is_answered:
        prompt = prompt[: len(prompt) // BLOCK_SIZE * BLOCK_SIZE]
    sampling = Sampling(max_tokens=ask.max_tokens, priority=ask.priority)
    request = Request(request_id, prompt, sampling, Reply(Silent()))
    request.name_block = lambda start, token_ids, before: hashlib.md5(  # noqa: S324
        before + bytes(token_ids)
    ).digest()
    if not ask.is_answered:
        request.begin_only()
    return request


def continuation(token_ids: list[int]) -> int:
    """The model: what follows depends on every token before it."""
    return hashlib.md5(bytes(token_ids)).digest()[0] % 7  # noqa: S324


class Machine:
    """A scheduler and a cache that remembers what was written in which place."""

    def __init__(self, config: EngineConfig) -> None:
        self.scheduler = Scheduler(config)
        self.rows: dict[int, list[int]] = {}  # place -> the tokens up to the one it stands for
        self.num_preempted = 0

    def step(self) -> tuple[Plan, list[Request]]:
        before = {id(request) for request in self.scheduler.running}
        plan = self.scheduler.plan()
        self.check(plan)
        self.num_preempted += len(before & {id(request) for request in self.scheduler.waiting})
        rows = [row for chunk in plan.chunks for row in self.run(chunk)]
        draws = plan.draws
        while draws:
            samples = [Sampled(token_id=rows[draw.row]) for draw in draws]
            draws = self.scheduler.take(draws, samples)
        return plan, self.scheduler.settle(plan)

    def run(self, chunk: Chunk) -> list[int]:
        """Write the chunk's places, then read all before its end as attention would."""
        request = chunk.request
        known = [*request.token_ids(0, chunk.num_known), *chunk.drafts]
        places = [
            request.block_table[index // BLOCK_SIZE] * BLOCK_SIZE + index % BLOCK_SIZE
            for index in range(chunk.stop)
        ]
        for index in range(chunk.start, chunk.stop):
            self.rows[places[index]] = known[: index + 1]
        for index, place in enumerate(places):
            assert self.rows[place] == known[: index + 1], "a place holds another sequence"
        stops = range(chunk.stop - chunk.num_rows, chunk.stop)
        return [continuation(known[: stop + 1]) for stop in stops]

    def check(self, plan: Plan) -> None:
        scheduler = self.scheduler
        tables = [request.block_table for request in scheduler.running]
        assert all(len(set(table)) == len(table) for table in tables)
        holders = Counter(block for table in tables for block in table)
        pool = scheduler.pool
        assert pool._holders == [holders[block] for block in range(pool.num_blocks)]
        assert len(holders) + pool.num_available == pool.num_blocks
        assert not any(request.block_table for request in scheduler.waiting)
        assert sum(chunk.stop - chunk.start for chunk in plan.chunks) <= (
            scheduler._config.max_batch_tokens
        )
        for chunk in plan.chunks:
            assert chunk.start == chunk.request.num_computed_tokens < chunk.stop
            assert count_blocks(chunk.stop) <= len(chunk.request.block_table)
        everyone = sorted([*scheduler.running, *scheduler.waiting], key=lambda r: r.rank)
        if everyone:
            assert [one.is_answered for one in everyone] == sorted(
                (one.is_answered for one in everyone), reverse=True
            ), "answers come first"
            assert everyone[0] in scheduler.running, "the first in rank always sits"
            assert plan, "something always runs"


def answer_all(asked: list[Ask], config: EngineConfig) -> tuple[Machine, dict[int, list[int]]]:
    """Ask everything when it arrives; give the answers of those whose callers stayed."""
    machine = Machine(config)
    requests = {index: to_request(ask, index) for index, ask in enumerate(asked)}
    answers: dict[int, list[int]] = {}
    num_tokens = sum(request.max_num_tokens for request in requests.values())
    for number in range(30 + 10 * num_tokens):
        for index, ask in enumerate(asked):
            if ask.arrives == number and not requests[index].is_finished:
                machine.scheduler.add(requests[index])
            if ask.leaves is not None and ask.leaves == number - ask.arrives:
                machine.scheduler.drop([requests[index]])
        _, finished = machine.step()
        for request in finished:
            answers[request.request_id] = request.output_token_ids
        if number >= 30 and not machine.scheduler.running and not machine.scheduler.waiting:
            break
    pool = machine.scheduler.pool
    assert pool.num_available == pool.num_blocks
    assert not machine.scheduler.waiting
    assert all(requests[at].is_finished for at, ask in enumerate(asked) if ask.leaves is None)
    return machine, answers


def answer_alone(ask: Ask, request_id: int) -> list[int]:
    if not ask.is_answered:
        return []
    known = list(to_request(ask, request_id).prompt_token_ids)
    output = []
    for _ in range(ask.max_tokens):
        output.append(continuation(known))
        known.append(output[-1])
    return output


@settings(max_examples=150, deadline=None)
@given(asked=asks(), config=configs)
def test_every_request_gets_the_answer_it_gets_alone(
    asked: list[Ask], config: EngineConfig
) -> None:
    _, answers = answer_all(asked, config)
    for index, ask in enumerate(asked):
        if index in answers or (ask.leaves is None and ask.is_answered):
            assert answers[index] == answer_alone(ask, index)


@settings(max_examples=30, deadline=None)
@given(asked=asks(), config=configs)
def test_planning_is_deterministic(asked: list[Ask], config: EngineConfig) -> None:
    def trace() -> list[list[tuple[int, int, int]]]:
        machine = Machine(config)
        for index, ask in enumerate(asked):
            request = to_request(ask, index)
            if not request.is_finished:
                machine.scheduler.add(request)
        passes = []
        while machine.scheduler.running or machine.scheduler.waiting:
            plan, _ = machine.step()
            passes.append([(c.request.request_id, c.start, c.stop) for c in plan.chunks])
        return passes

    assert trace() == trace()


def test_requests_are_preempted_where_the_cache_is_tight() -> None:
    """The properties above are met under preemption, not for want of it."""
    asked = [Ask(40, index, 60, 0, 0, None) for index in range(4)]
    config = EngineConfig(max_cache_tokens=MAX_TOKENS, max_reuse_tokens=0)
    machine, answers = answer_all([*asked, Ask(90, 1, 60, -1, 20, None)], config)
    assert machine.num_preempted > 0
    assert len(answers) == 5


def test_an_urgent_request_goes_first_and_one_that_waited_long_is_not_overtaken() -> None:
    machine = Machine(EngineConfig(max_num_requests=1, max_cache_tokens=MAX_TOKENS))
    patient, urgent = (to_request(Ask(3, 0, 60, p, 0, None), i) for i, p in ((1, 1), (2, 0)))
    machine.scheduler.add(patient)
    machine.step()
    machine.scheduler.add(urgent)
    plan, _ = machine.step()
    assert [chunk.request for chunk in plan.chunks] == [urgent]
    machine.scheduler.drop([urgent])
    machine.scheduler._num_passes += AGING_PASSES
    machine.scheduler.add(to_request(Ask(3, 0, 60, 0, 0, None), 3))
    plan, _ = machine.step()
    assert [chunk.request for chunk in plan.chunks] == [patient]
