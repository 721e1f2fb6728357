"""Many conversations on an event loop, one thread for the model."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.engine.request import Finished, Request, TokenText
from qianyan.errors import CapacityError, InputError
from qianyan.server.errors import ModelFailedError, RefusedError
from qianyan.server.settings import ServerLimits
from qianyan.server.worker import Worker

Made = TypeVar("Made")
LONG = 400


def say(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def at_work(engine: Engine, story: Callable[[Worker], Awaitable[Made]], **limits: Any) -> Made:
    """Run a story with a worker that is closed afterwards."""

    async def run() -> Made:
        worker = Worker(engine, ServerLimits(**limits))
        try:
            return await story(worker)
        finally:
            await worker.close()

    return asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


def held_blocks(engine: Engine) -> int:
    pool = engine._scheduler.pool
    return pool.num_blocks - pool.num_available


def test_many_answers_at_once_are_those_given_alone(engine: Engine) -> None:
    questions = [say(f"question number {number}") for number in range(12)]
    alone = [engine.chat(question, max_tokens=12) for question in questions]

    async def story(worker: Worker) -> list[Any]:
        return await asyncio.gather(*(worker.ask(one, {"max_tokens": 12}) for one in questions))

    assert at_work(engine, story) == alone


def test_events_make_up_the_answer_and_end_with_it(engine: Engine) -> None:
    async def story(worker: Worker) -> list[Any]:
        answer = await worker.begin(say("hello"), {"max_tokens": 9})
        return [event async for event in answer]

    *tokens, last = at_work(engine, story)
    assert isinstance(last, Finished)
    assert all(isinstance(token, TokenText) for token in tokens)
    assert [token.token_id for token in tokens] == last.completion.token_ids
    assert "".join(token.text for token in tokens) == last.completion.text


def test_the_loop_goes_on_while_a_question_is_prepared_and_answered(engine: Engine) -> None:
    async def story(worker: Worker) -> float:
        asked = asyncio.create_task(worker.ask(say("word " * 300), {"max_tokens": 60}))
        longest = 0.0
        while not asked.done():
            before = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - before)
        return longest

    assert at_work(engine, story) < 0.5


def test_a_closed_worker_leaves_no_thread_behind(engine: Engine) -> None:
    async def story(worker: Worker) -> list[threading.Thread]:
        others = set(threading.enumerate())
        await worker.ask(say("hello"), {"max_tokens": 2})
        made = [one for one in threading.enumerate() if one not in others]
        return [one for one in made if one.name.startswith(("model", "prepare"))]

    made = at_work(engine, story)
    assert made
    assert not [thread.name for thread in made if thread.is_alive()]


def test_leaving_returns_the_blocks_and_the_seat_at_once(engine: Engine) -> None:
    async def story(worker: Worker) -> None:
        answer = await worker.begin(say("tell me a long story"), {"max_tokens": LONG})
        await answer.begun()
        assert held_blocks(engine) > 0
        assert worker.num_running == 1
        answer.leave()
        answer.leave()
        assert worker.num_running == 0
        await until(lambda: held_blocks(engine) == 0)
        assert not answer.request.is_finished, "it was cut, not answered to the end"

    at_work(engine, story)


def test_a_cancelled_caller_leaves_nothing_behind(engine: Engine) -> None:
    async def story(worker: Worker) -> None:
        tasks = [
            asyncio.create_task(worker.ask(say(f"story {number}"), {"max_tokens": LONG}))
            for number in range(4)
        ]
        await until(lambda: held_blocks(engine) > 0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert worker.num_running == 0
        await until(lambda: held_blocks(engine) == 0)
        assert (await worker.ask(say("still there?"), {"max_tokens": 2})).token_ids

    at_work(engine, story)


def test_a_question_that_cannot_be_answered_raises_and_frees_its_seat(engine: Engine) -> None:
    async def story(worker: Worker) -> None:
        with pytest.raises(InputError, match="role"):
            await worker.begin([{"role": "nobody", "content": "x"}], {})
        with pytest.raises(CapacityError, match="tokens"):
            await worker.begin(say("word " * 20_000), {})
        assert worker.num_running == 0

    at_work(engine, story)


def test_a_full_line_is_refused_with_429_and_a_long_wait_with_503() -> None:
    """One seat and one place in the line: the third is refused, the second gives up waiting."""
    engine = one_seat()

    async def story(worker: Worker) -> tuple[RefusedError, RefusedError]:
        first = await worker.begin(say("a long story"), {"max_tokens": LONG})
        second = asyncio.create_task(worker.begin(say("me too"), {"max_tokens": 2}))
        await until(lambda: worker.num_waiting == 1)
        with pytest.raises(RefusedError) as full:
            await worker.begin(say("and me"), {"max_tokens": 2})
        with pytest.raises(RefusedError) as late:
            await second
        first.leave()
        assert (await worker.ask(say("and now"), {"max_tokens": 2})).token_ids
        return full.value, late.value

    full, late = at_work(engine, story, max_waiting=1, max_wait_s=0.2)
    assert (full.status, full.code) == (429, "limit_requests")
    assert (late.status, late.code) == (503, "server_busy")
    assert full.retry_after_s
    assert late.retry_after_s


def one_seat() -> Engine:
    """An engine that answers one at a time, slowly enough to be caught at it."""
    from qianyan.engine.scheduler import EngineConfig

    engine = Engine("bundled", dtype="float32", config=EngineConfig(max_num_requests=1))
    step = engine.step

    def slow_step() -> Any:
        time.sleep(0.05)
        return step()

    engine.step = slow_step  # type: ignore[method-assign]
    return engine


def test_a_model_that_breaks_ends_its_answers_and_takes_no_more() -> None:
    engine = Engine("bundled", dtype="float32")
    worked = engine.step

    async def story(worker: Worker) -> None:
        answer = await worker.begin(say("a long story"), {"max_tokens": LONG})
        await answer.begun()

        def broken() -> Any:
            engine.step = worked  # type: ignore[method-assign]
            raise RuntimeError("bad kernel at 0xdeadbeef")

        engine.step = broken  # type: ignore[method-assign]
        with pytest.raises(ModelFailedError) as failed:
            async for _ in answer:
                pass
        assert "0xdeadbeef" not in str(failed.value)
        with pytest.raises(RefusedError) as refused:
            await worker.begin(say("hello"), {})
        assert refused.value.status == 503
        await until(lambda: held_blocks(engine) == 0)

    at_work(engine, story)


@pytest.mark.parametrize("piece", ["submit", "completion"])
def test_a_model_that_breaks_beside_its_passes_leaves_nobody_waiting(
    piece: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine("bundled", dtype="float32")

    def broken(*_: Any) -> Any:
        raise RuntimeError("bad bookkeeping")

    monkeypatch.setattr(engine if piece == "submit" else Request, piece, broken)

    async def story(worker: Worker) -> None:
        with pytest.raises(ModelFailedError):
            await asyncio.wait_for(worker.ask(say("hello"), {"max_tokens": 2}), 20)
        await until(lambda: worker.failure is not None)
        await until(lambda: held_blocks(engine) == 0)

    at_work(engine, story)


def test_closing_ends_what_still_runs_with_503(engine: Engine) -> None:
    async def story(worker: Worker) -> int:
        answer = await worker.begin(say("a long story"), {"max_tokens": LONG})
        await answer.begun()
        await worker.close()
        with pytest.raises(RefusedError):
            await worker.begin(say("one more"), {})
        with pytest.raises(RefusedError) as ended:
            async for _ in answer:
                pass
        return ended.value.status

    assert at_work(engine, story) == 503
    assert held_blocks(engine) == 0


def test_strangers_name_no_files_of_this_machine(engine: Engine, tmp_path: Path) -> None:
    """Whatever form of message comes through the edge: the processor itself opens none."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64)).save(secret)
    part = {"type": "image_url", "image_url": {"url": str(secret)}}
    question = [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]

    async def story(worker: Worker) -> None:
        with pytest.raises(InputError):
            await worker.ask(question, {"max_tokens": 2})

    engine.allow_files = True
    assert engine.chat(question, max_tokens=2).images
    at_work(engine, story)
    assert not engine.allow_files


