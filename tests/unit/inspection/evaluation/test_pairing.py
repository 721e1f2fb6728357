"""Labels and results of the same pictures find each other, and of others do not."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from qianyan.errors import ConfigError
from qianyan.inspection.evaluation.pairing import listed, pair_verdicts
from qianyan.inspection.records import Inspection
from qianyan.labels.photos import LabelledPhoto

from .examples import ALL, looked


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "site.png"
    Image.new("RGB", (40, 30), "grey").save(path)
    return path


def labelled(path: Path) -> LabelledPhoto:
    return LabelledPhoto(path, 40, 30, ALL, ())


def seen(source: object, digest: str | None = None) -> Inspection:
    return replace(looked(), source=str(source), sha256=digest)


def test_a_path_is_found_however_it_is_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert pair_verdicts([labelled(file)], [seen("./site.png")]).pairs[0][1].source == "./site.png"


def test_a_picture_that_was_moved_or_is_there_twice_is_found_by_its_bytes(file: Path) -> None:
    again = file.with_name("again.png")
    again.write_bytes(file.read_bytes())
    verdict = seen("elsewhere/site.png", sha256(file.read_bytes()).hexdigest())
    paired = pair_verdicts([labelled(file), labelled(again)], [verdict])
    assert [one for _, one in paired.pairs] == [verdict, verdict]


def test_a_file_of_that_name_with_other_bytes_is_another_picture(file: Path) -> None:
    other = seen("elsewhere/site.png", "0" * 64)
    with pytest.raises(ConfigError, match="None of the 1 labelled pictures is among the 1"):
        pair_verdicts([labelled(file)], [other])


def test_a_name_decides_where_the_file_is_not_at_hand(tmp_path: Path) -> None:
    away = labelled(tmp_path / "gone.jpg")
    verdicts = [seen("http://host/gone.jpg?size=2"), seen("x/other.jpg")]
    assert pair_verdicts([away], verdicts).pairs == ((away, verdicts[0]),)
    twice = [seen("a/gone.jpg"), seen("b/gone.jpg")]
    with pytest.raises(ConfigError):
        pair_verdicts([away], twice)


def test_pictures_without_a_verdict_and_of_another_size_are_named(file: Path) -> None:
    known, unknown = labelled(file), labelled(file.with_name("new.png"))
    paired = pair_verdicts([known, unknown], [replace(seen(file), width=80, height=60)])
    assert (paired.without_verdict, paired.other_size) == (("new.png",), ("site.png",))


def test_many_names_are_cut_short() -> None:
    assert listed(["a", "b", "c", "d"]) == "'a', 'b', 'c' +1"
