"""What the server counts, for Prometheus: requests, tokens, times, and what waits or runs now.

Labels come from closed sets: routes as they are declared, models by their served names, codes of
errors; never a word of a request. Every app has a registry of its own.
"""

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from qianyan.server.asking import Asked
from qianyan.server.rates import Rates
from qianyan.server.settings import ServerLimits

REQUEST_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
FIRST_TOKEN_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
UNKNOWN_ROUTE = "none"
# A second series for each, which holds nothing but the time it began.
disable_created_metrics()  # type: ignore[no-untyped-call]
KINDS = ("prompt", "cached", "completion")
Gauges = Mapping[tuple[str, str], Callable[[], float]]
"""By name and meaning, how each is read."""


class Metrics:
    """The counts of one app, and the rates of its keys, which live on the same numbers."""

    def __init__(self, limits: ServerLimits) -> None:
        self.rates = Rates(limits)
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "qianyan_requests",
            "Requests answered, by declared route, model and status.",
            ["route", "model", "status"],
            registry=self._registry,
        )
        self._refused = Counter(
            "qianyan_errors",
            "Requests refused or failed, also in the middle of a stream, by the code of the error.",
            ["code"],
            registry=self._registry,
        )
        self._tokens = Counter(
            "qianyan_tokens",
            "Tokens of prompts, those of them that were known already (cached), and of answers.",
            ["model", "kind"],
            registry=self._registry,
        )
        self._searches = Counter(
            "qianyan_searches",
            "Web searches, by provider and whether it answered (good) or not (failed).",
            ["provider", "outcome"],
            registry=self._registry,
        )
        self._request_s = self._times(
            "qianyan_request_seconds", "From the first byte to the last, by route.", REQUEST_S,
            label="route",
        )  # fmt: skip
        self._first_token_s = self._times(
            "qianyan_first_token_seconds", "From the request to its first token.", FIRST_TOKEN_S
        )
        self._token_s = self._times(
            "qianyan_token_seconds", "From one token to the next, averaged over an answer.", TOKEN_S
        )

    def watch(self, gauges: Gauges) -> None:
        """Read values whenever the counts are asked for."""
        self._registry.register(_Gauges(gauges))

    def count_answer(self, asked: Asked, tokens: Mapping[str, int]) -> None:
        """Count the tokens of an answer, whole or cut, by `KINDS`; its key pays for them."""
        for kind in KINDS:
            self._tokens.labels(asked.model, kind).inc(tokens[kind])
        asked.prompt_tokens += tokens["prompt"]
        asked.cached_tokens += tokens["cached"]
        asked.completion_tokens += tokens["completion"]
        self.rates.pay_tokens(asked.owner_id, tokens["prompt"] + tokens["completion"])
        if asked.first_token_at is not None:
            self._first_token_s.labels(asked.model).observe(asked.first_token_at - asked.started_at)
            if tokens["completion"] > 1:
                spent_s = time.monotonic() - asked.first_token_at
                self._token_s.labels(asked.model).observe(spent_s / (tokens["completion"] - 1))

    def count_speech(self, asked: Asked, num_codes: int) -> None:
        """Count the codes of an answer that was spoken, whole or cut; its key pays for them."""
        self._tokens.labels(asked.model, "completion").inc(num_codes)
        asked.completion_tokens += num_codes
        self.rates.pay_tokens(asked.owner_id, num_codes)

    def count_request(self, asked: Asked, *, route: str, status: int) -> None:
        """Count a request when its last byte is sent."""
        self._requests.labels(route, asked.model, str(status)).inc()
        self._request_s.labels(route).observe(time.monotonic() - asked.started_at)
        if asked.error_code:
            self._refused.labels(asked.error_code).inc()

    def count_search(self, provider: str, *, is_good: bool) -> None:
        """Count a web search when it has ended; from any thread."""
        self._searches.labels(provider, "good" if is_good else "failed").inc()

    def write(self) -> str:
        """Write everything in Prometheus' text format."""
        return generate_latest(self._registry).decode()

    def _times(
        self, name: str, meaning: str, buckets: tuple[float, ...], *, label: str = "model"
    ) -> Histogram:
        return Histogram(name, meaning, [label], buckets=buckets, registry=self._registry)


class _Gauges(Collector):
    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for (name, meaning), read in self._gauges.items():
            yield GaugeMetricFamily(name, meaning, value=read())
