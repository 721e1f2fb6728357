"""Looking twice: what the closer look corrects, vetoes and adds, and what both cost."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from qianyan.errors import EndpointError, ReplyError
from qianyan.inputs.images import Photo, smart_resize
from qianyan.inspection.detect import Glance, Lister, Unread
from qianyan.inspection.records import Box, Detection, Hazard, Look, SubLabel, Usage
from qianyan.inspection.remote.chat_endpoint import Patience
from qianyan.inspection.remote.profile import EndpointProfile
from qianyan.inspection.remote.vision import RemoteVision
from qianyan.inspection.two_steps import TwoSteps

Start = Callable[..., "SimulatedEndpoint"]  # noqa: F821  (conftest.py)
HASTY = Patience(timeout_s=5.0, attempts=2, first_wait_s=0.01)
RED, GREEN, BLUE = (230, 30, 30), (20, 160, 60), (40, 80, 230)


def draw(width: int, height: int, *things: tuple[tuple[int, int, int], Box]) -> Photo:
    photo = Image.new("RGB", (width, height), (128, 128, 128))
    for colour, box in things:
        photo.paste(colour, (box.x1, box.y1, box.x2, box.y2))
    return Photo(photo)


class Eyes:
    """Sees each patch of colour that is three pixels or more when the picture is shown."""

    hazards: ClassVar = {RED: Hazard.FIRE, GREEN: Hazard.PERSON, BLUE: Hazard.SMOKE}

    def __init__(self) -> None:
        self.glances: list[list[Glance]] = []
        self.unread_from = 10**6

    def seen_wh(self, photo_wh: tuple[int, int], visual_tokens: int | None) -> tuple[int, int]:
        most = (visual_tokens or 1280) * 784
        height, width = smart_resize(
            photo_wh[1], photo_wh[0], factor=28, min_pixels=min(3136, most // 4), max_pixels=most
        )
        return width, height

    def count_tokens(self, seen_wh: tuple[int, int]) -> int:
        return seen_wh[0] * seen_wh[1] // 784

    def list_all(self, glances: Sequence[Glance]) -> list[Look | Unread]:
        self.glances.append(list(glances))
        return [self._list(glance) for glance in glances]

    def _list(self, glance: Glance) -> Look | Unread:
        shown_wh = self.seen_wh(glance.image.size, glance.visual_tokens)
        usage = Usage(300, 20, 9, self.count_tokens(shown_wh))
        if len(self.glances) >= self.unread_from:
            return Unread(ReplyError("It talks."), usage)
        pixels = np.asarray(glance.image.resize(shown_wh, Image.Resampling.BICUBIC)).astype(int)
        scale = np.array(glance.image.size) / shown_wh
        found = []
        for colour, hazard in self.hazards.items():
            ys, xs = np.nonzero((abs(pixels - colour) < 25).all(axis=2))
            if len(xs) and min(np.ptp(xs), np.ptp(ys)) >= 2:
                low = np.floor((xs.min(), ys.min()) * scale).astype(int)
                high = np.ceil((xs.max() + 1, ys.max() + 1) * scale).astype(int)
                sub_label = SubLabel.HELMET if hazard is Hazard.PERSON else SubLabel.SEVERE
                box = Box(*map(int, low), *map(int, np.minimum(high, glance.image.size)))
                found.append(Detection(hazard, sub_label, box, 0.8, "logprob"))
        return Look(tuple(found), usage=usage, raw=f"{len(found)} things")


def look_twice(photo: Photo, eyes: Eyes, *, tokens: int = 432, max_objects: int = 10) -> Look:
    two = TwoSteps(seer=eyes, lang="en", visual_tokens=tokens, max_objects=max_objects)
    return two.look(photo)


def test_a_coarse_box_becomes_exact_and_the_severity_stays_that_of_the_whole() -> None:
    flame = Box(901, 603, 934, 641)
    photo, eyes = draw(1600, 1200, (RED, flame)), Eyes()
    one = eyes.list_all([Glance(photo.rgb, 432)])[0]
    assert isinstance(one, Look)
    found = look_twice(photo, eyes)
    (fire,) = found.detections
    assert fire.box.iou(flame) > 0.97 > one.detections[0].box.iou(flame)
    assert (fire.label, fire.sub_label) == (Hazard.FIRE, SubLabel.SEVERE)
    assert found.vetoed == ()
    assert "looked twice: 1 parts at full size" in found.notes


def test_both_looks_are_counted_and_take_no_more_than_a_usual_one() -> None:
    photo, eyes = draw(1600, 1200, (RED, Box(900, 600, 940, 640))), Eyes()
    found = look_twice(photo, eyes)
    first, second = eyes.glances
    assert len(first) == 1
    assert len(second) == 1
    tokens = [
        eyes.count_tokens(eyes.seen_wh(g.image.size, g.visual_tokens)) for g in first + second
    ]
    assert found.usage == Usage(600, 40, 18, sum(tokens))
    assert sum(tokens) <= eyes.count_tokens(eyes.seen_wh((1600, 1200), None))


def test_a_photo_with_nothing_doubtful_is_looked_at_once() -> None:
    for things in ((), ((RED, Box(200, 200, 900, 900)),)):
        eyes = Eyes()
        found = look_twice(draw(1600, 1200, *things), eyes)
        assert len(eyes.glances) == 1
        assert found.notes == ()
        assert len(found.detections) == len(things)


def test_a_person_too_small_to_be_seen_is_found_in_a_tile() -> None:
    small = Box(610, 420, 622, 448)
    photo, eyes = draw(2000, 1500, (GREEN, small)), Eyes()
    once = eyes.list_all([Glance(photo.rgb, 64)])[0]
    assert isinstance(once, Look)
    assert once.detections == ()
    found = look_twice(photo, eyes, tokens=64)
    (person,) = found.detections
    assert person.box.iou(small) > 0.5
    assert (person.label, person.sub_label) == (Hazard.PERSON, SubLabel.HELMET)


def test_what_is_new_and_small_gets_the_severity_of_its_share_of_the_photo() -> None:
    photo, eyes = draw(2000, 1500, (RED, Box(610, 420, 622, 434))), Eyes()
    (fire,) = look_twice(photo, eyes, tokens=64).detections
    assert fire.sub_label is SubLabel.MINOR


class Script(Eyes):
    """Gives prepared looks; the first for the whole photo, the others for parts."""

    def __init__(self, first: Sequence[Detection], *parts: Sequence[Detection]) -> None:
        super().__init__()
        self.looks = [first, *parts]

    def _list(self, glance: Glance) -> Look | Unread:
        return Look(tuple(self.looks.pop(0)), usage=Usage(10, 1, 1, 5), raw="said")


def seen(label: Hazard, sub_label: SubLabel, *box: int, score: float | None = None) -> Detection:
    return Detection(label, sub_label, Box(*box), score, None if score is None else "logprob")


FLAME = seen(Hazard.FIRE, SubLabel.MODERATE, 900, 600, 940, 640, score=0.7)
WORKER = seen(Hazard.PERSON, SubLabel.UNCERTAIN, 300, 200, 340, 320)
GREY = draw(1600, 1200)


def test_what_is_not_there_on_a_closer_look_is_vetoed_and_kept() -> None:
    found = look_twice(GREY, Script([FLAME], []))
    assert found.detections == ()
    (veto,) = found.vetoed
    assert veto.detection == FLAME
    assert veto.reason == "on a second look, enlarged, nothing there"


def test_a_closer_look_decides_what_a_person_wears() -> None:
    bare = seen(Hazard.PERSON, SubLabel.NO_HELMET, 148, 108, 188, 228, score=0.9)
    (person,) = look_twice(GREY, Script([WORKER], [bare])).detections
    assert person.sub_label is SubLabel.NO_HELMET
    assert (person.score, person.score_kind) == (0.9, "logprob")
    assert person.box.iou(WORKER.box) > 0.5


def test_a_label_is_corrected() -> None:
    region = _region_of(FLAME)
    x, y = 900 - region[0], 600 - region[1]
    lamp = seen(Hazard.SMOKE, SubLabel.MINOR, x, y, x + 40, y + 40, score=0.8)
    found = look_twice(GREY, Script([FLAME], [lamp]))
    assert [(one.label, one.sub_label) for one in found.detections] == [
        (Hazard.SMOKE, SubLabel.MINOR)
    ]
    assert found.vetoed == ()


def _region_of(found: Detection) -> list[int]:
    raw = look_twice(GREY, Script([found], [])).raw
    assert raw is not None
    said = json.loads(raw)
    assert said["first"] == "said"
    region: list[int] = said["parts"][0]["region"]
    return region


def test_a_box_that_the_part_cut_off_keeps_its_first_extent() -> None:
    x1, y1, x2, y2 = _region_of(WORKER)
    whole = seen(Hazard.PERSON, SubLabel.HELMET, 0, 100, x2 - x1, y2 - y1)
    (person,) = look_twice(GREY, Script([WORKER], [whole])).detections
    assert person.box == WORKER.box
    assert person.sub_label is SubLabel.HELMET


def test_pieces_and_repeats_are_not_added_but_other_people_are() -> None:
    x1, y1, _, _ = _region_of(WORKER)
    same = seen(Hazard.PERSON, SubLabel.HELMET, 300 - x1, 200 - y1, 340 - x1, 320 - y1)
    again = seen(Hazard.PERSON, SubLabel.HELMET, 302 - x1, 203 - y1, 341 - x1, 322 - y1)
    other = seen(Hazard.PERSON, SubLabel.NO_HELMET, 350 - x1, 200 - y1, 390 - x1, 320 - y1)
    fire = seen(Hazard.FIRE, SubLabel.SEVERE, 500, 0, 1200, 1100)
    spark = seen(Hazard.FIRE, SubLabel.SEVERE, 0, 0, 20, 20)  # a piece cut off by the edge
    found = look_twice(GREY, Script([WORKER, fire], [same, again, other, spark]))
    people = [one.sub_label for one in found.detections if one.label is Hazard.PERSON]
    assert people == [SubLabel.HELMET, SubLabel.NO_HELMET]


def test_an_unreadable_second_answer_changes_nothing_and_is_said() -> None:
    photo, eyes = draw(1600, 1200, (RED, Box(900, 600, 940, 640))), Eyes()
    eyes.unread_from = 2
    found = look_twice(photo, eyes)
    assert len(found.detections) == 1
    assert found.vetoed == ()
    assert "the second look gave no readable answer for 1 of them" in found.notes
    assert found.usage.prompt_tokens == 600


def test_an_unreadable_first_answer_is_an_error_and_no_empty_list() -> None:
    eyes = Eyes()
    eyes.unread_from = 1
    with pytest.raises(ReplyError, match="It talks"):
        look_twice(draw(1600, 1200), eyes)


def test_more_than_may_be_reported_keeps_the_most_urgent() -> None:
    crowd = [seen(Hazard.PERSON, SubLabel.HELMET, x, 10, x + 190, 500) for x in range(0, 1500, 200)]
    x1, y1, _, _ = _region_of(FLAME)
    flame = seen(Hazard.FIRE, SubLabel.SEVERE, 900 - x1, 600 - y1, 940 - x1, 640 - y1)
    found = look_twice(GREY, Script([*crowd[:4], FLAME], [flame]), max_objects=3)
    assert len(found.detections) == 3
    assert found.detections[0].label is Hazard.FIRE
    assert found.notes[-1] == "2 more found: only 3 are kept"


def test_an_endpoint_is_asked_twice_and_its_boxes_come_back_in_photo_pixels(
    start_endpoint: Start,
) -> None:
    endpoint = start_endpoint()
    profile = EndpointProfile(base_url=endpoint.base_url, model="squares-vl", has_schema=False)
    vision = RemoteVision(endpoint.base_url, profile=profile, patience=HASTY)
    flame, worker = Box(901, 603, 951, 652), Box(1300, 80, 1341, 201)
    photo = draw(1600, 1200, (RED, flame), (GREEN, worker))
    two = TwoSteps(seer=Lister(vision=vision, lang="zh"), lang="zh", visual_tokens=432)
    found = two.look(photo)
    assert [
        round(one.box.iou(box), 1)
        for one, box in zip(found.detections, (flame, worker), strict=True)
    ] == [1.0, 1.0]
    assert len(endpoint.requests) == 3
    whole, *parts = endpoint.pictures
    assert whole.width * whole.height <= 432 * 784
    assert all(part.width * part.height <= 256 * 784 for part in parts)
    assert found.usage.visual_tokens == sum(
        one.width * one.height // 784 for one in endpoint.pictures
    )
    endpoint.behaviour.failures = [401]
    with pytest.raises(EndpointError):
        two.look(photo)


def test_the_command_line_looks_twice_and_results_and_report_say_so(
    start_endpoint: Start, tmp_path: Path
) -> None:
    endpoint = start_endpoint(schema="refused")
    draw(1600, 1200, (RED, Box(901, 603, 951, 652))).rgb.save(tmp_path / "site.png")
    command = [sys.executable, "-m", "qianyan", "inspect", "site.png", "--out", "out"]
    command += ["--base-url", endpoint.base_url, "--look", "two-step", "--visual-tokens", "432"]
    done = subprocess.run(
        [*command, "--prompt-order", "rules-first", "--answer-form", "objects"],
        cwd=tmp_path,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (picture,) = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))["pictures"]
    shown = sum(one.width * one.height // 784 for one in endpoint.pictures)
    assert picture["usage"]["visual_tokens"] == shown
    assert picture["notes"] == ["looked twice: 1 parts at full size"]
    assert Box(*picture["detections"][0]["bbox_2d"]).iou(Box(901, 603, 951, 652)) > 0.97
    settings = json.loads((tmp_path / "out" / ".run.json").read_text("utf-8"))["settings"]
    assert settings["look"] == "two-step", "the report prints the run's settings"
    assert (settings["visual_tokens"], settings["prompt_order"]) == (432, "rules-first")
