"""Inspection through a separate server process with a real model, the OpenAI protocol between.

The server is `transformers serve`: another implementation of the same architecture, loading the
checkpoint folders that ours writes.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.errors import EndpointError, ReplyError
from qianyan.inputs.images import Photo
from qianyan.inspection.detect import detect
from qianyan.inspection.records import Box, Hazard, SubLabel
from qianyan.inspection.remote.chat_endpoint import Patience
from qianyan.inspection.remote.probe import probe
from qianyan.inspection.remote.profile import EndpointProfile, save_profile
from qianyan.inspection.remote.profile_words import profile_lines
from qianyan.inspection.remote.vision import RemoteVision
from qianyan.inspection.vision import LocalVision

for needed in ("fastapi", "uvicorn", "openai", "accelerate"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"transformers serve needs {needed}", allow_module_level=True)

START_LIMIT_S = 240
PATIENCE = Patience(timeout_s=120, attempts=2, first_wait_s=0.1)
SEEN_PIXELS = 224 * 168


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running `transformers serve`."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "hub").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder),
        "HF_HUB_CACHE": str(folder / "hub"),
        "OMP_NUM_THREADS": "1",
    }
    script = Path(__file__).parent / "serve_checkpoint.py"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(script), str(port)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Ask until the server answers."""
    end = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            if httpx2.get(url, timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.5)
    pytest.fail(f"transformers serve did not start:\n{log.read_text(errors='replace')[-3000:]}")


def profile_of(server: str, checkpoint: Path) -> EndpointProfile:
    """Send pictures small, so that the tests are quick."""
    return EndpointProfile(
        base_url=server, model=str(checkpoint), min_pixels=3136, max_pixels=SEEN_PIXELS
    )


def test_a_model_that_knows_the_photos_is_read_through_the_server(
    server: str, taught_checkpoint: Path, fire_photo: Image.Image, clean_photo: Image.Image
) -> None:
    vision = RemoteVision(server, profile=profile_of(server, taught_checkpoint), patience=PATIENCE)
    look = detect(Photo(fire_photo), vision, lang="zh")
    (found,) = look.detections
    assert (found.label, found.sub_label) == (Hazard.FIRE, SubLabel.SEVERE)
    assert found.box == Box(112, 84, 224, 168)
    assert found.score is None  # this server gives no log-probabilities
    assert look.usage.prompt_tokens > 48
    assert look.notes == ()
    assert detect(Photo(clean_photo), vision, lang="zh").detections == ()


def test_server_and_local_engine_say_the_same(
    server: str, taught_checkpoint: Path, fire_photo: Image.Image
) -> None:
    remote = RemoteVision(server, profile=profile_of(server, taught_checkpoint), patience=PATIENCE)
    local = LocalVision(Engine(taught_checkpoint, max_pixels=SEEN_PIXELS))
    wh = fire_photo.size
    assert remote.seen_wh(wh) == local.seen_wh(wh) == (224, 168)
    there, here = (detect(Photo(fire_photo), vision, lang="zh") for vision in (remote, local))
    assert there.raw == here.raw
    assert [one.box for one in there.detections] == [one.box for one in here.detections]
    assert there.usage.prompt_tokens == here.usage.prompt_tokens
    (found,) = here.detections
    assert found.score is not None
    assert found.score > 0.9


def test_a_random_model_ends_in_errors_not_in_clean_photos(
    server: str, random_checkpoint: Path, fire_photo: Image.Image
) -> None:
    vision = RemoteVision(server, profile=profile_of(server, random_checkpoint), patience=PATIENCE)
    with pytest.raises(ReplyError) as caught:
        detect(Photo(fire_photo), vision, lang="zh", max_objects=1)
    assert caught.value.raw is not None
    assert caught.value.code == "unreadable_reply"


def test_the_doctor_refuses_a_random_model(server: str, random_checkpoint: Path) -> None:
    profile = probe(server, str(random_checkpoint), patience=PATIENCE)
    assert not profile.can_place_boxes
    assert profile.num_unreadable == profile.num_asked == 3
    assert (profile.has_schema, profile.has_logprobs) == (False, False)
    assert "no boxes will be drawn" in "\n".join(profile_lines(profile, "en"))


def test_a_model_that_the_server_does_not_have_is_an_error(server: str, tmp_path: Path) -> None:
    vision = RemoteVision(server, str(tmp_path / "nothing"), patience=PATIENCE)
    with pytest.raises(EndpointError):
        detect(Photo(Image.new("RGB", (64, 64))), vision)


def inspect(
    server: str, checkpoint: Path, photos: list[Image.Image], folder: Path
) -> tuple[int, list[dict[str, object]]]:
    """Run the command line in a process of its own; return its exit code and the pictures."""
    (folder / "photos").mkdir()
    for number, photo in enumerate(photos):
        photo.save(folder / "photos" / f"{number}.png")
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    save_profile(profile_of(server, checkpoint), path=folder / "qianyan" / "endpoints.json")
    command = [sys.executable, "-m", "qianyan", "inspect", str(folder / "photos")]
    command += ["--base-url", server, "--model", str(checkpoint), "--out", str(folder / "out")]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert "Traceback" not in done.stderr
    results = json.loads((folder / "out" / "results.json").read_text("utf-8"))
    return done.returncode, results["pictures"]


def test_the_command_line_inspects_photos_through_the_server(
    server: str,
    taught_checkpoint: Path,
    fire_photo: Image.Image,
    clean_photo: Image.Image,
    tmp_path: Path,
) -> None:
    code, pictures = inspect(server, taught_checkpoint, [fire_photo, clean_photo], tmp_path)
    fire, clean = pictures
    (found,) = fire["detections"]  # type: ignore[misc]
    assert found["bbox_2d"] == [112, 84, 224, 168]
    assert (found["label"], found["sub_label"], found["score"]) == ("火灾", "严重", None)
    assert clean["detections"] == []
    assert clean["error"] is None
    assert code == 0
    assert (tmp_path / "out" / "report.pdf").read_bytes().startswith(b"%PDF")


def test_the_command_line_reports_unreadable_answers_as_errors(
    server: str,
    random_checkpoint: Path,
    fire_photo: Image.Image,
    clean_photo: Image.Image,
    tmp_path: Path,
) -> None:
    code, pictures = inspect(server, random_checkpoint, [fire_photo, clean_photo], tmp_path)
    assert len(pictures) == 2
    for picture in pictures:
        assert picture["detections"] is None
        assert picture["error"]["code"] == "unreadable_reply"  # type: ignore[index]
    assert code == 4
