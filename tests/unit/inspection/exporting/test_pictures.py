"""Pictures are found, named and placed without trusting the results that name them."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qianyan.errors import MediaError
from qianyan.inspection.exporting.pictures import Found, find_picture, place, safe_names
from qianyan.inspection.records import Inspection

from .examples import inspection


def draw(path: Path, **saving: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (100, 50), (9, 90, 200)).save(path, **saving)  # type: ignore[arg-type]
    return path


def test_a_picture_lies_in_its_results_folder(tmp_path: Path) -> None:
    path = draw(tmp_path / "images" / "a.png")
    assert find_picture(inspection("a.png"), tmp_path) == Found(
        path.resolve(), 100, 50, is_plain=True
    )


@pytest.mark.parametrize("way", ["../secret.png", "images/../../secret.png", "/{root}/secret.png"])
def test_nothing_outside_the_results_folder_is_taken(tmp_path: Path, way: str) -> None:
    draw(tmp_path / "secret.png")
    (tmp_path / "run" / "images").mkdir(parents=True)
    named = replace(inspection("a.png"), file=way.format(root=tmp_path))
    with pytest.raises(MediaError, match="neither in the results folder"):
        find_picture(named, tmp_path / "run")


def test_a_link_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    secret = draw(tmp_path / "secret.png")
    (tmp_path / "run" / "images").mkdir(parents=True)
    (tmp_path / "run" / "images" / "a.png").symlink_to(secret)
    with pytest.raises(MediaError, match="neither in the results folder"):
        find_picture(inspection("a.png"), tmp_path / "run")


def test_the_inspected_file_itself_serves_while_it_is_unchanged(tmp_path: Path) -> None:
    path = draw(tmp_path / "site.png")
    one = Inspection(str(path), (), (), sha256=sha256(path.read_bytes()).hexdigest())
    assert find_picture(one, tmp_path / "gone").path == path.resolve()
    Image.new("RGB", (100, 50)).save(path)
    with pytest.raises(MediaError, match="unchanged"):
        find_picture(one, tmp_path / "gone")


def test_what_is_no_picture_or_another_size_is_told(tmp_path: Path) -> None:
    path = draw(tmp_path / "images" / "a.png")
    with pytest.raises(MediaError, match="it is 100x50 now, and was inspected as 200x50"):
        find_picture(replace(inspection("a.png"), width=200), tmp_path)
    path.write_bytes(b"no picture")
    with pytest.raises(MediaError, match="cannot be opened"):
        find_picture(inspection("a.png"), tmp_path)


def test_pictures_are_linked_or_copied(tmp_path: Path) -> None:
    found = Found(draw(tmp_path / "a.png"), 100, 50, is_plain=True)
    place(found, tmp_path / "link.png", is_copy=False)
    place(found, tmp_path / "copy.png", is_copy=True)
    assert (tmp_path / "link.png").samefile(found.path)
    assert not (tmp_path / "copy.png").samefile(found.path)
    assert (tmp_path / "copy.png").read_bytes() == found.path.read_bytes()


def test_where_no_link_can_be_had_pictures_are_copied(tmp_path: Path) -> None:
    other_disk = Path("/dev/shm")  # noqa: S108
    if not other_disk.is_dir() or other_disk.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second disk")
    with TemporaryDirectory(dir=other_disk) as folder:
        found = Found(draw(tmp_path / "a.png"), 100, 50, is_plain=True)
        place(found, Path(folder) / "a.png", is_copy=False)
        assert (Path(folder) / "a.png").read_bytes() == found.path.read_bytes()


def test_what_exif_turns_is_written_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    draw(tmp_path / "images" / "a.jpg", exif=turned)
    one = replace(inspection("a.jpg"), width=50, height=100)
    found = find_picture(one, tmp_path)
    assert (found.width, found.height, found.is_plain) == (50, 100, False)
    place(found, tmp_path / "out.jpg", is_copy=False)
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.size == (50, 100)
        assert 0x0112 not in image.getexif()


def test_what_tools_cannot_read_becomes_a_jpeg(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "a.tif")
    one = inspection("a.tif")
    found = find_picture(one, tmp_path)
    assert safe_names([(one, found)]) == ["a.jpg"]
    place(found, tmp_path / "out.jpg", is_copy=False)
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.format == "JPEG"


def names(*files: str) -> list[str]:
    pairs = [(inspection(file), Found(Path(file), 100, 50, is_plain=True)) for file in files]
    return safe_names([(replace(one, file=one.source), found) for one, found in pairs])


def test_names_that_collide_are_told_apart_by_stem_whatever_the_case() -> None:
    assert names("a.jpg", "A.jpg", "a.png", "b/a.jpg") == [
        *("a.jpg", "A-2.jpg", "a-3.png", "a-4.jpg")
    ]


def test_names_keep_chinese_and_lose_what_leads_elsewhere() -> None:
    assert names("三号厂房.jpg", "..\\..\\x y&.jpg", "....jpg") == [
        *("三号厂房.jpg", "x_y.jpg", "picture.jpg")
    ]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.text(max_size=90), max_size=8))
def test_any_names_become_safe_and_different(stems: list[str]) -> None:
    safe = names(*(f"{stem}.png" for stem in stems))
    assert len({Path(name).stem.casefold() for name in safe}) == len(stems)
    for name in safe:
        assert Path(name).name == name
        assert not name.startswith((".", "-"))
        name.encode()
