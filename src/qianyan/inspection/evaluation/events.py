"""Incidents against time spans: how many were noticed, how late, and how many were none.

Two files: what was raised (`qianyan.incidents/1`) and what happened (`qianyan.event-labels/1`);
docs/evaluation.md describes both. An incident notices a span of its own stream and hazard when it
begins within the span, or at most `tolerance_s` before it: what began long before was a false
alarm, however long it lasted. A span that begins while such a noticed incident is still open is
noticed at once. Streams and hazards that nobody labelled are not scored.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from qianyan.errors import ConfigError, quote
from qianyan.inspection.evaluation.rates import Rate, poisson_interval, rounded
from qianyan.inspection.records import Hazard

INCIDENTS_SCHEMA = "qianyan.incidents/1"
LABELS_SCHEMA = "qianyan.event-labels/1"
TOLERANCE_S = 2.0
"""Labelled beginnings are not exact; half of a usual gap between two looks at a camera."""
HOUR_S = 3600.0


@dataclass(frozen=True)
class Span:
    """A time in a stream, in seconds from its beginning; `end_s` None: open until its end."""

    stream: str
    hazard: Hazard
    start_s: float
    end_s: float | None

    def is_open(self, at_s: float) -> bool:
        """Whether the span covers a moment."""
        return self.start_s <= at_s and (self.end_s is None or at_s <= self.end_s)


@dataclass(frozen=True)
class Stream:
    """A labelled stream: its length, the hazards that were looked for, and what happened."""

    name: str
    duration_s: float
    labelled: frozenset[Hazard]
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class EventFigures:
    """What became of the incidents of one hazard, or of all."""

    noticed: Rate
    false_alarms: int
    repeated: int
    """Incidents beyond the first of a span."""
    watched_s: float
    delays_s: tuple[float, ...]

    @property
    def false_alarms_per_hour(self) -> float | None:
        """False alarms for each hour watched; None where no time was watched."""
        return self.false_alarms / self.watched_s * HOUR_S if self.watched_s else None

    @property
    def interval_per_hour(self) -> tuple[float, float] | None:
        """The 95 % interval of false alarms for each hour."""
        if not self.watched_s:
            return None
        low, high = poisson_interval(self.false_alarms)
        return low / self.watched_s * HOUR_S, high / self.watched_s * HOUR_S

    def __add__(self, other: "EventFigures") -> "EventFigures":
        return EventFigures(
            self.noticed + other.noticed,
            self.false_alarms + other.false_alarms,
            self.repeated + other.repeated,
            self.watched_s + other.watched_s,
            self.delays_s + other.delays_s,
        )

    def as_record(self) -> dict[str, Any]:
        """Write the figures as JSON values."""
        interval = self.interval_per_hour
        return {
            "noticed": self.noticed.as_record(),
            "false_alarms": self.false_alarms,
            "repeated": self.repeated,
            "watched_s": rounded(self.watched_s),
            "false_alarms_per_hour": {
                "value": rounded(self.false_alarms_per_hour),
                "interval_95": interval and [rounded(bound) for bound in interval],
            },
            "delay_s": {
                "median": rounded(median(self.delays_s)) if self.delays_s else None,
                "most": rounded(max(self.delays_s, default=None)),
            },
        }


@dataclass(frozen=True)
class EventScore:
    """Figures by hazard, for the hazards that were looked for, and incidents left unscored."""

    by_hazard: Mapping[Hazard, EventFigures]
    unlabelled: int

    def as_record(self) -> dict[str, Any]:
        """Write the score as JSON values."""
        return {
            "schema": "qianyan.event-eval/1",
            "unlabelled_incidents": self.unlabelled,
            "hazards": {hazard.value: one.as_record() for hazard, one in self.by_hazard.items()},
        }


def score_events(
    incidents: Sequence[Span], streams: Sequence[Stream], *, tolerance_s: float = TOLERANCE_S
) -> EventScore:
    """Score incidents against what happened in the labelled streams."""
    scores: dict[Hazard, EventFigures] = {}
    num_scored = 0
    for stream in streams:
        for hazard in sorted(stream.labelled):
            mine = [one for one in incidents if (one.stream, one.hazard) == (stream.name, hazard)]
            spans = [one for one in stream.spans if one.hazard is hazard]
            one = _score(mine, spans, stream.duration_s, tolerance_s)
            scores[hazard] = scores[hazard] + one if hazard in scores else one
            num_scored += len(mine)
    return EventScore(scores, len(incidents) - num_scored)


def _score(
    incidents: Sequence[Span], spans: Sequence[Span], duration_s: float, tolerance_s: float
) -> EventFigures:
    """Score one hazard of one stream."""
    free = list(range(len(incidents)))
    noticing: list[Span] = []
    delays: list[float] = []
    first = 0  # incidents that were the first of their span
    for span in sorted(spans, key=lambda one: one.start_s):
        new = [index for index in free if _notices(incidents[index], span, tolerance_s)]
        if any(one.is_open(span.start_s) for one in noticing):
            delays.append(0.0)
        elif new:
            start = min(incidents[index].start_s for index in new)
            delays.append(max(start - span.start_s, 0.0))
            first += 1
        free = [index for index in free if index not in new]
        noticing += [incidents[index] for index in new]
    return EventFigures(
        noticed=Rate(len(delays), len(spans)),
        false_alarms=len(free),
        repeated=len(noticing) - first,
        watched_s=duration_s,
        delays_s=tuple(delays),
    )


def _notices(incident: Span, span: Span, tolerance_s: float) -> bool:
    """Whether an incident begins with a span or in it."""
    is_over = span.end_s is not None and incident.start_s > span.end_s
    return incident.start_s >= span.start_s - tolerance_s and not is_over


def read_incidents(path: Path) -> list[Span]:
    """Load a list of incidents; ConfigError with a sentence when it is not one."""
    whole = _read(path, INCIDENTS_SCHEMA)
    try:
        return [_span(one["stream"], one) for one in whole["incidents"]]
    except (ValueError, KeyError, TypeError) as error:
        raise _malformed(path, INCIDENTS_SCHEMA, error) from error


def read_event_labels(path: Path) -> list[Stream]:
    """Load what happened in streams; ConfigError with a sentence when it is not that."""
    whole = _read(path, LABELS_SCHEMA)
    try:
        streams = [_stream(one) for one in whole["streams"]]
    except (ValueError, KeyError, TypeError) as error:
        raise _malformed(path, LABELS_SCHEMA, error) from error
    names = [one.name for one in streams]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{quote(path)} has no stream, or one twice; expected each once.")
    return streams


def _stream(record: Mapping[str, Any]) -> Stream:
    labelled = frozenset(map(Hazard, record["labelled"]))
    stream = Stream(
        str(record["stream"]),
        _seconds(record["duration_s"]),
        labelled,
        tuple(_span(record["stream"], one) for one in record["spans"]),
    )
    for span in stream.spans:
        if span.hazard not in labelled:
            raise ValueError(f"a span of {span.hazard} in a stream not labelled for it")
        if span.start_s > stream.duration_s:
            raise ValueError("a span behind the end of its stream")
    if not stream.duration_s > 0:
        raise ValueError("a stream without duration")
    return stream


def _span(stream: str, record: Mapping[str, Any]) -> Span:
    end = record.get("end_s")
    span = Span(
        str(stream),
        Hazard(record["label_id"]),
        _seconds(record["start_s"]),
        None if end is None else _seconds(end),
    )
    if span.end_s is not None and span.end_s < span.start_s:
        raise ValueError("a time that ends before it begins")
    return span


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{value} is no number of seconds")
    return seconds


def _read(path: Path, schema: str) -> Mapping[str, Any]:
    try:
        whole = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{quote(path)} cannot be opened; expected {schema}.") from error
    except ValueError as error:
        raise ConfigError(f"{quote(path)} is not JSON; expected {schema}.") from error
    if not isinstance(whole, dict) or whole.get("schema") != schema:
        got = whole.get("schema") if isinstance(whole, dict) else None
        raise ConfigError(f"{quote(path)} has the schema {quote(got)}; expected {schema}.")
    return whole


def _malformed(path: Path, schema: str, error: Exception) -> ConfigError:
    return ConfigError(f"{quote(path)} is not in the form {schema}: {quote(error)}.")
