"""What the user typed becomes an ordered list of pictures, and nothing vanishes."""

from pathlib import Path

import pytest

from qianyan.errors import InputError
from qianyan.inspection.sources import RUN_FILE, list_sources


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "b.jpg",
        "a.PNG",
        "notes.txt",
        ".hidden.jpg",
        "deep/c.webp",
        "deep/.cache/d.jpg",
        "odd/[1].jpg",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not read here")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*given: str, lines: tuple[str, ...] = ()) -> list[str]:
    return [source.name for source in list_sources(given, standard_input=lines).entries]


def failure(given: str) -> tuple[str, str]:
    (source,) = list_sources([given]).entries
    assert source.failure is not None
    return source.failure.code, source.failure.message


def test_a_folder_gives_its_pictures_sorted_with_those_of_its_folders(site: Path) -> None:
    assert names(".") == ["a.PNG", "b.jpg", "deep/c.webp", "odd/[1].jpg"]


def test_results_of_an_earlier_run_inside_the_folder_are_not_inspected(site: Path) -> None:
    marked = site / "qianyan-out" / "marked_images"
    marked.mkdir(parents=True)
    (marked / "b.jpg").write_bytes(b"marked")
    (marked.parent / RUN_FILE).write_text("{}")
    assert names(".") == ["a.PNG", "b.jpg", "deep/c.webp", "odd/[1].jpg"]
    assert names("qianyan-out") == ["qianyan-out/marked_images/b.jpg"]


def test_files_globs_and_urls_keep_the_order_given(site: Path) -> None:
    given = ("https://example.org/x.jpg", "b.jpg", "deep/*", "**/*.PNG")
    assert names(*given) == ["https://example.org/x.jpg", "b.jpg", "deep/c.webp", "a.PNG"]


def test_a_file_whose_name_looks_like_a_glob_is_the_file(site: Path) -> None:
    assert names("odd/[1].jpg") == ["odd/[1].jpg"]


def test_a_dash_reads_names_from_standard_input(site: Path) -> None:
    assert names("-", "a.PNG", lines=("b.jpg\n", "\n", " deep \n")) == [
        "b.jpg",
        "deep/c.webp",
        "a.PNG",
    ]


def test_the_same_path_in_another_spelling_is_listed_once_and_counted(site: Path) -> None:
    listed = list_sources(["b.jpg", "./b.jpg", "deep/../b.jpg", str(site / "b.jpg"), "."])
    assert listed.entries[0].name == "b.jpg"
    assert len(listed.entries) == 4
    assert listed.num_repeated == 4


def test_the_same_url_twice_is_listed_once() -> None:
    listed = list_sources(["http://example.org/a.jpg"] * 2)
    assert (len(listed.entries), listed.num_repeated) == (1, 1)


def test_a_missing_file_is_an_entry_with_a_sentence(site: Path) -> None:
    code, message = failure("c.jpg")
    assert code == "missing"
    assert message == "'c.jpg' does not exist; expected a picture, folder or glob."


def test_a_folder_without_pictures_is_an_entry_with_a_sentence(site: Path) -> None:
    (site / "empty").mkdir()
    (site / "empty" / "readme.txt").write_text("nothing")
    code, message = failure("empty")
    assert code == "no_pictures"
    assert "holds no pictures" in message


def test_a_glob_without_matches_is_an_entry_with_a_sentence(site: Path) -> None:
    code, message = failure("deep/*.bmp")
    assert code == "no_pictures"
    assert "matches nothing" in message


@pytest.mark.parametrize("name", ["clip.mp4", "clip.MOV"])
def test_a_video_is_an_entry_with_a_sentence(site: Path, name: str) -> None:
    (site / name).write_bytes(b"")
    code, message = failure(name)
    assert code == "video"
    assert "is a video" in message


def test_a_video_in_a_folder_does_not_vanish(site: Path) -> None:
    (site / "deep" / "clip.mp4").write_bytes(b"")
    assert names("deep") == ["deep/c.webp", "deep/clip.mp4"]


@pytest.mark.parametrize("name", ["ftp://host/a.jpg", "file:///etc/passwd", "rtsp://cam/1"])
def test_other_schemes_are_refused(name: str) -> None:
    code, message = failure(name)
    assert code == "bad_scheme"
    assert message.endswith("expected http(s).")


@pytest.mark.parametrize("name", ["a\0b.jpg", "x" * 5000])
def test_a_name_no_file_can_have_is_an_entry_not_a_crash(site: Path, name: str) -> None:
    assert failure(name)[0] == "missing"


def test_nothing_given_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to inspect"):
        list_sources(["-"], standard_input=())
