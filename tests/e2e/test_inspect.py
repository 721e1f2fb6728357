"""`qianyan inspect` as users run it: a real process, real files, real servers, real signals."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qianyan.engine.checkpoint import BUNDLED_FOLDER

NUM_PICTURES = 25


def encoded(width: int, height: int, kind: str = "PNG", mode: str = "RGB", **more: Any) -> bytes:
    buffer = BytesIO()
    Image.new(mode, (width, height)).save(buffer, kind, **more)
    return buffer.getvalue()


def noise(width: int, height: int, kind: str = "JPEG") -> bytes:
    buffer = BytesIO()
    pixels = (os.urandom(width * height * 3), "raw", "RGB")
    Image.frombytes("RGB", (width, height), *pixels[:1]).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def look(tiny_pair: Path) -> list[str]:
    """Options for a quick way to look."""
    return ["--model", str(tiny_pair), "--look", "detector", "--lang", "en"]


def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """Start the command in its own process, with standard output for a program to read."""
    return subprocess.Popen(
        [sys.executable, "-m", "qianyan", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def results(folder: Path) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads((folder / "results.json").read_text("utf-8"))
    return whole


class Pictures(BaseHTTPRequestHandler):
    """A web server with everything that can go wrong behind a picture's address."""

    picture = noise(64, 48)

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/good.jpg":
                self.answer(200, self.picture, "image/jpeg")
            case "/page.jpg":
                self.answer(200, b"<!doctype html><html><p>Log in</p></html>", "text/html")
            case "/loop.jpg":
                self.send_response(302)
                self.send_header("Location", "/loop.jpg")
                self.end_headers()
            case "/huge.jpg":
                self.send_response(200)
                self.send_header("Content-Length", str(100 * 1024 * 1024))
                self.end_headers()
            case "/endless.jpg":
                self.send_response(200)
                self.end_headers()
                self.pour()
            case "/slow.jpg":
                time.sleep(4)
                self.answer(200, self.picture, "image/jpeg")
            case _:
                self.answer(404, b"not here", "text/plain")

    def answer(self, status: int, body: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            return  # the client has given up, which is what is tested

    def pour(self) -> None:
        """Send 100 MB without having said so."""
        try:
            for _ in range(100):
                self.wfile.write(b"\xff\xd8\xff" + bytes(1024 * 1024))
        except OSError:
            return

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def web() -> Iterator[str]:
    """The address of a server of pictures."""
    yield from serving(Pictures)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of good pictures and of everything that is none."""
    folder = tmp_path / "site"
    folder.mkdir()
    files = {
        "good1.jpg": noise(320, 240),
        "good2.png": noise(200, 300, "PNG"),
        "cmyk.jpg": encoded(64, 48, "JPEG", "CMYK"),
        "text.jpg": b"This is a letter, not a picture.\n",
        "truncated.jpg": noise(320, 240)[:4000],
        "empty.jpg": b"",
        "dot.png": encoded(1, 1),
        "vast.png": encoded(20000, 20000, "PNG", "1"),
        "strip.png": encoded(5000, 100),
        "phone.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    frames = [Image.new("RGB", (64, 48), (shade, 80, 0)) for shade in (0, 120, 240)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "nothing").mkdir()
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    return tmp_path


def test_each_bad_input_is_one_sentence_and_every_other_picture_is_complete(
    site: Path, look: list[str], web: str
) -> None:
    given = ["site", "missing.jpg", "nothing", "none-*.jpg", "clip.mp4", "ftp://host/a.jpg"]
    names = ("good", "gone", "page", "loop", "huge", "endless", "slow")
    urls = [f"http://{web}/{name}.jpg" for name in names]
    private = ["http://127.0.0.1/a.jpg", "http://169.254.169.254/latest", "http://[::1]/a.jpg"]
    process = start(
        *("inspect", *given, *urls, *private, *look),
        *("--allow-host", web, "--fetch-timeout", "2"),
        folder=site,
    )
    code, out, err = finish(process)
    assert code == 4, err
    assert "Traceback" not in err
    whole = results(site / "qianyan-out")
    codes = {
        one["source"].removeprefix(f"http://{web}/"): one["error"] and one["error"]["code"]
        for one in whole["pictures"]
    }
    assert codes == {
        "site/good1.jpg": None,
        "site/good2.png": None,
        "site/cmyk.jpg": None,
        "site/moving.gif": None,
        "site/text.jpg": "not_a_picture",
        "site/truncated.jpg": "truncated",
        "site/empty.jpg": "empty_file",
        "site/dot.png": "too_small",
        "site/vast.png": "too_large",
        "site/strip.png": "too_narrow",
        "site/phone.heic": "truncated" if find_spec("pillow_heif") else "unsupported_format",
        "missing.jpg": "missing",
        "nothing": "no_pictures",
        "none-*.jpg": "no_pictures",
        "clip.mp4": "video",
        "ftp://host/a.jpg": "bad_scheme",
        "good.jpg": None,
        "gone.jpg": "http_status",
        "page.jpg": "not_a_picture",
        "loop.jpg": "too_many_redirects",
        "huge.jpg": "too_large",
        "endless.jpg": "too_large",
        "slow.jpg": "timeout",
        "http://127.0.0.1/a.jpg": "private_address",
        "http://169.254.169.254/latest": "private_address",
        "http://[::1]/a.jpg": "private_address",
    }
    folder = site / "qianyan-out"
    for one in whole["pictures"]:
        if one["error"]:
            assert one["detections"] is None
            assert one["error"]["message"].endswith(".")
            assert str(site) not in one["error"]["message"]
            assert "Error" not in one["error"]["message"]
        else:
            assert one["detections"] is not None
            assert (folder / one["file"]).is_file()
            assert (folder / one["marked_file"]).is_file()
    moving = next(one for one in whole["pictures"] if one["source"] == "site/moving.gif")
    assert moving["notes"][0] == "animated: first frame only"
    assert whole["summary"]["failed"] == 21
    assert len(out.splitlines()) == len(whole["pictures"]) == 26
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder with enough pictures to be interrupted in the middle."""
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(NUM_PICTURES):
        (folder / f"p{index:02}.jpg").write_bytes(noise(160, 120))
    return tmp_path


def interrupt(process: subprocess.Popen[str], number: int, *, after: int) -> None:
    """Send a signal once so many pictures are done."""
    assert process.stdout is not None
    for _ in range(after):
        assert process.stdout.readline()
    process.send_signal(number)


def assert_each_once(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    expected = [f"many/p{index:02}.jpg" for index in range(NUM_PICTURES)]
    assert sorted(line["source"] for line in lines) == expected
    assert [one["source"] for one in results(folder)["pictures"]] == expected
    for name in ("images", "marked_images"):
        assert len(list((folder / name).iterdir())) == NUM_PICTURES


def test_a_killed_run_is_resumed_without_repeating_or_losing_a_picture(
    many: Path, look: list[str]
) -> None:
    process = start("inspect", "many", *look, folder=many)
    interrupt(process, signal.SIGKILL, after=5)
    code, _, _ = finish(process)
    assert code == -signal.SIGKILL
    out = many / "qianyan-out"
    before = (out / "results.jsonl").read_text().splitlines()
    assert 5 <= len(before) < NUM_PICTURES
    assert not (out / "results.json").exists()

    code, shown, err = finish(start("inspect", "many", *look, "--resume", folder=many))
    assert code == 0, err
    again = {json.loads(line)["source"] for line in shown.splitlines()}
    whole = [line for line in before if line.endswith("}")]
    assert again.isdisjoint(json.loads(line)["source"] for line in whole)
    assert_each_once(out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_ends_in_order_and_says_how_to_go_on(
    many: Path, look: list[str], number: int
) -> None:
    process = start("inspect", "many", *look, folder=many)
    interrupt(process, number, after=5)
    code, _, err = finish(process)
    assert code == 128 + number
    assert "--resume" in err
    assert "Traceback" not in err
    out = many / "qianyan-out"
    assert not (out / "results.json").exists()
    assert not (out / "report.pdf").exists()
    lines = (out / "results.jsonl").read_text().splitlines()
    assert all(json.loads(line)["detections"] is not None for line in lines), "none is torn"

    code, _, err = finish(start("inspect", "many", *look, "--resume", folder=many))
    assert code == 0, err
    assert_each_once(out)


def test_a_terminal_shows_a_bar_with_findings_and_no_json(many: Path, look: list[str]) -> None:
    pty = pytest.importorskip("pty")
    here, there = pty.openpty()
    command = [sys.executable, "-m", "qianyan", "inspect", "many", *look]
    process = subprocess.Popen(command, cwd=many, stdout=there, stderr=there)
    os.close(there)
    shown = b""
    try:
        while chunk := os.read(here, 65536):
            shown += chunk
    except OSError:
        pass  # Linux's way of saying that the other end is closed
    os.close(here)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert f"/{NUM_PICTURES}" in text
    assert re.search(r"\d+ hazards", text)
    assert "img/s" in text
    assert "Report: qianyan-out/report.pdf" in text
    assert "bbox_2d" not in text


class Endpoint(BaseHTTPRequestHandler):
    """A model that always sees the same worker, in thousandths of the picture."""

    delay_s = 0.0

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "qwen3-vl-fixed"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.delay_s)
        listed = [{"bbox_2d": [250, 100, 500, 900], "label": "人员", "sub_label": "未佩戴安全帽"}]
        message = {"role": "assistant", "content": json.dumps(listed)}
        usage = {"prompt_tokens": 300, "completion_tokens": 40}
        choices = [{"message": message, "finish_reason": "stop"}]
        self.answer({"choices": choices, "usage": usage})

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    """The base URL of an OpenAI-compatible endpoint."""
    for address in serving(Endpoint):
        yield f"http://{address}/v1"


def test_a_remote_model_lists_and_boxes_come_back_in_photo_pixels(
    many: Path, endpoint: str
) -> None:
    process = start(
        *("inspect", "many", "--base-url", endpoint, "--workers", "3", "--fail-on", "no_helmet"),
        folder=many,
    )
    code, _, err = finish(process)
    assert code == 1, err
    whole = results(many / "qianyan-out")
    assert whole["run"]["model"] == "qwen3-vl-fixed"
    assert len(whole["pictures"]) == NUM_PICTURES
    for one in whole["pictures"]:
        (found,) = one["detections"]
        assert found["bbox_2d"] == [40, 12, 80, 108]
        assert found["label_id"] == "person"
        assert found["score"] is None
        assert one["usage"]["completion_tokens"] == 40


class SlowEndpoint(Endpoint):
    """The same model on a very busy machine."""

    delay_s = 30.0


def test_asking_twice_stops_at_once(many: Path) -> None:
    for address in serving(SlowEndpoint):
        process = start("inspect", "many", "--base-url", f"http://{address}/v1", folder=many)
        lines = many / "qianyan-out" / "results.jsonl"
        while not lines.exists():
            time.sleep(0.2)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None, "the first one waits for the pictures in hand"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert process.communicate()[0] == ""


def test_an_endpoint_that_is_not_there_is_exit_code_three_and_leaves_nothing(many: Path) -> None:
    command = ("inspect", "many", "--base-url", "http://127.0.0.1:9/v1")
    code, out, err = finish(start(*command, folder=many))
    assert code == 3
    assert out == ""
    assert err.startswith("qianyan: ")
    assert len(err.splitlines()) == 1
    assert not (many / "qianyan-out").exists()


HAS_PAIR = all((BUNDLED_FOLDER / part / "config.json").is_file() for part in ("detector", "judge"))


@pytest.mark.skipif(not HAS_PAIR, reason="no bundled models in this checkout")
def test_the_demo_finds_what_was_drawn_and_writes_everything(tmp_path: Path) -> None:
    code, out, err = finish(start("demo", "--lang", "en", folder=tmp_path))
    assert code == 0, err
    whole = results(tmp_path / "demo")
    assert len(whole["pictures"]) >= 8
    assert whole["summary"]["failed"] == 0
    assert {"fire", "smoke", "person"} <= set(whole["summary"]["by_label"])
    assert "hazards found" in out
    assert "demo/report.pdf" in out
    assert (tmp_path / "demo" / "report.pdf").read_bytes().startswith(b"%PDF")
    again, _, err = finish(start("demo", "--lang", "en", folder=tmp_path))
    assert again == 0, err
