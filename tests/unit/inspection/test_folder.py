"""The results folder: safe names, no half-written files, and what an interruption leaves."""

import json
from pathlib import Path

import pytest
from PIL import Image

from qianyan.errors import ConfigError
from qianyan.inspection.folder import (
    ResultsFolder,
    Start,
    file_names,
    open_folder,
    read_lines,
    with_suffix,
)
from qianyan.inspection.records import Hazard, Inspection
from qianyan.inspection.sources import Source

SETTINGS = {"model": "bundled", "lang": "en"}


def verdict(source: str, file: str | None = None) -> Inspection:
    return Inspection(source=source, detections=(), checked=tuple(Hazard), sha256="0", file=file)


def opened(path: Path, start: Start = "new", **settings: str) -> ResultsFolder:
    return open_folder(path, settings={**SETTINGS, **settings}, lang="en", start=start)


def test_a_new_folder_has_room_for_pictures_and_the_font(tmp_path: Path) -> None:
    opened(tmp_path / "out")
    present = {path.name for path in (tmp_path / "out").iterdir()}
    assert present == {"images", "marked_images", "fonts", ".run.json", "results.jsonl"}
    assert list((tmp_path / "out" / "fonts").glob("*.ttf"))


def test_a_folder_with_a_users_fonts_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "out" / "fonts").mkdir(parents=True)
    (tmp_path / "out" / "fonts" / "mine.txt").write_text("kept")
    opened(tmp_path / "out")
    assert (tmp_path / "out" / "fonts" / "mine.txt").exists()


def test_a_folder_with_something_in_it_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"not empty.*--resume.*--overwrite.*--out"):
        opened(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        opened(tmp_path / "out")


def test_overwriting_removes_what_is_ours_and_nothing_else(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    folder.append(verdict("a.jpg"))
    (tmp_path / "images" / "a.jpg").write_bytes(b"x")
    (tmp_path / "mine.txt").write_text("kept")
    (tmp_path / "report.pdf").write_bytes(b"old")
    fresh = opened(tmp_path, "overwrite")
    assert fresh.done == []
    assert fresh.run_id != folder.run_id
    assert (tmp_path / "mine.txt").exists()
    assert not list((tmp_path / "images").iterdir())
    assert not (tmp_path / "report.pdf").exists()


def test_resuming_keeps_the_run_and_what_was_done(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    folder.append(verdict("a.jpg"))
    again = opened(tmp_path, "resume")
    assert (again.run_id, again.started_at) == (folder.run_id, folder.started_at)
    assert [one.source for one in again.done] == ["a.jpg"]


def test_resuming_where_nothing_began_begins(tmp_path: Path) -> None:
    assert opened(tmp_path / "out", "resume").done == []


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(ConfigError, match=r"model is 'other'.*started with 'bundled'"):
        opened(tmp_path, "resume", model="other")


def test_resuming_takes_away_the_end_of_an_earlier_sitting(tmp_path: Path) -> None:
    opened(tmp_path)
    for name in ("results.json", "report.pdf"):
        (tmp_path / name).write_text("of an earlier end")
    opened(tmp_path, "resume")
    assert not (tmp_path / "results.json").exists()
    assert not (tmp_path / "report.pdf").exists()


@pytest.mark.parametrize("state", ["", "[]", '{"schema": "other"}'])
def test_a_damaged_record_of_the_run_is_refused(tmp_path: Path, state: str) -> None:
    opened(tmp_path)
    (tmp_path / ".run.json").write_text(state)
    with pytest.raises(ConfigError, match="not the record of a run"):
        opened(tmp_path, "resume")


@pytest.mark.parametrize("torn", ['{"source": "c.jp', "{", '{"source": "c.jpg"}\n', "\0\0\0\0\n"])
def test_a_torn_last_line_counts_as_not_written(tmp_path: Path, torn: str) -> None:
    folder = opened(tmp_path)
    folder.append(verdict("a.jpg"))
    folder.append(verdict("b.jpg"))
    with folder.lines_file.open("a") as lines:
        lines.write(torn)
    again = opened(tmp_path, "resume")
    assert [one.source for one in again.done] == ["a.jpg", "b.jpg"]
    again.append(verdict("c.jpg"))
    written = [json.loads(line) for line in again.lines_file.read_text().splitlines()]
    assert [line["source"] for line in written] == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_damaged_line_in_the_middle_is_never_skipped_silently(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    folder.append(verdict("a.jpg"))
    with folder.lines_file.open("a") as lines:
        lines.write("damaged\n")
    folder.append(verdict("b.jpg"))
    with pytest.raises(ConfigError, match="Line 2"):
        read_lines(folder.lines_file)


def names_of(*sources: str, done: tuple[Inspection, ...] = ()) -> list[str]:
    names = file_names([Source(name) for name in sources], done)
    return [names[source] for source in sources]


def test_names_are_safe_and_unique_whatever_the_case() -> None:
    assert names_of("x/a.jpg", "y/a.jpg", "z/A.JPG", "a.png") == [
        "a.jpg",
        "a-2.jpg",
        "A-3.jpg",
        "a.png",
    ]


def test_a_download_without_a_suffix_keeps_clear_of_what_it_may_become() -> None:
    snapshot = "http://example.org/snapshot"
    assert names_of("snapshot.jpg", snapshot) == ["snapshot.jpg", "snapshot-2"]
    assert names_of(snapshot, "snapshot.jpg") == ["snapshot", "snapshot-2.jpg"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("site/工地 一.jpg", "工地_一.jpg"),
        ("../../etc/passwd.png", "passwd.png"),
        (".jpg", "jpg"),
        ("a:b*c?.jpg", "a_b_c.jpg"),
        ("C:\\site\\b.png", "b.png"),
        ("https://example.org/photos/gate%203.jpg?size=1#x", "gate_3.jpg"),
        ("https://example.org/snapshot", "snapshot"),
        ("https://example.org/", "picture"),
        ("x" * 300 + ".jpg", "x" * 60 + ".jpg"),
    ],
)
def test_each_source_has_a_name_that_any_system_can_write(source: str, expected: str) -> None:
    assert names_of(source) == [expected]


def test_pictures_done_earlier_keep_their_names() -> None:
    done = (verdict("x/a.jpg", "images/a.jpg"),)
    assert names_of("y/a.jpg", "x/a.jpg", done=done) == ["a-2.jpg", "a.jpg"]


def test_a_download_gets_the_suffix_of_what_it_is() -> None:
    assert with_suffix("snapshot", b"\xff\xd8\xff\xe0...") == "snapshot.jpg"
    assert with_suffix("snapshot", b"\x89PNG\r\n") == "snapshot.png"
    assert with_suffix("snapshot", b"RIFF....WEBPVP8 ") == "snapshot.webp"
    assert with_suffix("kept.jpeg", b"\x89PNG\r\n") == "kept.jpeg"


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a.jpg", "a.jpg"),
        ("a.jpe", "a.jpe"),
        ("a.png", "a.png"),
        ("a.gif", "a.gif"),
        ("a.webp", "a.webp"),
        ("a.tiff", "a.tiff"),
        ("a.heic", "a.heic.jpg"),
    ],
)
def test_marked_pictures_have_the_same_name_where_it_can_be_written(
    tmp_path: Path, name: str, kept: str
) -> None:
    folder = opened(tmp_path)
    marked = Image.new("RGB", (40, 30), (200, 30, 30))
    assert folder.keep_marked(name, marked) == f"marked_images/{kept}"
    with Image.open(tmp_path / "marked_images" / kept) as written:
        assert written.size == (40, 30)
