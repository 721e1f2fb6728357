"""`inspect --look cascade` with any judge: a local checkpoint, and one behind a real server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.served import serving

from qianyan.cli import run
from qianyan.engine.checkpoint import BUNDLED_FOLDER
from qianyan.train.bundled.scenes import UNSEEN_FROM, draw_scene

JUDGE = BUNDLED_FOLDER / "judge"
SCENES = (1, 5, 9)
KEY = "sk-e2e-0123456789"
SEEN = ("--max-pixels", str(112 * 112))  # the size at which this judge sees crops


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes that no training has seen."""
    folder = tmp_path_factory.mktemp("scenes")
    for number in SCENES:
        scene = draw_scene(UNSEEN_FROM + number, width=640, height=480)
        Image.fromarray(scene.rgb).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bundled judge behind `qianyan serve`, in a process of its own."""
    options = ["--model", "bundled", "--dtype", "float32"]
    with serving(tmp_path_factory.mktemp("state"), *options, QIANYAN_API_KEYS=KEY) as (_, address):
        yield f"{address}/v1"


def inspect(scenes: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    """Inspect the scenes by the cascade and read what is written of each."""
    command = ["inspect", str(scenes), "--out", str(out), "--look", "cascade", "--lang", "en"]
    assert run([*command, "--quiet", *options]) == 0
    pictures: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["pictures"]
    return pictures


@pytest.fixture(scope="module")
def here(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What a local checkpoint makes of the detector's proposals."""
    return inspect(scenes, tmp_path_factory.mktemp("here"), "--model", str(JUDGE), *SEEN)


def test_a_local_checkpoint_judges_what_the_bundled_detector_proposes(
    here: list[dict[str, Any]],
) -> None:
    found = [one for picture in here for one in picture["detections"]]
    assert {"fire", "person"} <= {one["label_id"] for one in found}
    assert "logprob" in {one["score_kind"] for one in found}


def test_every_veto_is_kept_with_its_box_the_reason_and_what_both_said(
    here: list[dict[str, Any]],
) -> None:
    vetoed = [veto for picture in here for veto in picture["vetoed"]]
    assert len(vetoed) >= 2
    for picture in here:
        asked = json.loads(picture["raw"])
        assert len(asked) == len(picture["detections"]) + len(picture["vetoed"])
        assert all(0 < one["detector"] < 1 and sum(one["judge"].values()) <= 1.01 for one in asked)
        for veto in picture["vetoed"]:
            assert re.fullmatch(r"on a second look .+ \(\d+%\)", veto["reason"])
            x1, y1, x2, y2 = veto["bbox_2d"]
            assert 0 <= x1 < x2 <= 640
            assert 0 <= y1 < y2 <= 480
            assert 0 < veto["score"] < 1


def test_a_judge_behind_an_address_decides_as_the_same_one_here(
    scenes: Path, here: list[dict[str, Any]], address: str, tmp_path: Path
) -> None:
    asked = ("--base-url", address, "--api-key", KEY, "--model", "bundled", *SEEN)
    there = inspect(scenes, tmp_path / "there", *asked)
    for ours, theirs in zip(here, there, strict=True):
        for part in ("detections", "vetoed"):
            assert [one["bbox_2d"] for one in theirs[part]] == [
                one["bbox_2d"] for one in ours[part]
            ]
            assert [(one["label_id"], one.get("sub_label")) for one in theirs[part]] == [
                (one["label_id"], one.get("sub_label")) for one in ours[part]
            ]
        for one, other in zip(theirs["detections"], ours["detections"], strict=True):
            assert one["score_kind"] == other["score_kind"]
            assert one["score"] == pytest.approx(other["score"], abs=0.02)
