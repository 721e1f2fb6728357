"""Incidents against labelled time spans, counted by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from qianyan.errors import ConfigError
from qianyan.inspection.evaluation.events import (
    EventFigures,
    Span,
    Stream,
    read_event_labels,
    read_incidents,
    score_events,
)
from qianyan.inspection.evaluation.rates import Rate
from qianyan.inspection.records import Hazard

FIRE = frozenset({Hazard.FIRE})


def span(start_s: float, end_s: float | None, hazard: Hazard = Hazard.FIRE) -> Span:
    return Span("gate", hazard, start_s, end_s)


def scored(incidents: list[Span], spans: list[Span]) -> EventFigures:
    stream = Stream("gate", 1800.0, FIRE, tuple(spans))
    return score_events(incidents, [stream]).by_hazard[Hazard.FIRE]


def test_an_incident_within_a_span_notices_it_with_its_delay() -> None:
    result = scored([span(14, 30)], [span(10, 60), span(100, 120)])
    assert (result.noticed, result.delays_s) == (Rate(1, 2), (4.0,))
    assert (result.false_alarms, result.repeated) == (0, 0)


def test_what_began_long_before_is_a_false_alarm_however_long_it_lasts() -> None:
    result = scored([span(0, None)], [span(100, 120)])
    assert (result.noticed, result.false_alarms) == (Rate(0, 1), 1)


@pytest.mark.parametrize(("start_s", "is_noticed"), [(98, True), (97.9, False), (120, True),
                                                     (120.1, False)])  # fmt: skip
def test_labelled_beginnings_may_be_a_little_late_and_ends_are_ends(
    start_s: float, is_noticed: bool
) -> None:
    result = scored([span(start_s, None)], [span(100, 120)])
    assert result.noticed == Rate(int(is_noticed), 1)
    assert result.delays_s in ((), (0.0,), (20.0,))


def test_a_span_that_begins_while_a_noticed_incident_is_open_is_noticed_at_once() -> None:
    result = scored([span(12, 50)], [span(10, 20), span(40, 60), span(100, 110)])
    assert (result.noticed, result.delays_s) == (Rate(2, 3), (2.0, 0.0))


def test_further_incidents_of_a_span_are_repeats_and_not_false_even_when_equal() -> None:
    result = scored([span(12, 13), span(12, 13), span(15, 16)], [span(10, 20)])
    assert (result.noticed, result.repeated, result.false_alarms) == (Rate(1, 1), 2, 0)


def test_false_alarms_are_counted_by_the_hour_watched_with_an_exact_interval() -> None:
    result = scored([span(1, 2), span(1, 2)], [])
    assert result.false_alarms_per_hour == 4
    assert result.interval_per_hour == pytest.approx((2 * 0.2422, 2 * 7.2247), abs=0.001)
    assert scored([], []).noticed.value is None


def test_streams_and_hazards_that_nobody_labelled_are_left_out_and_counted() -> None:
    smoke, elsewhere = span(1, 2, Hazard.SMOKE), Span("yard", Hazard.FIRE, 1, 2)
    score = score_events([smoke, elsewhere, span(1, 2)], [Stream("gate", 60, FIRE, ())])
    assert (score.unlabelled, set(score.by_hazard)) == (2, {Hazard.FIRE})


def test_streams_are_added_up() -> None:
    streams = [
        Stream("gate", 1800, FIRE, (span(10, 20),)),
        Stream("yard", 1800, FIRE, (Span("yard", Hazard.FIRE, 10, 20),)),
    ]
    incidents = [span(11, 12), Span("yard", Hazard.FIRE, 17, None)]
    record = score_events(incidents, streams).as_record()["hazards"]["fire"]
    assert record["noticed"]["hits"] == record["noticed"]["total"] == 2
    assert record["watched_s"] == 3600
    assert record["delay_s"] == {"median": 4.0, "most": 7.0}


def write(path: Path, whole: Any) -> Path:
    path.write_text(json.dumps(whole))
    return path


def labels(**more: Any) -> dict[str, Any]:
    stream = {"stream": "gate", "duration_s": 60, "labelled": ["fire"], "spans": []}
    return {"schema": "qianyan.event-labels/1", "streams": [{**stream, **more}]}


def test_both_files_are_read(tmp_path: Path) -> None:
    one = {"label_id": "fire", "start_s": 1, "end_s": None}
    incidents = {"schema": "qianyan.incidents/1", "incidents": [{**one, "stream": "gate"}]}
    assert read_incidents(write(tmp_path / "i.json", incidents)) == [span(1, None)]
    (stream,) = read_event_labels(write(tmp_path / "l.json", labels(spans=[one])))
    assert stream == Stream("gate", 60, FIRE, (span(1, None),))


@pytest.mark.parametrize(
    ("whole", "message"),
    [
        ([], "has the schema 'None'; expected qianyan.event-labels/1"),
        (labels(duration_s=0), "a stream without duration"),
        (labels(duration_s=float("nan")), "no number of seconds"),
        (labels(spans=[{"label_id": "smoke", "start_s": 1}]), "not labelled for it"),
        (labels(spans=[{"label_id": "fire", "start_s": 9, "end_s": 1}]), "ends before it begins"),
        (labels(spans=[{"label_id": "fire", "start_s": 61}]), "behind the end"),
        (labels(spans=[{"label_id": "flood", "start_s": 1}]), "'flood' is not a valid Hazard"),
        (labels(labelled=None), "is not in the form qianyan.event-labels/1"),
        ({**labels(), "streams": []}, "no stream, or one twice"),
    ],
)
def test_labels_that_cannot_be_scored_are_refused(whole: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_event_labels(write(tmp_path / "l.json", whole))


def test_a_missing_file_and_one_that_is_not_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        read_incidents(tmp_path / "none.json")
    (tmp_path / "text").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_incidents(tmp_path / "text")
