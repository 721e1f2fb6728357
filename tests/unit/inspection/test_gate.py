"""What --fail-on takes."""

import pytest

from qianyan.errors import ConfigError
from qianyan.inspection.gate import fails, parse_fail_on
from qianyan.inspection.records import Box, Detection, Hazard, Inspection, SubLabel

CASES = [
    (Hazard.FIRE, SubLabel.MINOR, {"minor", "any"}),
    (Hazard.SMOKE, SubLabel.MODERATE, {"minor", "moderate", "any"}),
    (Hazard.FIRE, SubLabel.SEVERE, {"minor", "moderate", "severe", "any"}),
    (Hazard.FIRE, SubLabel.UNCERTAIN, {"any"}),
    (Hazard.PERSON, SubLabel.NO_HELMET, {"minor", "moderate", "no_helmet", "any"}),
    (Hazard.PERSON, SubLabel.UNCERTAIN, {"any"}),
    (Hazard.PERSON, SubLabel.HELMET, set()),
]


@pytest.mark.parametrize(("label", "sub_label", "expected"), CASES)
def test_each_word_takes_findings_at_or_above_it(
    label: Hazard, sub_label: SubLabel, expected: set[str]
) -> None:
    found = Detection(label, sub_label, Box(0, 0, 5, 5))
    inspection = Inspection(source="a.jpg", detections=(found,), checked=tuple(Hazard))
    words = ("minor", "moderate", "severe", "no_helmet", "any")
    assert {word for word in words if fails([inspection], frozenset({word}))} == expected


def test_several_words_are_separated_by_commas() -> None:
    assert parse_fail_on("severe, no-helmet") == {"severe", "no_helmet"}


@pytest.mark.parametrize("text", ["", "sever", "severe,fire", ","])
def test_an_unknown_word_is_refused_with_those_that_exist(text: str) -> None:
    with pytest.raises(ConfigError, match="expected minor, moderate, severe, no_helmet, any"):
        parse_fail_on(text)
