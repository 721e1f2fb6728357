"""Questions from many threads are answered on one thread, together, each with its own end."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qianyan.engine.desk import Desk
from qianyan.engine.engine import Engine
from qianyan.engine.plan import Plan
from qianyan.engine.runner import Runner
from qianyan.errors import CapacityError, InputError


def say(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


QUESTIONS = [say(f"What is {number} and {number + 1}?") for number in range(12)]


def test_answers_at_the_desk_are_those_of_one_by_one(engine: Engine) -> None:
    alone = [engine.chat(question, max_tokens=8) for question in QUESTIONS]
    desk = Desk(seats=5)
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        asked = [pool.submit(desk.chat_many, engine, [one], max_tokens=8) for one in QUESTIONS]
        together = [future.result(60)[0] for future in asked]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]


def test_questions_of_several_callers_run_in_one_pass_on_one_thread(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    threads: set[int] = set()
    forward = Runner.forward

    def watched(runner: Runner, plan: Plan) -> Any:
        sizes.append(len(plan.chunks))
        threads.add(threading.get_ident())
        return forward(runner, plan)

    monkeypatch.setattr(Runner, "forward", watched)
    desk = Desk(seats=3)
    with ThreadPoolExecutor(6) as pool:
        started = threading.Barrier(6)

        def ask(number: int) -> None:
            started.wait(10)
            desk.chat_many(engine, [QUESTIONS[number]], max_tokens=32)

        list(pool.map(ask, range(6)))
    assert len(threads) == 1
    assert max(sizes) in (2, 3)  # never more than the seats


def test_what_one_caller_asks_wrongly_disturbs_no_other(engine: Engine) -> None:
    desk = Desk(seats=4)
    too_long = say("word " * 5000)
    with ThreadPoolExecutor(3) as pool:
        good = pool.submit(desk.chat_many, engine, [QUESTIONS[0]], max_tokens=8)
        bad = pool.submit(desk.chat_many, engine, [too_long], max_tokens=8)
        wrong = pool.submit(desk.chat_many, engine, [QUESTIONS[1]], max_tokens=-1)
        assert good.result(60)[0].token_ids
        with pytest.raises(CapacityError):
            bad.result(60)
        with pytest.raises(InputError):
            wrong.result(60)


def test_a_pass_that_fails_fails_its_callers_and_the_desk_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(seats=2)

    def fail(runner: Runner, plan: Plan) -> Any:
        raise RuntimeError("no kernel")

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "forward", fail)
        with pytest.raises(RuntimeError, match="no kernel"):
            desk.chat_many(engine, [QUESTIONS[0]], max_tokens=8)
    assert desk.chat_many(engine, [QUESTIONS[0]], max_tokens=8)[0].token_ids


def test_other_work_is_done_between_passes_on_the_same_thread() -> None:
    desk = Desk()
    assert desk.call(threading.get_ident) == desk.call(threading.get_ident)
    assert desk.call(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        desk.call(divmod, 1, 0)


def test_calls_that_wait_share_one_pass_each_getting_its_own() -> None:
    desk = Desk()
    shares: list[list[int]] = []
    may_begin = threading.Event()

    def double(items: list[int]) -> list[int]:
        shares.append(items)
        return [2 * item for item in items]

    call = desk.share(double, at_once=3)
    with ThreadPoolExecutor(8) as pool:
        blocked = pool.submit(desk.call, may_begin.wait, 10)
        asked = [pool.submit(call, number) for number in range(7)]
        while not all(future.running() for future in asked):
            time.sleep(0.01)
        time.sleep(0.05)
        may_begin.set()
        assert [future.result(10) for future in asked] == [0, 2, 4, 6, 8, 10, 12]
        assert blocked.result(10)
    assert sorted(map(len, shares)) == [1, 3, 3]


def test_a_shared_pass_that_fails_fails_those_who_share_it_and_no_later_one() -> None:
    desk = Desk()

    def invert(items: list[int]) -> list[float]:
        return [1 / item for item in items]

    call = desk.share(invert, at_once=4)
    with pytest.raises(ZeroDivisionError):
        call(0)
    assert call(4) == 0.25
