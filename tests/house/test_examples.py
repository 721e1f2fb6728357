"""Every example runs as its first lines say: in form, with whatever wisdom a small model has."""

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from qianyan.train.bundled.scenes import draw_examples

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NO_ANSWER = r"No answer: .+\."
"""What an example prints when the model's answer cannot be read; an honest outcome."""

Example = Callable[..., str]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_examples(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def screenshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A screen with a title and two buttons."""
    screen = Image.new("RGB", (1280, 720), "white")
    pen = ImageDraw.Draw(screen)
    for index, words in enumerate(("Settings", "OK", "Cancel")):
        pen.rectangle((200, 100 + 150 * index, 500, 180 + 150 * index), outline="black", width=3)
        pen.text((230, 120 + 150 * index), words, fill="black", font_size=40)
    path = tmp_path_factory.mktemp("screen") / "screen.png"
    screen.save(path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of a square that turns from blue to red."""
    av = pytest.importorskip("av", reason="needs qianyan[video]")
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = 160, 112, "yuv420p"
        for index in range(32):
            image = Image.new("RGB", (160, 112), "grey")
            image.paste("blue" if index < 16 else "red", (40, 30, 100, 80))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return path


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Example:
    """Run an example as a script, in this process: loading torch takes longer than the rest."""

    def run_script(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run_script


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    tests = Path(__file__).read_text("utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tests


def test_every_example_says_how_it_is_run() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert f"Usage: python examples/{path.name} " in path.read_text("utf-8")


def test_inspect_folder_says_something_about_every_picture(pictures: list[Path]) -> None:
    said = run("inspect_folder.py", str(pictures[0].parent))
    assert all(picture.name in said for picture in pictures)


def test_ask_a_photo_prints_a_sentence(pictures: list[Path], example: Example) -> None:
    assert example("ask_a_photo.py", str(pictures[1])).strip()


def test_structured_output_prints_an_object_with_both_fields(
    pictures: list[Path], example: Example
) -> None:
    said = example("structured_output.py", str(pictures[1]))
    assert "'hazard'" in said
    assert "'certain'" in said


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("point.py", r"\d+\. fire at \(\d+, \d+\)"),
        ("box.py", r"\d+\. fire at \[\d+, \d+, \d+, \d+\]"),
    ],
)
def test_places_are_printed_one_a_line_and_then_their_number(
    pictures: list[Path], example: Example, script: str, line: str
) -> None:
    *lines, last = example(script, str(pictures[1])).splitlines()
    if re.fullmatch(NO_ANSWER, last):
        return
    assert last.startswith(f"{len(lines)} found")
    for printed in lines:
        assert re.fullmatch(line, printed)
    if script == "box.py":
        boxed = pictures[1].with_name(f"{pictures[1].stem}-boxed.png")
        with Image.open(boxed) as drawn, Image.open(pictures[1]) as picture:
            assert drawn.size == picture.size
        boxed.unlink()


def test_count_prints_a_number_and_whether_the_model_agrees(
    pictures: list[Path], example: Example
) -> None:
    said = example("count.py", str(pictures[1]))
    assert re.fullmatch(
        rf"({NO_ANSWER}|\d+ boxed as person(\nBut the model says \d+: look again\.)?)\n", said
    )


def test_ocr_prints_every_line_with_its_box(screenshot: Path, example: Example) -> None:
    *lines, last = example("ocr.py", str(screenshot)).splitlines()
    assert re.fullmatch(rf"{NO_ANSWER}|{len(lines)} lines of text", last)
    assert all(re.match(r"\[\d+, \d+, \d+, \d+\] .", line) for line in lines)


def test_document_html_saves_a_page_or_says_why_not(screenshot: Path, example: Example) -> None:
    *_, last = example("document_html.py", str(screenshot)).splitlines()
    assert re.fullmatch(rf"{NO_ANSWER}|\d+ parts, saved as screen\.html", last)


def test_extract_fields_prints_every_field(screenshot: Path, example: Example) -> None:
    lines = example("extract_fields.py", str(screenshot), "bundled", "title,编号").splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["title", "编号"]


def test_video_moments_prints_spans_within_the_video(clip: Path, example: Example) -> None:
    *lines, last = example("video_moments.py", str(clip)).splitlines()
    assert re.fullmatch(rf"{NO_ANSWER}|{len(lines)} moments", last)
    for line in lines:
        times = re.match(r"(\d+\.\d) s to (\d+\.\d) s: ", line)
        assert times is not None
        assert 0 <= float(times[1]) <= float(times[2]) <= 4.2


@pytest.mark.parametrize("script", ["computer_use.py", "phone_use.py"])
def test_a_screen_agent_prints_one_step(screenshot: Path, example: Example, script: str) -> None:
    said = example(script, str(screenshot))
    assert re.fullmatch(rf"({NO_ANSWER}|Next step: [a-z_]+ .+(\nThe task has ended: \w+)?)\n", said)
