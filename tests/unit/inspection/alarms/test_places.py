"""Where pictures were taken: one place for all, or one for each pattern."""

import pytest

from qianyan.errors import ConfigError
from qianyan.inspection.alarms.places import Places, parse_places


def test_a_place_is_that_of_all_pictures() -> None:
    places = parse_places(" 3  号塔吊下 ")
    assert places.find("a.jpg") == places.find("http://cam/snap") == "3 号塔吊下"
    assert Places().find("a.jpg") == ""


def test_the_first_pattern_that_fits_the_source_or_its_file_names_the_place() -> None:
    places = parse_places(
        "site/crane*/*=3 号塔吊下；gate*.jpg=东门; http://cam/?id=7=Warehouse 2; 厂区"
    )
    assert places.find("site/crane3/1.jpg") == "3 号塔吊下"
    assert places.find("elsewhere/gate-1.jpg") == "东门"
    assert places.find("http://cam/?id=7") == "Warehouse 2"
    assert places.find("site/roof.jpg") == "厂区"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("东门; 西门", "has both '东门' and '西门' for all pictures"),
        ("a*=", "expected a place of at most 60 characters"),
        ("，", "expected a place of at most 60 characters"),
        ("x" * 61, "expected a place of at most 60 characters"),
        ("东门;", "--place has ''; expected a place"),
    ],
)
def test_what_is_no_place_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_places(text)
