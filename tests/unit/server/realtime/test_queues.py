"""Queues with a limit of bytes on both sides of a conversation."""

import asyncio

import pytest

from qianyan.server.realtime.queues import Inbox, Outbox


def test_who_sends_more_than_is_read_has_to_wait() -> None:
    async def run() -> None:
        inbox = Inbox(10)
        await inbox.put("12345")
        sending = asyncio.create_task(inbox.put("678901"))
        await asyncio.sleep(0.01)
        assert not sending.done()
        assert await inbox.get() == "12345"
        await asyncio.wait_for(sending, 1)
        assert await inbox.get() == "678901"

    asyncio.run(run())


def test_events_leave_in_order_and_are_counted_until_they_are_sent() -> None:
    async def run() -> None:
        outbox = Outbox(10)
        for event in ("12345", "67890"):
            outbox.put(event)
        for event in ("12345", "67890"):
            assert await outbox.get() == event
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(outbox.drained(), 0.01)
            outbox.sent()
        await asyncio.wait_for(outbox.drained(), 1)
        assert not outbox.overflow.done()

    asyncio.run(run())


def test_one_event_too_many_ends_it_and_is_dropped() -> None:
    async def run() -> None:
        outbox = Outbox(10)
        outbox.put("12345")
        for _ in range(2):
            outbox.put("678901")
        assert outbox.overflow.result().reason == "slow_reader"
        assert await outbox.get() == "12345"
        outbox.sent()
        await outbox.drained()

    asyncio.run(run())
