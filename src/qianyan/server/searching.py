"""An answer with web search on the event loop: followed like any other, though it takes turns.

Between two turns the provider is asked on a thread that only searches use, so that the loop, the
model and all else go on; the seat of the turn before has been given back by then. Calls are held
back until their turn has ended, because only then it is known whether one of them was ours.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self, TypeVar

from qianyan.engine.options import ChatOptions
from qianyan.engine.request import Completion, Finished, Request, TokenText
from qianyan.errors import EndpointError
from qianyan.inputs.media import Seen
from qianyan.inputs.processor import Processor
from qianyan.server.answer import Answer, Event
from qianyan.server.errors import RefusedError
from qianyan.server.metrics import Metrics
from qianyan.server.search import Asker, SearchTurns, shows_tools
from qianyan.server.search_options import SearchOptions
from qianyan.server.search_providers import SearchProvider, SearchSettings, open_provider
from qianyan.server.search_results import Found, SearchLimits, SearchQuery
from qianyan.server.worker import Worker

Made = TypeVar("Made")


class SearchThreads:
    """Searches of many conversations, so many at once; used on the event loop."""

    def __init__(self, limits: SearchLimits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(limits.max_at_once, thread_name_prefix="search")
        self._num_open = 0

    async def run(self, work: Callable[[], Made]) -> Made:
        """Do work that searches; raises RefusedError where too many wait."""
        if self._num_open >= self._limits.max_at_once + self._limits.max_waiting:
            raise RefusedError(
                f"{self._limits.max_waiting} requests wait for a search, the most that may. Try "
                "again later.",
                status=429,
                code="limit_requests",
                retry_after_s=round(self._limits.timeout_s),
            )
        self._num_open += 1
        try:
            loop = asyncio.get_running_loop()
            # With the context its log lines have the id of the request.
            return await loop.run_in_executor(self._threads, copy_context().run, work)
        finally:
            self._num_open -= 1

    def close(self) -> None:
        """Begin no more searches; those under way end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, kw_only=True)
class WebSearch:
    """Web search as one server has it: who searches, and what is known of the server's model."""

    provider: SearchProvider
    asker: Asker
    limits: SearchLimits
    threads: SearchThreads


class Counted:
    """A provider whose searches are counted."""

    def __init__(self, provider: SearchProvider, metrics: Metrics) -> None:
        self.name = provider.name
        self._provider = provider
        self._metrics = metrics

    def search(self, query: SearchQuery) -> Found:
        """Search once; raises what the provider does."""
        is_good = False
        try:
            found = self._provider.search(query)
            is_good = True
            return found
        finally:
            self._metrics.count_search(self.name, is_good=is_good)


def open_web(
    settings: SearchSettings | None, processor: Processor, metrics: Metrics
) -> WebSearch | None:
    """Make the web search of a server whose model has this processor; None without settings.

    Raises what `open_provider` does.
    """
    if settings is None:
        return None
    asker = Asker(
        can_call=shows_tools(processor.template),
        control_words=processor.tokenizer.control_words,
    )
    return WebSearch(
        provider=Counted(open_provider(settings), metrics),
        asker=asker,
        limits=settings.limits,
        threads=SearchThreads(settings.limits),
    )


class AskedSearch:
    """The search that one request asks for, and what came of it once its answer has begun."""

    def __init__(self, web: WebSearch, options: SearchOptions) -> None:
        self.options = options
        self._web = web
        self._turns: SearchTurns | None = None
        self._shown: dict[str, Any] | None = None

    async def begin(
        self, worker: Worker, messages: list[dict[str, Any]], options: ChatOptions
    ) -> "SearchingAnswer":
        """Let the answer run; raises InputError, and what `SearchingAnswer.start` does."""
        self._turns = SearchTurns(
            messages,
            self._web.provider,
            self.options,
            tools=options.get("tools") or (),
            asker=self._web.asker,
            limits=self._web.limits,
        )
        answer = SearchingAnswer(worker, self._turns, options, self._web.threads)
        await answer.start()
        return answer

    @property
    def search_info(self) -> dict[str, Any] | None:
        """What was found so far; see `SearchTurns`."""
        return None if self._turns is None else self._turns.search_info

    def fresh_info(self) -> dict[str, Any] | None:
        """Give what was found where it is more than at the last call, else None."""
        info = self.search_info
        if info == self._shown:
            return None
        self._shown = info
        return info

    @property
    def queries(self) -> Sequence[str]:
        """What was searched for so far."""
        return () if self._turns is None else self._turns.queries

    @property
    def plugins(self) -> dict[str, Any] | None:
        """What searching cost so far; see `SearchTurns`."""
        return None if self._turns is None else self._turns.plugins


