"""Threads that read for requests: never all for one key, never longer than a request has."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from qianyan.server.asking import Asked
from qianyan.server.errors import RefusedError
from qianyan.server.preparing import Preparing
from qianyan.server.settings import ServerLimits

Made = TypeVar("Made")


def prepare(story: Callable[[Preparing], Awaitable[Made]], **limits: Any) -> Made:
    async def run() -> Made:
        preparing = Preparing(ServerLimits(**limits))
        try:
            return await story(preparing)
        finally:
            preparing.close()

    return asyncio.run(run())


def test_one_key_never_holds_all_threads() -> None:
    """Twenty documents that take for ever, and one picture of another key."""
    is_over = threading.Event()

    async def story(preparing: Preparing) -> str:
        slow = [
            asyncio.create_task(preparing.call(Asked(owner_id="many"), is_over.wait))
            for _ in range(20)
        ]
        await asyncio.sleep(0.05)
        picture = await asyncio.wait_for(
            preparing.call(Asked(owner_id="one"), lambda: "read"), timeout=5
        )
        is_over.set()
        assert all(await asyncio.gather(*slow))
        return picture

    assert prepare(story, max_preparing=2) == "read"


def test_a_thread_whose_reader_is_gone_is_busy_until_it_has_ended() -> None:
    is_over = threading.Event()
    started: list[float] = []

    async def story(preparing: Preparing) -> None:
        asked = Asked(owner_id="a")
        first = asyncio.create_task(preparing.call(asked, is_over.wait))
        await asyncio.sleep(0.05)
        first.cancel()
        second = asyncio.create_task(preparing.call(asked, lambda: started.append(1.0)))
        await asyncio.sleep(0.05)
        assert not started
        is_over.set()
        await asyncio.wait_for(second, timeout=5)
        assert started

    prepare(story, max_preparing=1)


def test_a_request_whose_time_is_over_is_refused_with_504() -> None:
    is_over = threading.Event()

    async def story(preparing: Preparing) -> RefusedError:
        asked = Asked(ends_at=time.monotonic() + 0.05)
        with pytest.raises(RefusedError) as refused:
            await preparing.call(asked, is_over.wait)
        is_over.set()
        return refused.value

    error = prepare(story)
    assert (error.status, error.code) == (504, "request_timeout")


def test_what_the_work_raises_is_raised_and_frees_its_thread() -> None:
    def fail() -> None:
        raise ValueError("no")

    async def story(preparing: Preparing) -> str:
        for _ in range(5):
            with pytest.raises(ValueError, match="no"):
                await preparing.call(Asked(), fail)
        return await preparing.call(Asked(), lambda: "read")

    assert prepare(story, max_preparing=1) == "read"


def test_a_server_that_stops_begins_nothing() -> None:
    async def story(preparing: Preparing) -> RefusedError:
        preparing.close()
        with pytest.raises(RefusedError) as refused:
            await preparing.call(Asked(), lambda: "read")
        return refused.value

    assert prepare(story).code == "server_stopping"
