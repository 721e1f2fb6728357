"""A round over pictures: each exactly once, through interruptions, failures and repeats."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from qianyan.errors import EndpointError
from qianyan.inputs.fetch import FetchLimits
from qianyan.inputs.images import Photo
from qianyan.inspection.folder import Start, open_folder
from qianyan.inspection.line import Room
from qianyan.inspection.records import Box, Detection, Hazard, Inspection, Look, SubLabel
from qianyan.inspection.run import ENOUGH_FAILURES, Run
from qianyan.inspection.service import LookAt
from qianyan.inspection.sources import list_sources

FIRE = Detection(Hazard.FIRE, SubLabel.MINOR, Box(1, 1, 9, 9), 0.5, "detector")


class Looker:
    """A way to look that counts the pictures it was shown, by their colour."""

    def __init__(self, before: Callable[[int], None] | None = None) -> None:
        self.shades: list[int] = []
        self.before = before or (lambda _: None)
        self.lock = threading.Lock()

    def __call__(self, photo: Photo) -> Look:
        pixel = photo.rgb.getpixel((0, 0))
        assert isinstance(pixel, tuple)
        with self.lock:
            self.shades.append(pixel[0])
        self.before(pixel[0])
        return Look((FIRE,))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight pictures, p0.png to p7.png, whose red says which is which."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()
    for index in range(8):
        Image.new("RGB", (40, 30), (index * 20, 0, 0)).save(tmp_path / "site" / f"p{index}.png")
    return tmp_path / "site"


def begin(
    look: LookAt,
    *given: str,
    start: Start = "new",
    workers: int = 1,
    is_ordered: bool = False,
    out: str = "out",
) -> Run:
    folder = open_folder(Path(out), settings={"model": "fake"}, lang="en", start=start)
    sources = list_sources(given or ["site"])
    return Run(sources, look, folder, limits=FetchLimits(), workers=workers, is_ordered=is_ordered)


def finish(run: Run) -> list[Inspection]:
    inspections = list(run.inspect())
    run.finish(run.folder.facts(model="fake", version="0"))
    return inspections


def lines() -> list[str]:
    text = Path("out/results.jsonl").read_text("utf-8")
    return [json.loads(line)["source"] for line in text.splitlines()]


def results() -> list[dict[str, object]]:
    pictures: list[dict[str, object]] = json.loads(Path("out/results.json").read_text())["pictures"]
    return pictures


@pytest.mark.parametrize("workers", [1, 3])
def test_every_picture_is_inspected_once_and_written_down(site: Path, workers: int) -> None:
    look = Looker()
    finish(begin(look, workers=workers))
    assert sorted(look.shades) == [0, 20, 40, 60, 80, 100, 120, 140]
    assert sorted(lines()) == [f"site/p{index}.png" for index in range(8)]
    assert [one["source"] for one in results()] == [f"site/p{index}.png" for index in range(8)]
    for name in ("images", "marked_images"):
        assert len(list((Path("out") / name).iterdir())) == 8
    assert Path("out/images/p0.png").read_bytes() == (site / "p0.png").read_bytes()
    assert Path("out/report.pdf").read_bytes().startswith(b"%PDF")


def test_each_line_is_there_before_its_verdict_is_given(site: Path) -> None:
    run = begin(Looker())
    for number, _ in enumerate(run.inspect(), start=1):
        assert len(lines()) == number


def test_stopping_keeps_what_is_done_and_resuming_does_the_rest_only(site: Path) -> None:
    run = begin(Looker())
    for number, _ in enumerate(run.inspect(), start=1):
        if number == 3:
            run.stop()
    assert run.num_pending == 5
    assert not Path("out/results.json").exists()

    look = Looker()
    resumed = begin(look, start="resume")
    assert resumed.num_pending == 5
    finish(resumed)
    assert look.shades == [60, 80, 100, 120, 140]
    assert sorted(lines()) == sorted({str(one["source"]) for one in results()})
    assert len(results()) == 8


def test_a_run_that_died_between_copy_and_line_does_that_picture_again(site: Path) -> None:
    run = begin(Looker())
    next(iter(run.inspect()))
    Path("out/images/p1.png").write_bytes(b"half a pic")
    look = Looker()
    finish(begin(look, start="resume"))
    assert look.shades == [20, 40, 60, 80, 100, 120, 140]
    assert Path("out/images/p1.png").read_bytes() == (site / "p1.png").read_bytes()


def test_resuming_a_finished_run_looks_at_nothing(site: Path) -> None:
    finish(begin(Looker()))
    look = Looker()
    finish(begin(look, start="resume"))
    assert look.shades == []
    assert len(results()) == 8


def test_a_file_with_other_bytes_is_looked_at_again(site: Path) -> None:
    finish(begin(Looker()))
    Image.new("RGB", (40, 30), (255, 0, 0)).save(site / "p2.png")
    look = Looker()
    finish(begin(look, start="resume"))
    assert look.shades == [255]
    assert lines().count("site/p2.png") == 1
    assert len(results()) == 8


def test_more_sources_may_be_given_when_resuming_and_none_is_lost(site: Path) -> None:
    finish(begin(Looker(), "site/p0.png", "site/p1.png"))
    look = Looker()
    finish(begin(look, "site/p1.png", "site/p2.png", start="resume"))
    assert look.shades == [40]
    assert [one["source"] for one in results()] == ["site/p1.png", "site/p2.png", "site/p0.png"]


def test_the_same_picture_under_two_names_is_inspected_once_and_noted(site: Path) -> None:
    (site / "copy.png").write_bytes((site / "p0.png").read_bytes())
    look = Looker()
    run = begin(look, "site/p0.png", "site/copy.png", "./site/p0.png")
    finish(run)
    assert look.shades == [0]
    assert run.num_repeated == 2
    (picture,) = results()
    assert picture["notes"] == ["same picture as 'site/copy.png'"]


def test_a_repeat_is_known_again_when_resuming(site: Path) -> None:
    (site / "p8.png").write_bytes((site / "p0.png").read_bytes())
    run = begin(Looker())
    next(iter(run.inspect()))
    look = Looker()
    finish(begin(look, start="resume"))
    assert 0 not in look.shades
    assert len(results()) == 8


def test_bad_pictures_are_entries_and_the_others_are_complete(site: Path) -> None:
    (site / "bad.jpg").write_text("no picture")
    (site / "empty.jpg").write_bytes(b"")
    finish(begin(Looker(), "site", "missing.jpg"))
    failed = {str(one["source"]): one for one in results() if one["error"]}
    assert set(failed) == {"site/bad.jpg", "site/empty.jpg", "missing.jpg"}
    for one in failed.values():
        assert one["detections"] is None
        assert one["file"] is None
    assert len(results()) == 11


def test_a_missing_file_that_has_come_is_inspected_when_resuming(site: Path) -> None:
    finish(begin(Looker(), "site/p0.png", "late.png"))
    Image.new("RGB", (40, 30), (222, 0, 0)).save("late.png")
    look = Looker()
    finish(begin(look, "site/p0.png", "late.png", start="resume"))
    assert look.shades == [222]
    assert [one["error"] for one in results()] == [None, None]
    assert lines() == ["site/p0.png", "late.png"]


def test_an_endpoint_that_keeps_failing_stops_the_run_which_can_be_resumed(site: Path) -> None:
    def away(shade: int) -> None:
        if shade >= 40:
            raise EndpointError("The endpoint does not answer.")

    look = Looker(away)
    run = begin(look)
    with pytest.raises(EndpointError, match="3 pictures in a row failed: The endpoint does not"):
        list(run.inspect())
    assert len(look.shades) == 2 + ENOUGH_FAILURES

    back = Looker()
    finish(begin(back, start="resume"))
    assert back.shades == [40, 60, 80, 100, 120, 140]
    assert [one["error"] for one in results()] == [None] * 8
    assert sorted(lines()) == [f"site/p{index}.png" for index in range(8)]


def test_one_failure_of_the_endpoint_does_not_stop_the_others(site: Path) -> None:
    def hiccup(shade: int) -> None:
        if shade == 60:
            raise EndpointError("Too busy.")

    finish(begin(Looker(hiccup)))
    errors = [one["error"] for one in results()]
    assert errors.count(None) == 7
    assert errors[3] == {"code": "endpoint_failed", "message": "Too busy."}


def timeless(out: str) -> list[dict[str, object]]:
    """Read a run's lines in their order, without what differs between any two runs."""
    written = [json.loads(line) for line in Path(out, "results.jsonl").read_text().splitlines()]
    for line in written:
        line.pop("timing")
    return written


