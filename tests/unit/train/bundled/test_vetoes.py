"""The veto table counts pictures and heads as the model card says."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from qianyan.labels.photos import LabelledBox
from qianyan.models.detector import KINDS, Kind, Proposal
from qianyan.train.bundled.labelled import LabelledPicture
from qianyan.train.bundled.sentences import load_questions
from qianyan.train.bundled.vetoes import Judged, hazard_rates, head_rates, judge_proposals


def picture(
    *boxes: LabelledBox, colour: int = 0, looked_for: frozenset[Kind] = frozenset(KINDS)
) -> LabelledPicture:
    return LabelledPicture(Image.new("RGB", (120, 90), (colour, colour, colour)), boxes, looked_for)


PICTURES = [
    picture(LabelledBox("fire", (10, 10, 40, 40)), colour=10),
    picture(LabelledBox("helmet", (10, 10, 40, 40)), colour=20),
    picture(colour=200),
    picture(colour=200, looked_for=frozenset({"smoke"})),
]


def propose(rgb: np.ndarray) -> list[Proposal]:
    kind: Kind = "helmet" if rgb[0, 0, 0] == 20 else "fire"
    return [Proposal(kind, (12, 12, 42, 42), 0.6), Proposal("head", (80, 50, 100, 70), 0.3)]


def doubt_bright(seen: Sequence[np.ndarray], asked: str) -> np.ndarray:
    """Doubt what is bright, and take every other head for one with a hard hat."""
    meanings = list(load_questions()[asked].options.values())
    rows = np.full((len(seen), len(meanings)), 0.0)
    for row, pixels in enumerate(seen):
        absent = meanings.index("look_alike" if asked == "hazard" else "not_a_person")
        rows[row, absent if pixels.mean() > 100 else 0] = 1.0
    return rows


@pytest.fixture(scope="module")
def judged() -> list[Judged]:
    return list(judge_proposals(PICTURES, propose, doubt_bright))


def test_only_kinds_that_were_looked_for_are_judged(judged: list[Judged]) -> None:
    assert {each.picture for each in judged} == {0, 1, 2}
    assert [each.kind for each in judged if each.picture == 2] == ["fire", "head"]


def test_a_veto_removes_the_false_alarm_and_keeps_the_fire(judged: list[Judged]) -> None:
    alone = hazard_rates(judged, PICTURES, "fire", score_at=0.5, veto_at=None)
    second = hazard_rates(judged, PICTURES, "fire", score_at=0.5, veto_at=0.9)
    assert alone == (1.0, 0.5)
    assert second == (1.0, 0.0)


def test_a_head_is_true_where_a_labelled_head_overlaps(judged: list[Judged]) -> None:
    helmet = next(each for each in judged if each.kind == "helmet")
    assert (helmet.is_true, helmet.right_headgear) == (True, True)
    assert [each.is_true for each in judged if each.kind == "head"] == [False] * 3
    assert head_rates(judged, score_at={"helmet": 0.5, "head": 0.2}, veto_at=0.9) == (0.0, 1 / 3)
