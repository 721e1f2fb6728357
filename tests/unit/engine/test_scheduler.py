"""Which tokens run when; no model is needed to say so."""

import subprocess
import sys

import pytest

from qianyan.engine.options import Sampling
from qianyan.engine.reply import Reply
from qianyan.engine.request import Request, Sampled
from qianyan.engine.scheduler import EngineConfig, Plan, Scheduler
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


def shape(plan: Plan) -> list[tuple[int, int, int, bool]]:
    return [(c.request.request_id, c.start, c.stop, c.is_last) for c in plan.chunks]


def settle(scheduler: Scheduler, plan: Plan) -> list[int]:
    samples = [Sampled(token_id=1)] * len(plan.sampling_requests)
    return [request.request_id for request in scheduler.settle(plan, samples)]


def test_a_long_prompt_is_computed_in_chunks_and_samples_at_its_end() -> None:
    scheduler = Scheduler(EngineConfig(max_batch_tokens=4))
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
    scheduler = Scheduler(EngineConfig(max_batch_tokens=4))
    scheduler.add(request(1, 3))
    settle(scheduler, scheduler.plan())
    scheduler.add(request(2, 9))
    plan = scheduler.plan()
    assert shape(plan) == [(1, 3, 4, True), (2, 0, 3, False)]


def test_short_prompts_share_a_pass() -> None:
    scheduler = Scheduler(EngineConfig())
    for request_id in range(3):
        scheduler.add(request(request_id, 5))
    assert shape(scheduler.plan()) == [(0, 0, 5, True), (1, 0, 5, True), (2, 0, 5, True)]


def test_requests_beyond_the_limit_wait_for_one_to_finish() -> None:
    scheduler = Scheduler(EngineConfig(max_num_requests=1))
    scheduler.add(request(1, 2, max_tokens=1))
    scheduler.add(request(2, 2, max_tokens=1))
    plan = scheduler.plan()
    assert shape(plan) == [(1, 0, 2, True)]
    assert settle(scheduler, plan) == [1]
    assert shape(scheduler.plan()) == [(2, 0, 2, True)]


def test_admission_reserves_room_for_the_whole_answer() -> None:
    scheduler = Scheduler(EngineConfig(max_cache_tokens=20))
    scheduler.add(request(1, 8, max_tokens=4))
    scheduler.add(request(2, 5, max_tokens=4))
    assert shape(scheduler.plan()) == [(1, 0, 8, True)]


def test_a_dropped_request_never_runs_again() -> None:
    scheduler = Scheduler(EngineConfig(max_num_requests=1))
    requests = [request(1, 2), request(2, 2)]
    for each in requests:
        scheduler.add(each)
    scheduler.plan()
    scheduler.drop(requests)
    assert not scheduler.plan()


def test_a_pass_that_did_not_happen_is_planned_again() -> None:
    scheduler = Scheduler(EngineConfig())
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
