"""An endpoint without a schema is read no further than the last wanted object."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qianyan.inputs.images import Photo
from qianyan.inspection.detect import Lister
from qianyan.inspection.prompts import ListingForm
from qianyan.inspection.records import Look
from qianyan.inspection.remote.chat_endpoint import Patience
from qianyan.inspection.remote.completions import collect
from qianyan.inspection.remote.event_stream import Delta
from qianyan.inspection.remote.probe import probe
from qianyan.inspection.remote.profile import EndpointProfile
from qianyan.inspection.remote.vision import RemoteVision

Start = Callable[..., "SimulatedEndpoint"]  # noqa: F821  (conftest.py)
HASTY = Patience(timeout_s=5.0, attempts=2, first_wait_s=0.01)
PHOTO = Photo(Image.new("RGB", (644, 476), (128, 128, 128)))
OBJECTS = [
    {"bbox_2d": [x, 50, x + 40, 90 + x % 50], "label": "person", "sub_label": "helmet"}
    for x in (10, 77, 160, 222, 301, 390, 477, 555)
]
ROWS = [[*one["bbox_2d"], one["label"], one["sub_label"]] for one in OBJECTS]  # type: ignore[misc]


@pytest.fixture(autouse=True)
def no_saved_profiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the user's own saved profiles out of the tests."""
    monkeypatch.setattr(
        "qianyan.inspection.remote.profile.profiles_path", lambda: tmp_path / "endpoints.json"
    )


def look(endpoint: Any, *, max_objects: int = 3, answer: str = "objects", **known: Any) -> Look:
    settings = {"has_schema": False, "has_stream": True, **known}
    profile = EndpointProfile(base_url=endpoint.base_url, model="squares-vl", **settings)
    vision = RemoteVision(endpoint.base_url, profile=profile, patience=HASTY)
    form = ListingForm(answer=answer)  # type: ignore[arg-type]
    return Lister(vision=vision, lang="en", max_objects=max_objects, form=form).look(PHOTO)


@pytest.mark.parametrize(("answer", "said"), [("objects", OBJECTS), ("rows", ROWS)])
@pytest.mark.parametrize("opening", ["", "```json\n", "Of course:\n\n"])
def test_the_connection_is_closed_behind_the_last_wanted_object(
    start_endpoint: Start, answer: str, said: list[Any], opening: str
) -> None:
    endpoint = start_endpoint(stream="pieces", reply=opening + json.dumps(said), piece_s=0.002)
    found = look(endpoint, answer=answer)
    assert [one.box.x1 for one in found.detections] == [10, 77, 160]
    assert found.notes == ()
    assert found.raw == opening + json.dumps(said[:3]).removesuffix("]")
    assert {one.score_kind for one in found.detections} == {"logprob"}
    time.sleep(0.05)
    whole = len(opening + json.dumps(said)) // 5
    assert endpoint.pieces_sent < 0.8 * whole, "the rest was not sent"
    assert found.usage.completion_tokens < 0.5 * len(json.dumps(said))
    (request,) = endpoint.requests
    assert request["stream"] is True
    assert "response_format" not in request


def test_an_answer_with_fewer_objects_is_read_to_its_end(start_endpoint: Start) -> None:
    endpoint = start_endpoint(stream="pieces", reply=json.dumps(OBJECTS[:2]))
    found = look(endpoint)
    assert len(found.detections) == 2
    assert found.raw == json.dumps(OBJECTS[:2])
    assert found.usage.prompt_tokens == 1234
    assert look(start_endpoint(stream="pieces", reply="[]")).detections == ()


def test_an_answer_cut_at_its_length_limit_still_says_so(start_endpoint: Start) -> None:
    cut = json.dumps(OBJECTS[:3])[:-60]
    found = look(start_endpoint(stream="pieces", reply=cut, finish_reason="length"))
    assert found.notes == ("the answer was cut; 2 objects were read",)


@pytest.mark.parametrize(
    "known", [{"has_stream": None}, {"has_stream": False}, {"has_schema": True}], ids=str
)
def test_nothing_is_streamed_where_that_is_unknown_or_a_schema_ends_the_list(
    start_endpoint: Start, known: dict[str, Any]
) -> None:
    endpoint = start_endpoint(stream="pieces", reply=json.dumps(OBJECTS))
    found = look(endpoint, **known)
    assert "stream" not in endpoint.requests[0]
    assert len(found.detections) == 3
    assert found.notes == ("5 beyond the limit of 3 left out",)


@pytest.mark.parametrize("stream", ["whole", "refused"])
def test_an_endpoint_that_no_longer_streams_is_asked_as_usual(
    start_endpoint: Start, stream: str
) -> None:
    endpoint = start_endpoint(stream=stream, reply=json.dumps(OBJECTS))
    found = look(endpoint)
    assert [one.box.x1 for one in found.detections] == [10, 77, 160]
    assert len(endpoint.requests) == (2 if stream == "refused" else 1)


@pytest.mark.parametrize(
    ("stream", "expected"), [("pieces", True), ("whole", False), ("refused", False)]
)
def test_the_probe_finds_out_whether_answers_stream(
    start_endpoint: Start, stream: str, expected: bool
) -> None:
    assert probe(start_endpoint(stream=stream).base_url, patience=HASTY).has_stream is expected


def test_what_an_endpoint_counts_is_believed_where_it_counts() -> None:
    text = json.dumps(OBJECTS)
    pieces = [Delta(text=text[:200], completion_tokens=70, prompt_tokens=900)]
    reply = collect(iter([*pieces, Delta(text=text[200:])]), 1)
    assert reply["usage"] == {"prompt_tokens": 900, "completion_tokens": 70}
    assert reply["choices"][0]["finish_reason"] == "enough"
    assert collect([Delta(text="[]", finish_reason="stop")], 1)["usage"] == {}