def test_several_at_once_in_order_write_the_same_lines_as_one_by_one(site: Path) -> None:
    (site / "bad.jpg").write_text("no picture")
    (site / "p3-again.png").write_bytes((site / "p3.png").read_bytes())
    finish(begin(Looker()))

    def slow_at_first(shade: int) -> None:
        time.sleep((140 - shade) / 3000)

    several = begin(Looker(slow_at_first), workers=4, is_ordered=True, out="several")
    given = [one.source for one in finish(several)]
    assert timeless("several") == timeless("out")
    assert given == [line["source"] for line in timeless("out")]
    for folder in ("images", "marked_images"):
        assert {one.name: one.read_bytes() for one in Path("several", folder).iterdir()} == {
            one.name: one.read_bytes() for one in Path("out", folder).iterdir()
        }


def test_the_first_name_of_a_picture_has_it_whichever_file_is_read_first(site: Path) -> None:
    names = [f"site/copy{number}.png" for number in range(12)]
    for name in names:
        Path(name).write_bytes((site / "p0.png").read_bytes())
    look = Looker()
    run = begin(look, *names, workers=6, is_ordered=True)
    finish(run)
    assert look.shades == [0]
    assert [one["source"] for one in results()] == names[:1]
    assert run.num_repeated == 11


def test_stopping_with_several_in_hand_keeps_those_and_begins_no_others(site: Path) -> None:
    run: Run | None = None

    def stop_at_third(shade: int) -> None:
        if shade == 40:
            assert run is not None
            run.stop()

    look = Looker(stop_at_third)
    run = begin(look, workers=3, is_ordered=True)
    kept = [one.source for one in run.inspect()]
    assert lines() == kept
    assert len(kept) == len(look.shades) < 8
    assert run.num_pending == 8 - len(kept)
    assert not Path("out/results.json").exists()

    again = Looker()
    finish(begin(again, start="resume", workers=3, is_ordered=True))
    assert sorted(look.shades + again.shades) == [0, 20, 40, 60, 80, 100, 120, 140]
    assert len(results()) == 8


def test_large_pictures_wait_for_room(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_hand, most = 0, []

    def alone(shade: int) -> None:
        nonlocal in_hand
        in_hand += 1
        most.append(in_hand)
        time.sleep(0.005)
        in_hand -= 1

    run = begin(Looker(alone), workers=4, is_ordered=True)
    monkeypatch.setattr(run, "_room", Room(most_bytes=1))
    finish(run)
    assert most == [1] * 8
