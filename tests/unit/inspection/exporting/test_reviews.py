"""Reviews: the last word on each box, and a sentence with the line for what is no statement."""

import json
from pathlib import Path
from typing import Any

import pytest

from qianyan.errors import ConfigError
from qianyan.inspection.exporting.reviews import SCHEMA, read_reviews
from qianyan.inspection.records import Box, Hazard, SubLabel

FIRE = {"schema": SCHEMA, "sha256": "AB", "label_id": "fire", "bbox_2d": [1, 2, 3, 4]}


def write(folder: Path, *statements: Any) -> Path:
    file = folder / "reviews.jsonl"
    lines = (one if isinstance(one, str) else json.dumps(one) for one in statements)
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_the_last_word_about_a_box_counts(tmp_path: Path) -> None:
    moved = FIRE | {"verdict": "moved", "moved_to": [1, 2, 9, 9], "sub_label": "严重", "by": "王"}
    file = write(tmp_path, FIRE | {"verdict": "wrong"}, "", moved)
    (review,) = read_reviews([file])["ab"].by_box.values()
    assert (review.verdict, review.truth) == ("moved", Box(1, 2, 9, 9))
    assert review.sub_label is SubLabel.SEVERE


def test_later_files_have_the_last_word(tmp_path: Path) -> None:
    first = write(tmp_path, FIRE | {"verdict": "right"})
    (tmp_path / "more").mkdir()
    second = write(tmp_path / "more", FIRE | {"verdict": "wrong"})
    (review,) = read_reviews([first, second])["ab"].of(Hazard.FIRE)
    assert review.truth is None


def test_complete_holds_for_all_categories_unless_some_are_named(tmp_path: Path) -> None:
    done = {"schema": SCHEMA, "sha256": "ab", "verdict": "complete"}
    assert read_reviews([write(tmp_path, done)])["ab"].complete == set(Hazard)
    some = done | {"categories": ["smoke"]}
    assert read_reviews([write(tmp_path, done, some)])["ab"].complete == {Hazard.SMOKE}


@pytest.mark.parametrize("word", ["no_helmet", "no helmet", "未佩戴安全帽"])
def test_sub_labels_are_ids_or_words_of_either_language(tmp_path: Path, word: str) -> None:
    missed = FIRE | {"verdict": "missed", "label_id": "person", "sub_label": word}
    (review,) = read_reviews([write(tmp_path, missed)])["ab"].by_box.values()
    assert review.sub_label is SubLabel.NO_HELMET


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"verdict": "fine"}, "the verdict 'fine'; expected right, wrong, moved, missed or compl"),
        ({"verdict": "right", "label_id": "water"}, "the category 'water'; expected fire, smoke"),
        ({"verdict": "right", "bbox_2d": [1, 2, 1, 4]}, "the box"),
        ({"verdict": "right", "bbox_2d": [1, 2, 3.5, 4]}, "the box"),
        ({"verdict": "right", "bbox_2d": "1,2,3,4"}, "the box"),
        ({"verdict": "moved"}, "expected moved_to with moved"),
        ({"verdict": "right", "moved_to": [1, 2, 3, 4]}, "expected moved_to with moved"),
        ({"verdict": "right", "sub_label": "helmet"}, "expected minor, moderate, severe"),
        ({"verdict": "right", "sublabel": "minor"}, "has 'sublabel'; expected none but schema"),
        ({"verdict": "right", "schema": "qianyan.review/2"}, "does not say that it is a statement"),
        ({"verdict": "right", "sha256": 7}, "names no picture"),
        ({"verdict": "complete", "categories": "fire"}, "no list of categories"),
    ],
)
def test_what_is_no_statement_is_named_with_its_line(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    file = write(tmp_path, FIRE | {"verdict": "right"}, FIRE | change)
    with pytest.raises(ConfigError, match=f"^Line 2 of 'reviews.jsonl' .*{words}"):
        read_reviews([file])


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_a_line_that_is_no_object_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"Line 1 of 'reviews\.jsonl'"):
        read_reviews([write(tmp_path, text)])


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl' cannot be read"):
        read_reviews([tmp_path / "none.jsonl"])
