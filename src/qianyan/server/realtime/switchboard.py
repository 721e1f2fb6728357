"""All conversations over sockets of one server: how many there are, and the threads that listen."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from fastapi import FastAPI

from qianyan.server.errors import RefusedError
from qianyan.server.metrics import Metrics
from qianyan.server.realtime.vad import SpeechModel, find_model
from qianyan.server.serving import Serving
from qianyan.server.settings import RealtimeLimits

RETRY_AFTER_S = 10


class Switchboard:
    """Lets conversations begin as long as there is room; used on one event loop only."""

    def __init__(self, limits: RealtimeLimits, vad_file: Path | None) -> None:
        self.limits = limits
        self.threads = ThreadPoolExecutor(limits.max_threads, thread_name_prefix="ear")
        self._vad_file = vad_file
        self._model: SpeechModel | None = None
        self._loading = asyncio.Lock()
        self._open: Counter[str] = Counter()

    @property
    def num_open(self) -> int:
        """Count the conversations."""
        return self._open.total()

    async def speech_model(self) -> SpeechModel | None:
        """Load the detector of speech, or give what was loaded; None where it is not installed."""
        if self._vad_file is None:
            return None
        async with self._loading:
            if self._model is None:
                self._model = await asyncio.to_thread(SpeechModel, self._vad_file)
            return self._model

    @contextmanager
    def place(self, owner_id: str) -> Iterator[None]:
        """Take a place for one conversation; raises RefusedError where there is none."""
        if self.num_open >= self.limits.max_sessions:
            raise _full(f"{self.limits.max_sessions} conversations are open, the most that may be")
        if self._open[owner_id] >= self.limits.max_sessions_per_key:
            most = self.limits.max_sessions_per_key
            raise _full(f"{most} conversations of this key are open, the most that may be")
        self._open[owner_id] += 1
        try:
            yield
        finally:
            self._open[owner_id] -= 1
            if not self._open[owner_id]:
                del self._open[owner_id]


def _full(what: str) -> RefusedError:
    return RefusedError(
        f"{what}. Try again later.",
        status=429,
        code="limit_sessions",
        retry_after_s=RETRY_AFTER_S,
    )


@asynccontextmanager
async def listen(app: FastAPI) -> AsyncIterator[None]:
    """Keep a switchboard for as long as an app runs."""
    serving: Serving = app.state.serving
    board = app.state.switchboard = Switchboard(serving.settings.realtime, find_model())
    metrics: Metrics = app.state.metrics
    metrics.watch(
        {("qianyan_conversations", "Conversations over sockets."): lambda: board.num_open}
    )
    try:
        yield
    finally:
        board.threads.shutdown(wait=False, cancel_futures=True)