@dataclass(frozen=True, kw_only=True)
class TurnsSoFar:
    """What an answer has taken so far, under the names that `Request` has for one of one turn.

    The prompts of all turns stand one after the other, so what counts their tokens counts all.
    """

    prompt_token_ids: list[int]
    num_reasoning_tokens: int
    num_cached_tokens: int
    seen: Seen = field(default_factory=Seen)

    def with_one_more(self, request: Request) -> Self:
        """Add the turn that runs."""
        return replace(
            self,
            prompt_token_ids=self.prompt_token_ids + request.prompt_token_ids,
            num_reasoning_tokens=self.num_reasoning_tokens + request.num_reasoning_tokens,
            num_cached_tokens=self.num_cached_tokens
            + min(request.num_cached_tokens, len(request.prompt_token_ids)),
            seen=request.seen,
        )


class SearchingAnswer:
    """One answer on its way, with the searches that the model asks for in between.

    Iterate once; the last event is Finished, with the counts of all turns, and `turns` then has
    the sources. `leave` must be called when nobody reads any longer, as with `Answer`.
    """

    def __init__(
        self, worker: Worker, turns: SearchTurns, options: ChatOptions, threads: SearchThreads
    ) -> None:
        self.turns = turns
        self._threads = threads
        self._worker = worker
        self._options = options
        self._answer: Answer | None = None
        self._is_left = False

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._read()

    async def start(self) -> None:
        """Search beforehand where that was asked for, and let the first turn run.

        Raises what `Worker.begin` does, and RefusedError where a forced search failed.
        """
        try:
            if self.turns.searches_first:
                await self._threads.run(self.turns.begin)
        except EndpointError as error:
            raise RefusedError(
                f"The search that was asked for failed. {error}", status=502, code="search_failed"
            ) from error
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

    @property
    def request(self) -> "TurnsSoFar":
        """What all turns have come to."""
        spent = TurnsSoFar(
            prompt_token_ids=self.turns.prompt_token_ids,
            num_reasoning_tokens=sum(usage.reasoning_tokens for usage in self.turns.usages),
            num_cached_tokens=sum(usage.cached_tokens for usage in self.turns.usages),
        )
        return spent if self._answer is None else spent.with_one_more(self._answer.request)

    async def _read(self) -> AsyncIterator[Event]:
        while self._answer is not None and not self._is_left:
            held: list[TokenText] = []
            async for event in self._answer:
                if isinstance(event, Finished):
                    self._answer = None  # from now on its counts are the turns'
                    goes_on = await self._take(event.completion)
                    for one in held:
                        yield replace(one, calls=(), logprobs=None) if goes_on else one
                    if not goes_on:
                        yield Finished(completion=self.turns.finish(event.completion))
                        return
                elif held or event.calls:
                    held.append(event)
                else:
                    yield self.turns.join(event)
            await self._ask()

    async def _take(self, completion: Completion) -> bool:
        take = partial(self.turns.take, completion)
        return await self._threads.run(take) if self.turns.asks(completion) else take()

    async def _ask(self) -> None:
        """Let the next turn run, unless its reader has gone meanwhile."""
        if self._is_left:
            return
        asked = self.turns.options(self._options)
        self._answer = await self._worker.begin(self.turns.messages, asked)
        if self._is_left:
            self._answer.leave()
