"""Events out of bytes, wherever the network cut them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qianyan.errors import EndpointError
from qianyan.inputs import event_lines
from qianyan.inputs.event_lines import EventLines

STREAM = (
    ': hello\r\n\r\nid:1\r\ndata: {"a":\r\ndata:"火"}\r\n\r\n\n\nevent: x\ndata: [DONE]'.encode()
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=5))
def test_events_are_the_same_however_they_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    events = EventLines("there")
    found = [event for start, stop in pairwise(edges) for event in events.push(STREAM[start:stop])]
    assert [*found, *events.finish()] == ['{"a":\n"火"}', "[DONE]"]


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_lines, "MAX_LINE_BYTES", 10)
    with pytest.raises(EndpointError, match="there sends more than"):
        EventLines("there").push(b"data: " + b"x" * 20)
