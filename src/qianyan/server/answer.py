"""One answer on its way from the model's thread to whoever reads it on the event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from qianyan.engine.request import Finished, Request, TokenText
from qianyan.engine.runner import Prompt
from qianyan.errors import QianyanError
from qianyan.server.asking import Asked

Event = TokenText | Finished
End = Finished | QianyanError


class Answer:
    """One answer on its way: iterate over its events once, the last of which is Finished.

    Iterating raises the error that ended it. `leave` must be called when nobody reads any longer;
    after the end it does nothing.
    """

    def __init__(
        self,
        request: Request,
        prompt: Prompt,
        asked: Asked,
        *,
        leave: Callable[["Answer"], None],
    ) -> None:
        """Begin; `leave` ends the answer where it is computed."""
        self.request, self.prompt = request, prompt
        self.asked = asked
        self.is_ended = False
        self.ends: asyncio.TimerHandle | None = None
        self._leave = leave
        self._events: asyncio.Queue[Event | QianyanError] = asyncio.Queue()
        self._has_begun = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._read()

    async def _read(self) -> AsyncIterator[Event]:
        while True:
            event = await self._events.get()
            if isinstance(event, QianyanError):
                raise event
            yield event
            if isinstance(event, Finished):
                return

    async def begun(self) -> None:
        """Wait for the first token, or for an end without any."""
        await self._has_begun.wait()

    def leave(self) -> None:
        """End the answer unless it has ended; what it holds returns before the next pass."""
        self._leave(self)

    def take(self, events: Sequence[Event], end: End | None) -> None:
        """Hand on what a pass brought; on the event loop."""
        if events:
            self.asked.note_token()
        for event in events:
            self._events.put_nowait(event)
        if end is not None:
            self._events.put_nowait(end)
        self._has_begun.set()


def end_of(request: Request) -> End | None:
    """Give what ends a request's events, once it is finished."""
    if request.error is not None:
        return request.error
    return Finished(completion=request.completion()) if request.is_finished else None
