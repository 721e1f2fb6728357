"""An answer with web search on the event loop: followed like any other, though it takes turns.

Between two turns the provider is asked on a thread, so that the loop and the model go on; the seat
of the turn before has been given back by then.
"""

import asyncio
from collections.abc import AsyncIterator

from qianyan.engine.options import ChatOptions
from qianyan.engine.request import Finished
from qianyan.server.search import SearchTurns
from qianyan.server.worker import Answer, Event, Worker


class SearchingAnswer:
    """One answer on its way, with the searches that the model asks for in between.

    Iterate once; the last event is Finished, with the counts of all turns, and `turns` then has
    the sources. `leave` must be called when nobody reads any longer, as with `Answer`.
    """

    def __init__(self, worker: Worker, turns: SearchTurns, options: ChatOptions) -> None:
        self.turns = turns
        self._worker = worker
        self._options = options
        self._answer: Answer | None = None
        self._is_left = False

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._read()

    async def start(self) -> None:
        """Search beforehand where that was asked for, and let the first turn run.

        Raises what `Worker.begin` does, and EndpointError where a forced search failed.
        """
        await asyncio.to_thread(self.turns.begin)
        await self._ask()

    def leave(self) -> None:
        """End the answer unless it has ended; a search under way still ends by itself."""
        self._is_left = True
        if self._answer is not None:
            self._answer.leave()

    async def begun(self) -> None:
        """Wait for the first token of the turn that runs."""
        if self._answer is not None:
            await self._answer.begun()

    async def _read(self) -> AsyncIterator[Event]:
        while self._answer is not None and not self._is_left:
            async for event in self._answer:
                if not isinstance(event, Finished):
                    yield event
                elif not await asyncio.to_thread(self.turns.take, event.completion):
                    yield Finished(completion=self.turns.finish(event.completion))
                    return
            await self._ask()

    async def _ask(self) -> None:
        """Let the next turn run, unless its reader has gone meanwhile."""
        if self._is_left:
            return
        asked = self.turns.options(self._options)
        self._answer = await self._worker.begin(self.turns.messages, asked)
        if self._is_left:
            self._answer.leave()
