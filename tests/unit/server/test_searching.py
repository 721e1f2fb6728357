"""Answers that search, on a real event loop with a real worker and a provider over HTTP."""

import asyncio
import runpy
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qianyan.engine.engine import Engine
from qianyan.engine.options import ChatOptions
from qianyan.engine.request import Finished
from qianyan.server.errors import RefusedError
from qianyan.server.search import SearchTurns
from qianyan.server.search_options import SearchOptions, read_search_options
from qianyan.server.search_providers import SearchProvider, SearchSettings, open_provider
from qianyan.server.search_results import SearchLimits
from qianyan.server.searching import SearchingAnswer, SearchThreads
from qianyan.server.settings import ServerLimits
from qianyan.server.worker import Worker

SERVER = runpy.run_path(str(Path(__file__).with_name("search_server.py")))
MODEL = runpy.run_path(str(Path(__file__).with_name("searching_model.py")))


@pytest.fixture(scope="module")
def provider() -> Iterator[SearchProvider]:
    server = SERVER["SearchServer"]()
    limits = SearchLimits(timeout_s=5.0, first_wait_s=0.01)
    yield open_provider(SearchSettings(provider="searxng", url=server.url, limits=limits))
    server.close()


@pytest.fixture(scope="module")
def taught(provider: SearchProvider, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(MODEL["teach"](tmp_path_factory.mktemp("searching"), provider))


@pytest.fixture(scope="module")
def threads() -> Iterator[SearchThreads]:
    made = SearchThreads(SearchLimits())
    yield made
    made.close()


def at_work(engine: Engine, story: Callable[[Worker], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        worker = Worker(engine, ServerLimits())
        try:
            return await story(worker)
        finally:
            await worker.close()

    return asyncio.run(run())


def turns_of(provider: SearchProvider, question: str = "", **given: Any) -> SearchTurns:
    asked = [{"role": "user", "content": question or MODEL["QUESTION"]}]
    return SearchTurns(asked, provider, read_search_options(MODEL["CITED"] | given))


def test_several_answers_search_at_once(
    taught: Engine, provider: SearchProvider, threads: SearchThreads
) -> None:
    async def story(worker: Worker) -> list[Any]:
        async def one() -> tuple[str, Any]:
            turns = turns_of(provider)
            options: ChatOptions = {"max_tokens": 60, "tool_choice": "auto"}
            answer = SearchingAnswer(worker, turns, options, threads)
            await answer.start()
            events = [event async for event in answer]
            answer.leave()
            assert isinstance(events[-1], Finished)
            assert "".join(event.text for event in events[:-1]) == events[-1].completion.text
            return events[-1].completion.text, turns.search_info

        found = await asyncio.gather(*(one() for _ in range(5)))
        assert worker.num_running == 0
        return found

    for text, info in at_work(taught, story):
        assert text == MODEL["ANSWER"]
        assert len(info["search_results"]) == 2


def test_who_leaves_during_a_search_leaves_nothing_behind(
    taught: Engine, provider: SearchProvider, threads: SearchThreads
) -> None:
    async def story(worker: Worker) -> None:
        answer = SearchingAnswer(worker, turns_of(provider), {"max_tokens": 60}, threads)
        await answer.start()
        await answer.begun()
        answer.leave()
        assert worker.num_running == 0
        begun = SearchingAnswer(worker, turns_of(provider), {}, threads)
        begun.leave()
        await begun.start()
        assert [event async for event in begun] == []
        assert worker.num_running == 0

    at_work(taught, story)


def test_a_forced_search_that_fails_is_an_error_before_anything_runs(
    taught: Engine, provider: SearchProvider, threads: SearchThreads
) -> None:
    async def story(worker: Worker) -> None:
        turns = SearchTurns(
            [{"role": "user", "content": "down"}], provider, SearchOptions(forced_search=True)
        )
        with pytest.raises(RefusedError, match=r"asked for failed\..*503") as caught:
            await SearchingAnswer(worker, turns, {}, threads).start()
        assert (caught.value.status, caught.value.code) == (502, "search_failed")
        assert worker.num_running == 0

    at_work(taught, story)


def test_searches_wait_for_each_other_and_answers_do_not_wait_for_them(
    taught: Engine, provider: SearchProvider
) -> None:
    """One thread that is busy for a second, one place to wait behind it, and a third request."""

    async def story(worker: Worker) -> None:
        busy = SearchThreads(SearchLimits(max_at_once=1, max_waiting=1))

        def asking(question: str, options: SearchOptions) -> SearchingAnswer:
            turns = SearchTurns([{"role": "user", "content": question}], provider, options)
            return SearchingAnswer(worker, turns, {"max_tokens": 3}, busy)

        forced = SearchOptions(forced_search=True)
        first = [asking("slow", forced), asking("slow, too", forced)]
        running = [asyncio.create_task(one.start()) for one in first]
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="the most that may") as caught:
            await asking("third", forced).start()
        assert (caught.value.status, caught.value.retry_after_s) == (429, 10)
        quick = asking("no search", SearchOptions())
        await quick.start()
        events = [event async for event in quick]
        assert isinstance(events[-1], Finished)
        assert not any(one.done() for one in running), "these still search"
        await asyncio.gather(*running)
        for one in first:
            one.leave()
        busy.close()

    at_work(taught, story)
