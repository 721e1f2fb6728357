"""The request at hand, found from anywhere it leads to: who asks, until when, what it has cost.

The edge begins a record for every request and the runner of tasks for every task; it lies in a
ContextVar, so that the line, the worker, the log and the counts find it without being handed it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from qianyan.server.keys import NOBODY


@dataclass(kw_only=True)
class Asked:
    """One request; changed on the event loop only.

    `ends_at` is the time of `time.monotonic` at which its answer is cut, None: never. `model` is
    set once the name is known to be served, `error_code` when something is refused or fails.
    """

    request_id: str = ""
    owner_id: str = NOBODY
    ends_at: float | None = None
    model: str = ""
    error_code: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    started_at: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None

    def note_token(self) -> None:
        """Keep when the first token came."""
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()


_ASKED: ContextVar[Asked | None] = ContextVar("asked", default=None)


def asked_now() -> Asked:
    """Give the record of the request at hand; outside of requests one that nobody keeps."""
    return _ASKED.get() or Asked()


@contextmanager
def asking(asked: Asked) -> Iterator[Asked]:
    """Let a record be that of all that is done within, tasks begun there included."""
    token = _ASKED.set(asked)
    try:
        yield asked
    finally:
        _ASKED.reset(token)
