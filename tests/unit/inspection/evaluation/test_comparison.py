"""Two evaluations of the same pictures, against published and hand-made values."""

import json
from pathlib import Path

import pytest

from qianyan.errors import ConfigError
from qianyan.inspection.evaluation.comparison import (
    Comparison,
    Difference,
    Earlier,
    compare,
    mcnemar,
    read_evaluation,
)
from qianyan.inspection.evaluation.outcomes import PictureOutcome, score_picture

from .examples import FLAME, failed, fire, looked, photo


def outcomes(found: str, *, present: bool = True) -> tuple[PictureOutcome, ...]:
    """Score a picture for each sign: + where a fire is reported, - where none is."""
    boxes = (FLAME,) if present else ()
    return tuple(
        score_picture(
            photo(*boxes, name=f"{index}.jpg"), looked(*([fire(0)] if sign == "+" else []))
        )
        for index, sign in enumerate(found)
    )


def of(comparison: Comparison, measure: str) -> Difference:
    return next(
        one for one in comparison.differences if (one.kind, one.measure) == ("fire", measure)
    )


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [(0, 0, 1.0), (5, 0, 0.0625), (0, 6, 0.03125), (8, 2, 0.109375), (3, 3, 1.0)],
)
def test_mcnemar_is_the_exact_binomial_test_of_the_pictures_that_differ(
    better: int, worse: int, p: float
) -> None:
    assert mcnemar(better, worse) == pytest.approx(p)


def test_only_pictures_that_one_alone_got_right_count() -> None:
    here, there = outcomes("++-+"), outcomes("+-+-")
    recall = of(compare(here, Earlier("b.json", "B", there)), "recall")
    assert (recall.better, recall.worse, recall.p) == (2, 1, 1.0)
    assert (recall.here, recall.there) == (0.75, 0.5)


def test_a_large_difference_is_more_than_chance_and_a_small_one_is_not() -> None:
    nothing = Earlier("b.json", "B", outcomes("-" * 30))
    large = compare(outcomes("+" * 30), nothing)
    assert of(large, "recall").is_more_than_chance
    assert of(large, "recall").is_better
    assert of(large, "f1").is_more_than_chance
    small = compare(outcomes("++" + "-" * 28), nothing)
    assert not of(small, "recall").is_more_than_chance


def test_fewer_false_alarms_are_better() -> None:
    here = outcomes("-" * 30, present=False)
    there = Earlier("b.json", "B", outcomes("+" * 30, present=False))
    alarms = of(compare(here, there), "false_alarms")
    assert (alarms.here, alarms.there, alarms.is_better) == (0, 1, True)
    assert alarms.is_more_than_chance


def test_the_same_evaluation_twice_differs_nowhere() -> None:
    same = outcomes("+-+")
    for one in compare(same, Earlier("b.json", "B", same)).differences:
        assert (one.p_adjusted, one.difference.value) == (1.0, 0.0)


def test_p_values_are_adjusted_for_their_number() -> None:
    here, there = outcomes("+" * 6), Earlier("b.json", "B", outcomes("-" * 6))
    recall = of(compare(here, there), "recall")
    assert recall.p == pytest.approx(0.03125)
    assert recall.p_adjusted > 0.05


def test_failed_pictures_and_those_of_one_side_are_left_out() -> None:
    here = (*outcomes("++"), score_picture(photo(FLAME, name="2.jpg"), failed("x")))
    there = Earlier("b.json", "B", outcomes("+-++"))
    comparison = compare(here, there)
    assert (comparison.pictures, comparison.only_here, comparison.only_there) == (2, 0, 2)


def test_other_labels_and_other_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'0\.jpg' was labelled otherwise"):
        compare(outcomes("+"), Earlier("b.json", "B", outcomes("+", present=False)))
    with pytest.raises(ConfigError, match="no picture in common"):
        compare(outcomes("+"), Earlier("b.json", "B", ()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not an evaluation"),
        ("[]", "is not an evaluation"),
        ('{"schema": "qianyan.results/1"}', "has schema 'qianyan.results/1'; expected"),
        ('{"schema": "qianyan.eval/1", "run": {"model": "m"}, "pictures": [{}]}', "is not an"),
    ],
)
def test_a_file_that_is_no_evaluation_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_evaluation(path)
    with pytest.raises(ConfigError, match="cannot be opened"):
        read_evaluation(tmp_path / "none.json")


def test_an_evaluation_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    records = [one.as_record() for one in outcomes("+-")]
    path.write_text(
        json.dumps({"schema": "qianyan.eval/1", "run": {"model": "m"}, "pictures": records})
    )
    earlier = read_evaluation(path)
    assert earlier.model == "m"
    assert [one.images for one in earlier.outcomes] == [one.images for one in outcomes("+-")]
