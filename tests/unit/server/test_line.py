"""Seats shared fairly: whoever else asks, and however often."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qianyan.server.errors import RefusedError
from qianyan.server.line import Line
from qianyan.server.settings import ServerLimits

Made = TypeVar("Made")


def in_line(story: Callable[[Line], Awaitable[Made]], seats: int = 1, **limits: Any) -> Made:
    async def run() -> Made:
        return await story(Line(seats, ServerLimits(**limits)))

    return asyncio.run(run())


async def settled() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


def test_a_thousand_of_one_key_delay_another_s_one_by_a_single_answer() -> None:
    async def story(line: Line) -> list[str]:
        served: list[str] = []

        async def ask(owner: str) -> None:
            await line.sit(owner)
            served.append(owner)
            await asyncio.sleep(0)
            line.stand_up(owner)

        many = [asyncio.create_task(ask("many")) for _ in range(1000)]
        await settled()
        before = len(served)
        await ask("one")
        at = served.index("one") - before
        await asyncio.gather(*many)
        assert line.num_seated == line.num_waiting == 0
        return [str(at)]

    (delay,) = in_line(story, max_waiting=2000)
    assert int(delay) <= 2


def test_keys_take_turns() -> None:
    async def story(line: Line) -> list[str]:
        served: list[str] = []

        async def ask(owner: str) -> None:
            await line.sit(owner)
            served.append(owner)
            await settled()
            line.stand_up(owner)

        asked = ["a", "a", "a", "a", "a", "a", "b", "b", "b", "c"]
        await asyncio.gather(*(ask(one) for one in asked))
        return served

    assert "".join(in_line(story)) == "abcababaaa"


def test_a_full_line_sends_the_last_of_the_longest_away_for_a_newcomer() -> None:
    async def story(line: Line) -> None:
        await line.sit("many")
        waiting = [asyncio.create_task(line.sit("many")) for _ in range(4)]
        await settled()
        newcomer = asyncio.create_task(line.sit("one"))
        await settled()
        with pytest.raises(RefusedError) as sent_away:
            await waiting[-1]
        assert (sent_away.value.status, sent_away.value.retry_after_s) == (429, 2)
        with pytest.raises(RefusedError, match="4 requests are waiting"):
            await line.sit("many")
        line.stand_up("many")
        await newcomer
        assert not any(one.done() for one in waiting[:-1])
        for one in waiting[:-1]:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    in_line(story, max_waiting=4)


def test_a_key_has_only_so_many_open() -> None:
    async def story(line: Line) -> None:
        await line.sit("a")
        await line.sit("a")
        with pytest.raises(RefusedError) as refused:
            await line.sit("a")
        assert refused.value.code == "limit_concurrency"
        await line.sit("b")

    in_line(story, seats=8, max_open_per_key=2)


def test_whoever_waits_too_long_gives_up_and_harms_nobody() -> None:
    async def story(line: Line) -> None:
        await line.sit("a")
        with pytest.raises(RefusedError) as late:
            await line.sit("b")
        assert late.value.status == 503
        line.stand_up("a")
        await line.sit("b")
        assert (line.num_seated, line.num_waiting) == (1, 0)

    in_line(story, max_wait_s=0.02)


@settings(max_examples=150, deadline=None)
@given(
    seats=st.integers(1, 3),
    max_waiting=st.integers(0, 6),
    moves=st.lists(st.tuples(st.sampled_from("scg"), st.sampled_from("abc")), max_size=60),
)
def test_no_seat_is_lost_or_given_twice(
    seats: int, max_waiting: int, moves: list[tuple[str, str]]
) -> None:
    """Sit, cancel and give back in any order: seats add up, and nobody waits beside a free one."""

    async def story(line: Line) -> None:
        tasks: list[tuple[str, asyncio.Task[None]]] = []
        seated: Counter[str] = Counter()

        def note() -> None:
            for one in [one for one in tasks if one[1].done()]:
                tasks.remove(one)
                if not one[1].cancelled() and one[1].exception() is None:
                    seated[one[0]] += 1

        for move, owner in moves:
            if move == "s":
                tasks.append((owner, asyncio.create_task(line.sit(owner))))
            elif move == "c":
                mine = [task for name, task in tasks if name == owner]
                if mine:
                    mine[0].cancel()
            elif seated[owner]:
                seated[owner] -= 1
                line.stand_up(owner)
            if move != "c":  # a cancelled one may meet the next move before it wakes up
                await settled()
                note()
                assert line.num_seated == seated.total() <= seats
                assert line.num_waiting == len(tasks) <= max_waiting
                assert not tasks or line.num_seated == seats
        for _, task in tasks:
            task.cancel()
        await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)

    in_line(story, seats=seats, max_waiting=max_waiting)