def test_a_beginning_is_computed_without_a_seat_and_known_to_its_answer(engine: Engine) -> None:
    long = say("count to forty and back, " * 12)

    async def story(worker: Worker) -> tuple[list[int], Any]:
        beginnings = asyncio.create_task(worker.prefill(long, {}))
        seats = []
        while not beginnings.done():
            seats.append(worker.num_running)
            await asyncio.sleep(0.001)
        assert set(seats) == {0}
        computed = [await beginnings, await worker.prefill(long, {})]
        return computed, await worker.ask(long, {"max_tokens": 4})

    alone = engine.chat(long, max_tokens=4)
    (first, again), done = at_work(Engine("bundled", dtype="float32"), story)
    assert done == alone
    assert first >= done.usage.cached_tokens > done.usage.prompt_tokens - 32
    assert again == 0


def test_a_beginning_makes_way_for_answers_and_is_gone_when_it_is_cancelled() -> None:
    engine = one_seat()
    long = say("count to forty and back, " * 12)

    async def story(worker: Worker) -> None:
        answer = await worker.begin(say("a long story"), {"max_tokens": LONG})
        await answer.begun()
        beginning = asyncio.create_task(worker.prefill(long, {}))
        done, _ = await asyncio.wait({beginning}, timeout=0.5)
        assert not done, "the only seat is taken"
        assert not answer.is_ended
        answer.leave()
        assert await beginning > 0
        cancelled = asyncio.create_task(worker.prefill(say("and back, " * 40), {}))
        await until(lambda: held_blocks(engine) > 0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await until(lambda: held_blocks(engine) == 0)
        assert (await worker.ask(say("and now"), {"max_tokens": 2})).token_ids

    at_work(engine, story)
    assert engine._runner._prompts == {}


def test_a_beginning_that_cannot_be_answered_or_outlives_the_server_is_refused() -> None:
    engine = one_seat()

    async def story(worker: Worker) -> int:
        with pytest.raises(InputError, match="role"):
            await worker.prefill([{"role": "nobody", "content": "x"}], {})
        with pytest.raises(CapacityError, match="tokens"):
            await worker.prefill(say("word " * 20_000), {})
        beginning = asyncio.create_task(worker.prefill(say("and back, " * 40), {}))
        await until(lambda: held_blocks(engine) > 0)
        await worker.close()
        with pytest.raises(RefusedError) as ended:
            await beginning
        return ended.value.status

    assert at_work(engine, story) == 503
    assert held_blocks(engine) == 0
