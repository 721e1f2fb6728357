"""Which tokens run when; no model is needed to say so."""

import subprocess
import sys
from typing import Any

import pytest

from qianyan.engine.options import Sampling
from qianyan.engine.plan import Plan
from qianyan.engine.reply import Reply
from qianyan.engine.request import Request, Sampled
from qianyan.engine.scheduler import EngineConfig, Scheduler
from qianyan.errors import ConfigError


class Silent:
    """A decoder for tests that read no text."""

    def push(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def request(request_id: int, num_prompt_tokens: int, max_tokens: int = 4) -> Request:
    prompt = list(range(num_prompt_tokens))
    return Request(request_id, prompt, Sampling(max_tokens=max_tokens), Reply(Silent()))


def config(**limits: Any) -> EngineConfig:
    """Limits without guesses, whose numbers depend on what was drawn."""
    return EngineConfig(**{"max_cache_tokens": 640, "max_draft_tokens": 0, **limits})


def shape(plan: Plan) -> list[tuple[int, int, int, bool]]:
    return [(c.request.request_id, c.start, c.stop, c.is_last) for c in plan.chunks]


def settle(scheduler: Scheduler, plan: Plan) -> list[int]:
    draws = plan.draws
    while draws:
        draws = scheduler.take(draws, [Sampled(token_id=1)] * len(draws))
    return [request.request_id for request in scheduler.settle(plan)]


def test_a_long_prompt_is_computed_in_chunks_and_samples_at_its_end() -> None:
    scheduler = Scheduler(config(max_batch_tokens=4))
    scheduler.add(request(1, 10, max_tokens=2))
    plans = []
    while plan := scheduler.plan():
        plans.append(shape(plan))
        settle(scheduler, plan)
    assert plans == [
        [(1, 0, 4, False)],
        [(1, 4, 8, False)],
        [(1, 8, 10, True)],
        [(1, 10, 11, True)],
    ]


def test_answers_in_progress_go_before_prompts() -> None:
    scheduler = Scheduler(config(max_batch_tokens=4))
    scheduler.add(request(1, 3))
    settle(scheduler, scheduler.plan())
    scheduler.add(request(2, 9))
    plan = scheduler.plan()
    assert shape(plan) == [(1, 3, 4, True), (2, 0, 3, False)]


def test_short_prompts_share_a_pass() -> None:
    scheduler = Scheduler(config())
    for request_id in range(3):
        scheduler.add(request(request_id, 5))
    assert shape(scheduler.plan()) == [(0, 0, 5, True), (1, 0, 5, True), (2, 0, 5, True)]


def test_requests_beyond_the_limit_wait_for_one_to_finish() -> None:
    scheduler = Scheduler(config(max_num_requests=1))
    scheduler.add(request(1, 2, max_tokens=1))
    scheduler.add(request(2, 2, max_tokens=1))
    plan = scheduler.plan()
    assert shape(plan) == [(1, 0, 2, True)]
    assert settle(scheduler, plan) == [1]
    assert shape(scheduler.plan()) == [(2, 0, 2, True)]


def test_a_request_is_seated_while_every_answer_still_has_some_room() -> None:
    scheduler = Scheduler(config(max_cache_tokens=624))
    scheduler.add(request(1, 32, max_tokens=590))
    scheduler.add(request(2, 48, max_tokens=500))
    scheduler.add(request(3, 32, max_tokens=4))
    assert shape(scheduler.plan()) == [(1, 0, 32, True), (2, 0, 48, True)]
    assert [len(one.block_table) for one in scheduler.running] == [2, 3]


def test_an_answer_grows_block_by_block_beside_its_tokens() -> None:
    scheduler = Scheduler(config(max_cache_tokens=4096))
    scheduler.add(request(1, 32, max_tokens=40))
    scheduler.add(request(2, 16, max_tokens=40))
    tables = []
    while plan := scheduler.plan():
        tables.append([list(one.block_table) for one in scheduler.running])
        settle(scheduler, plan)
    assert [len(table) for table in tables[-1]] == [5, 4]
    for table in tables[-1]:
        assert table == list(range(table[0], table[0] + len(table)))


def test_the_youngest_makes_way_and_is_seated_again_first() -> None:
    scheduler = Scheduler(config(max_cache_tokens=640, max_reuse_tokens=0))
    older, younger = request(1, 16, max_tokens=600), request(2, 16, max_tokens=400)
    scheduler.add(older)
    scheduler.add(younger)
    settle(scheduler, scheduler.plan())
    scheduler.add(request(3, 100, max_tokens=9))
    while younger in scheduler.running:
        settle(scheduler, scheduler.plan())
    assert scheduler.running == [older]
    assert scheduler.waiting[0] is younger
    assert younger.block_table == []
    assert len(younger.output_token_ids) == 20 * 16 - 16 + 1, "half of the blocks, and one token"
    while older in scheduler.running:
        settle(scheduler, scheduler.plan())
    scheduler.plan()
    assert scheduler.running[0] is younger
    while plan := scheduler.plan():
        settle(scheduler, plan)
    assert len(younger.output_token_ids) == 400


def test_a_more_urgent_request_takes_the_place_of_a_running_one() -> None:
    scheduler = Scheduler(config(max_num_requests=1))
    scheduler.add(request(1, 20))
    settle(scheduler, scheduler.plan())
    urgent = Request(2, [1], Sampling(max_tokens=1, priority=-1), Reply(Silent()))
    scheduler.add(urgent)
    plan = scheduler.plan()
    assert shape(plan) == [(2, 0, 1, True)]
    assert settle(scheduler, plan) == [2]
    plan = scheduler.plan()
    assert shape(plan) == [(1, 0, 21, True)], "prompt and the first token, computed again"
    settle(scheduler, plan)
    assert scheduler.running[0].output_token_ids == [1, 1]


def test_a_dropped_request_never_runs_again() -> None:
    scheduler = Scheduler(config(max_num_requests=1))
    requests = [request(1, 2), request(2, 2)]
    for each in requests:
        scheduler.add(each)
    scheduler.plan()
    scheduler.drop(requests)
    assert not scheduler.plan()


def test_a_pass_that_did_not_happen_is_planned_again() -> None:
    scheduler = Scheduler(config())
    scheduler.add(request(1, 3))
    assert shape(scheduler.plan()) == shape(scheduler.plan())


@pytest.mark.parametrize("name", ["max_model_len", "max_num_requests", "max_batch_tokens"])
def test_a_limit_below_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0; expected at least 1"):
        EngineConfig(**{name: 0})


def test_planning_loads_no_torch() -> None:
    code = (
        "import sys, qianyan.engine.request, qianyan.engine.scheduler\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
