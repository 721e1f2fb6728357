"""The line before the model: seats shared fairly among keys, in a line of bounded length.

A free seat goes to the key that holds the fewest, and among equals to the one that was served
longest ago, so that a thousand requests of one key delay another's one by a single answer. A full
line takes a newcomer only in place of the last of a key that has more waiting than its own.
"""

import asyncio
import itertools
from collections import Counter, deque

from qianyan.server.errors import RefusedError
from qianyan.server.settings import ServerLimits

Place = asyncio.Future[None]
"""Done when its seat is free; or with the error that says why it will not be."""


class Line:
    """Seats and who waits for them; used on one event loop only."""

    def __init__(
        self, num_seats: int, limits: ServerLimits, *, most_each: int | None = None
    ) -> None:
        """Share seats out, at most `most_each` to one key; None: as many as there are."""
        self.num_waiting = 0
        self.num_seated = 0
        self._num_seats = num_seats
        self._most_each = most_each or num_seats
        self._limits = limits
        self._seated: Counter[str] = Counter()
        self._waiting: dict[str, deque[Place]] = {}
        self._served: dict[str, int] = {}  # when, by the count of turns; of who is in the line
        self._turns = itertools.count()

    async def sit(self, owner_id: str, *, is_new: bool = True) -> None:
        """Take a seat, or wait for one; whoever sits must `stand_up`.

        One more seat for a request that has one already (not `is_new`) is not counted against
        `max_open_per_key`.
        Raises RefusedError with 429 where no more may wait, with 503 after too long a wait.
        """
        if is_new:
            self._refuse_too_many_of(owner_id)
        if self._may_sit(owner_id) and not any(map(self._may_sit, self._waiting)):
            self._seat(owner_id)
            return
        if self.num_waiting >= self._limits.max_waiting:
            self._make_way(owner_id)
        place: Place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner_id, deque()).append(place)
        self.num_waiting += 1
        is_seated = False
        try:
            async with asyncio.timeout(self._limits.max_wait_s):
                await place
            is_seated = True
        except TimeoutError as error:
            raise self._too_late() from error
        finally:
            if not is_seated:
                self._give_up(owner_id, place)

    def stand_up(self, owner_id: str) -> None:
        """Give a seat back."""
        self.num_seated -= 1
        self._seated[owner_id] -= 1
        self._fill()
        if not self._seated[owner_id]:
            del self._seated[owner_id]
            if owner_id not in self._waiting:
                self._served.pop(owner_id, None)

    def _fill(self) -> None:
        while owners := [one for one in self._waiting if self._may_sit(one)]:
            owner_id = min(owners, key=self._rank)
            place = self._waiting[owner_id].popleft()
            self._note_left(owner_id)
            if not place.cancelled():  # whoever waited has just gone
                self._seat(owner_id)
                place.set_result(None)

    def _may_sit(self, owner_id: str) -> bool:
        return self.num_seated < self._num_seats and self._seated[owner_id] < self._most_each

    def _rank(self, owner_id: str) -> tuple[int, int]:
        return self._seated[owner_id], self._served.get(owner_id, -1)

    def _seat(self, owner_id: str) -> None:
        self.num_seated += 1
        self._seated[owner_id] += 1
        self._served[owner_id] = next(self._turns)

    def _note_left(self, owner_id: str) -> None:
        self.num_waiting -= 1
        if not self._waiting[owner_id]:
            del self._waiting[owner_id]

    def _make_way(self, owner_id: str) -> None:
        """Send the last of the longest line away, unless it would be the newcomer's own."""
        longest = max(self._waiting, key=lambda one: len(self._waiting[one]), default=owner_id)
        if len(self._waiting.get(longest, ())) <= len(self._waiting.get(owner_id, ())) + 1:
            raise self._full()
        place = self._waiting[longest].pop()
        self._note_left(longest)
        if not place.cancelled():
            place.set_exception(self._full())

    def _give_up(self, owner_id: str, place: Place) -> None:
        """Leave the line early; a seat that was given at that very moment goes to the next."""
        if place in self._waiting.get(owner_id, ()):
            self._waiting[owner_id].remove(place)
            self._note_left(owner_id)
        elif not place.cancelled() and place.exception() is None:
            self.stand_up(owner_id)

    def _refuse_too_many_of(self, owner_id: str) -> None:
        most = self._limits.max_open_per_key
        count = self._seated[owner_id] + len(self._waiting.get(owner_id, ()))
        if most and count >= most:
            raise RefusedError(
                f"{count} requests of this key are open, the most that may be. Try again later.",
                status=429,
                code="limit_concurrency",
                retry_after_s=self._limits.retry_after_s,
            )

    def _full(self) -> RefusedError:
        return RefusedError(
            f"{self._limits.max_waiting} requests are waiting, the most that may. Try again later.",
            status=429,
            code="limit_requests",
            retry_after_s=self._limits.retry_after_s,
        )

    def _too_late(self) -> RefusedError:
        return RefusedError(
            f"The request has waited {self._limits.max_wait_s:g} s for its turn, the longest "
            "that one may. Try again later.",
            status=503,
            code="server_busy",
            retry_after_s=self._limits.retry_after_s,
        )
