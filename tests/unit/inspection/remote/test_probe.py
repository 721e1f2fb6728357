"""The probe finds out what endpoints of every kind mean by their numbers, over real sockets."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from qianyan.errors import EndpointError
from qianyan.inputs.grounding import Notation
from qianyan.inputs.images import Photo
from qianyan.inspection.detect import detect
from qianyan.inspection.records import Box, Hazard
from qianyan.inspection.remote.chat_endpoint import Patience
from qianyan.inspection.remote.probe import draw_test_picture, probe, trial_sizes, true_boxes
from qianyan.inspection.remote.profile import EndpointProfile, find_profile, save_profile
from qianyan.inspection.remote.profile_words import profile_lines
from qianyan.inspection.remote.vision import RemoteVision

Start = Callable[..., "SimulatedEndpoint"]  # noqa: F821  (conftest.py)
HASTY = Patience(timeout_s=10.0, attempts=2, first_wait_s=0.01)
TOKEN = 28 * 28


@pytest.mark.parametrize(
    ("notation", "found"),
    [
        (Notation.RESIZED_PIXELS, Notation.RESIZED_PIXELS),
        (Notation.SENT_PIXELS, Notation.RESIZED_PIXELS),  # the same, once sizes are pinned
        (Notation.RELATIVE_1000, Notation.RELATIVE_1000),
        (Notation.RELATIVE_BELOW_1000, Notation.RELATIVE_1000),
        (Notation.RELATIVE_1, Notation.RELATIVE_1),
        (Notation.RESIZED_PIXELS_YX, Notation.RESIZED_PIXELS_YX),
        (Notation.RELATIVE_1000_YX, Notation.RELATIVE_1000_YX),
        (Notation.RELATIVE_1_YX, Notation.RELATIVE_1_YX),
    ],
)
def test_every_notation_is_recognised(
    start_endpoint: Start, notation: Notation, found: Notation
) -> None:
    endpoint = start_endpoint(notation=notation)
    profile = probe(endpoint.base_url, patience=HASTY)
    assert profile.notation is found
    assert profile.iou is not None
    assert profile.iou > 0.95
    assert profile.next_iou is not None
    assert profile.next_iou < 0.5
    assert profile.can_place_boxes


@pytest.mark.parametrize("tokens", [1024, 768, 512])
def test_a_hidden_resizing_is_noticed_and_stayed_below(start_endpoint: Start, tokens: int) -> None:
    endpoint = start_endpoint(max_pixels=tokens * TOKEN)
    profile = probe(endpoint.base_url, patience=HASTY)
    assert profile.notation is Notation.RESIZED_PIXELS
    assert profile.max_pixels == tokens * TOKEN
    assert profile.iou is not None
    assert profile.iou > 0.95
    photo = Photo(Image.new("RGB", (2000, 1500), (128, 128, 128)))
    photo.rgb.paste((230, 30, 30), (200, 300, 1000, 1200))
    (fire,) = detect(photo, RemoteVision(endpoint.base_url, profile=profile)).detections
    assert fire.box.iou(Box(200, 300, 1000, 1200)) > 0.95


def test_what_the_endpoint_supports_is_found_out(start_endpoint: Start) -> None:
    rich = probe(start_endpoint().base_url, patience=HASTY)
    assert (rich.has_schema, rich.has_logprobs) == (True, True)
    for schema, logprobs in (("ignored", "ignored"), ("refused", "refused")):
        poor = probe(
            start_endpoint(schema=schema, logprobs=logprobs, form="Here:\n{}").base_url,
            patience=HASTY,
        )
        assert (poor.has_schema, poor.has_logprobs) == (False, False)
        assert poor.can_place_boxes
    assert rich.tokens_per_picture == 1234
    assert rich.latency_s is not None
    assert rich.refused_pixels is None
    assert rich.largest_fitting_pixels == 2548 * 1428


def test_refused_sizes_are_stayed_below(start_endpoint: Start) -> None:
    endpoint = start_endpoint(most_accepted_pixels=600_000)
    profile = probe(endpoint.base_url, patience=HASTY)
    assert profile.can_place_boxes
    assert profile.refused_pixels is not None
    assert profile.refused_pixels > 600_000
    assert profile.max_pixels < 600_000
    lying = trial_sizes(768)[0]
    assert profile.max_pixels == lying[0] * lying[1]


def test_an_endpoint_that_takes_no_picture_is_an_error(start_endpoint: Start) -> None:
    with pytest.raises(EndpointError, match="too many tokens"):
        probe(start_endpoint(most_accepted_pixels=0).base_url, patience=HASTY)
    with pytest.raises(EndpointError, match="Nothing answers"):
        probe("http://127.0.0.1:9/v1", "m", patience=HASTY)


@pytest.mark.parametrize(
    "reply",
    [
        "I cannot see the image.",
        "[]",
        '[{"bbox_2d": [400, 400, 600, 600], "label": "red"}]',
        '[{"bbox_2d": [0, 0, 10, 10], "label": "a cat"}]',
    ],
)
def test_boxes_that_fit_nowhere_are_not_to_be_drawn(start_endpoint: Start, reply: str) -> None:
    endpoint = start_endpoint(reply=reply)
    profile = probe(endpoint.base_url, patience=HASTY)
    assert not profile.can_place_boxes
    assert profile.source == "probed"
    text = "\n".join(profile_lines(profile, "en"))
    assert "no boxes will be drawn" in text
    with pytest.raises(EndpointError, match="cannot be placed"):
        RemoteVision(endpoint.base_url, profile=profile)


def test_the_profile_is_said_in_both_languages(start_endpoint: Start) -> None:
    profile = probe(start_endpoint().base_url, patience=HASTY)
    english, chinese = profile_lines(profile, "en"), profile_lines(profile, "zh")
    assert len(english) == len(chinese) == 6
    assert "pixels of the resized picture (factor 28)  IoU 1.00" in english[1]
    assert "1316×728" in english[2]
    assert "缩放后图像的像素" in chinese[1]
    for lang in ("zh", "en"):
        for notation in Notation:
            one = EndpointProfile(base_url="http://h/v1", model="m", notation=notation, iou=0.9)
            assert all("{" not in line for line in profile_lines(one, lang))


def test_what_was_measured_is_saved_and_used(start_endpoint: Start, tmp_path: Path) -> None:
    endpoint = start_endpoint(notation=Notation.RELATIVE_1000_YX)
    path = tmp_path / "endpoints.json"
    save_profile(probe(endpoint.base_url, patience=HASTY), path=path)
    saved = find_profile(endpoint.base_url, "squares-vl", path=path)
    assert saved is not None
    photo = Photo(draw_test_picture(1000, 700))
    look = detect(photo, RemoteVision(endpoint.base_url, profile=saved), lang="en")
    truth = true_boxes(1000, 700)
    names = {Hazard.FIRE: "red", Hazard.PERSON: "green", Hazard.SMOKE: "blue"}
    assert len(look.detections) == 3
    assert all(one.box.iou(truth[names[one.label]]) > 0.95 for one in look.detections)


def test_the_places_of_the_rectangles_cannot_be_mistaken_for_one_another() -> None:
    for width, height in trial_sizes(1280):
        boxes = true_boxes(width, height)
        assert all(
            one.overlap(other) == 0
            for name, one in boxes.items()
            for other_name, other in boxes.items()
            if name != other_name
        )
        assert all(box.x1 >= 0 and box.x2 <= width and box.y2 <= height for box in boxes.values())


@pytest.mark.parametrize(
    ("reply", "code", "line"),
    [
        (None, 0, "coordinates: relative, 0 to 1000 (factor 28)  IoU 1.00"),
        ("I see squares.", 3, "3 of 3 test answers had no readable boxes"),
    ],
)
def test_the_doctor_prints_saves_and_says_by_its_exit_code_whether_boxes_can_be_drawn(
    start_endpoint: Start, tmp_path: Path, reply: str | None, code: int, line: str
) -> None:
    endpoint = start_endpoint(notation=Notation.RELATIVE_1000, reply=reply)
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "qianyan", "doctor", "--base-url", endpoint.base_url]
    done = subprocess.run(
        [*command, "--lang", "en"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert line in done.stdout
    path = tmp_path / "qianyan" / "endpoints.json"
    saved = find_profile(endpoint.base_url, "squares-vl", path=path)
    assert saved is not None
    assert saved.can_place_boxes is (code == 0)
