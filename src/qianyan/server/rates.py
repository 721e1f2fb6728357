"""How fast each key may ask: requests and tokens a minute, as buckets that fill up steadily.

A bucket holds what one minute brings, so a key that was silent may ask that much at once. A request
is paid when it comes, its tokens when they are known: a bucket may then go below nothing, and the
key waits until it is above it again. Responses tell the state in OpenAI's `x-ratelimit-` headers.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from qianyan.server.errors import RefusedError
from qianyan.server.settings import ServerLimits

MINUTE_S = 60.0


@dataclass
class Bucket:
    """What is left of so much a minute."""

    per_minute: int
    level: float
    at: float

    def fill(self, now: float) -> None:
        """Add what has come in since the last time."""
        gain = (now - self.at) * self.per_minute / MINUTE_S
        self.level, self.at = min(float(self.per_minute), self.level + gain), now

    def wait_s(self, amount: float) -> float:
        """Say how long it takes until so much is there; 0 where it is."""
        return max(0.0, (amount - self.level) * MINUTE_S / self.per_minute)


class Rates:
    """The buckets of all keys; used on one event loop only."""

    def __init__(self, limits: ServerLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = {
            name: most
            for name, most in (
                ("requests", limits.requests_per_minute),
                ("tokens", limits.tokens_per_minute),
            )
            if most
        }
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def pay_request(self, owner_id: str) -> None:
        """Take one request; raises RefusedError with 429 and the seconds to wait."""
        for name in self._most:
            bucket = self._bucket(owner_id, name)
            wait_s = bucket.wait_s(1)
            if wait_s > 0:
                raise RefusedError(
                    f"This key has used up its {bucket.per_minute} {name} a minute. "
                    f"Try again in {math.ceil(wait_s)} s.",
                    status=429,
                    code="limit_requests" if name == "requests" else "limit_tokens",
                    retry_after_s=math.ceil(wait_s),
                )
        self._spend(owner_id, "requests", 1)

    def pay_tokens(self, owner_id: str, count: int) -> None:
        """Take the tokens of an answer, even where there are not so many left."""
        self._spend(owner_id, "tokens", count)

    def headers(self, owner_id: str) -> dict[str, str]:
        """Tell limits, what is left of them, and when all of it is there again."""
        told = {}
        for name, most in self._most.items():
            bucket = self._bucket(owner_id, name)
            told[f"x-ratelimit-limit-{name}"] = str(most)
            told[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level)))
            told[f"x-ratelimit-reset-{name}"] = f"{bucket.wait_s(most):.1f}s"
        return told

    def _spend(self, owner_id: str, name: str, count: int) -> None:
        if name in self._most:
            self._bucket(owner_id, name).level -= count

    def _bucket(self, owner_id: str, name: str) -> Bucket:
        now = self._clock()
        bucket = self._buckets.get((owner_id, name))
        if bucket is None:
            most = self._most[name]
            bucket = self._buckets[owner_id, name] = Bucket(most, float(most), now)
        bucket.fill(now)
        return bucket
