"""What has come from a client and is not read yet, and what was written and is not sent yet.

Both are bounded by bytes: who sends faster than it is heard has to wait, and who takes less than
it is told is left.
"""

import asyncio
from collections import deque

from qianyan.server.realtime.ending import End, slow_reader


class Inbox:
    """Events of a client, in order; used on one event loop only."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._events: asyncio.Queue[str] = asyncio.Queue()
        self._num_bytes = 0
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def put(self, event: str) -> None:
        """Keep an event; wait until there is room for another one."""
        self._events.put_nowait(event)
        self._num_bytes += len(event)
        if self._num_bytes > self._max_bytes:
            self._has_room.clear()
        await self._has_room.wait()

    async def get(self) -> str:
        """Take the next event; wait for one."""
        event = await self._events.get()
        self._num_bytes -= len(event)
        if self._num_bytes <= self._max_bytes:
            self._has_room.set()
        return event


class Outbox:
    """Events for a client, in order; used on one event loop only."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._events: deque[str] = deque()
        self._num_bytes = 0
        self._has_some = asyncio.Event()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._overflow: asyncio.Future[End] = asyncio.get_running_loop().create_future()

    @property
    def overflow(self) -> asyncio.Future[End]:
        """Done when the client takes too little, with what is said of it."""
        return self._overflow

    def put(self, event: str) -> None:
        """Keep an event; beyond the limit it is dropped, and the conversation is over."""
        if self._num_bytes + len(event) > self._max_bytes:
            if not self._overflow.done():
                self._overflow.set_result(slow_reader(self._max_bytes))
            return
        self._events.append(event)
        self._num_bytes += len(event)
        self._is_empty.clear()
        self._has_some.set()

    async def get(self) -> str:
        """Take the next event; wait for one. `sent` follows."""
        await self._has_some.wait()
        return self._events[0]

    def sent(self) -> None:
        """Forget the event that was taken: it is on its way."""
        self._num_bytes -= len(self._events.popleft())
        if not self._events:
            self._has_some.clear()
            self._is_empty.set()

    async def drained(self) -> None:
        """Wait until everything is on its way."""
        await self._is_empty.wait()
