"""Times of a video: every form that models write, and what lies outside."""

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qianyan.errors import ReplyError
from qianyan.reading.moments import Moment, find_seconds, moments_schema, parse_moments


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (12, 12.0),
        (12.5, 12.5),
        ("12.5", 12.5),
        ("12.5s", 12.5),
        ("12 seconds", 12.0),
        ("12秒", 12.0),
        ("1:02", 62.0),
        ("01:02.5", 62.5),
        ("75:00", 4500.0),
        ("1:02:03.25", 3723.25),
        (" 00:00 ", 0.0),
        ("1:75", None),
        ("1:75:00", None),
        ("-3", None),
        (-3.0, None),
        (float("inf"), None),
        (True, None),
        ("soon", None),
        ("", None),
        (None, None),
        ("1:2:3:4", None),
        ("9" * 400, None),
    ],
)
def test_times_are_read_in_the_forms_that_models_write(
    written: object, seconds: float | None
) -> None:
    assert find_seconds(written) == seconds


@given(st.floats(0, 359_999, allow_nan=False))
def test_a_time_written_in_hours_minutes_and_seconds_is_read_back(seconds: float) -> None:
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    assert find_seconds(f"{hours}:{minutes:02d}:{rest:04.1f}") == pytest.approx(seconds, abs=0.06)


def test_spans_are_placed_in_the_video(caplog: pytest.LogCaptureFixture) -> None:
    reply = """```json
    [{"start": "00:05.0", "end": "00:09.5", "description": " a door opens "},
     {"start_time": 50, "end_time": "1:30", "event": "someone leaves"},
     {"start": "1:00", "end": "1:10", "description": "after the end"},
     {"start": "0:30", "end": "0:20", "description": "backwards"},
     {"start": "0:30", "description": "endless"}]
    ```"""
    with caplog.at_level(logging.WARNING):
        moments = parse_moments(reply, duration_s=60.0)
    assert moments == (
        Moment(start_s=5.0, end_s=9.5, description="a door opens"),
        Moment(start_s=50.0, end_s=60.0, description="someone leaves"),
    )
    assert "left_out=3" in caplog.text


def test_never_is_a_statement_and_prose_is_none() -> None:
    assert parse_moments("[]", duration_s=60.0) == ()
    for reply in ("", "It never happens.", "{}", '[{"start": "0:0', "[" * 70, "[[], []]"):
        with pytest.raises(ReplyError):
            parse_moments(reply, duration_s=60.0)


def test_an_answer_about_another_video_is_an_error() -> None:
    with pytest.raises(ReplyError, match="lies in the video of 60 seconds"):
        parse_moments('[{"start": "2:00", "end": "3:00"}]', duration_s=60.0)


def test_the_schema_lets_nothing_but_times_be_written() -> None:
    pattern = moments_schema()["items"]["properties"]["start"]["pattern"]
    for good in ("00:05.0", "12:34", "01:02:03.4"):
        assert re.search(pattern, good)
        assert find_seconds(good) is not None
    assert not any(re.search(pattern, bad) for bad in ("1:75", "soon", "5", "00:05.00s"))
