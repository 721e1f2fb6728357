"""The words of alarms in both languages: counts, places, doubt, and what is never kept silent."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from qianyan.inspection.alarms.sentences import (
    AlarmForm,
    alarm_sentence,
    chinese_number,
    english_number,
)
from qianyan.inspection.gate import parse_fail_on
from qianyan.inspection.records import Box, Detection, Failure, Hazard, Inspection, SubLabel

BOX = Box(10, 10, 60, 60)
FIRE = Detection(Hazard.FIRE, SubLabel.MODERATE, BOX)
BIG_FIRE = Detection(Hazard.FIRE, SubLabel.SEVERE, BOX)
MAYBE_FIRE = Detection(Hazard.FIRE, SubLabel.UNCERTAIN, BOX)
SMOKE = Detection(Hazard.SMOKE, SubLabel.MINOR, BOX)
BIG_SMOKE = Detection(Hazard.SMOKE, SubLabel.SEVERE, BOX)
MAYBE_SMOKE = Detection(Hazard.SMOKE, SubLabel.UNCERTAIN, BOX)
BARE = Detection(Hazard.PERSON, SubLabel.NO_HELMET, BOX)
HAT = Detection(Hazard.PERSON, SubLabel.HELMET, BOX)
UNCLEAR = Detection(Hazard.PERSON, SubLabel.UNCERTAIN, BOX)
CHINESE = AlarmForm(lang="zh")
ENGLISH = AlarmForm(lang="en")


def looked(*found: Detection) -> Inspection:
    return Inspection("a.jpg", found, tuple(Hazard))


CASES: Sequence[tuple[tuple[Detection, ...], str, str]] = [
    ((BARE,), "一人未戴安全帽", "one person without a hard hat"),
    ((BARE, HAT, BARE), "两人未戴安全帽", "two people without hard hats"),
    ((BARE,) * 12, "十二人未戴安全帽", "12 people without hard hats"),
    ((FIRE,), "有明火", "fire"),
    ((FIRE, FIRE), "有两处明火", "two fires"),
    ((BIG_FIRE,), "有明火，火势严重", "severe fire"),
    ((FIRE, BIG_FIRE), "有两处明火，火势严重", "two fires, one of them severe"),
    ((SMOKE,), "有烟雾", "smoke"),
    ((BIG_SMOKE,) * 3, "有三处烟雾，烟雾浓重", "three severe clouds of smoke"),
    ((SMOKE, FIRE), "有明火和烟雾", "fire and smoke"),
    ((FIRE, BARE), "有明火，另有一人未戴安全帽", "fire and one person without a hard hat"),
    (
        (BIG_FIRE, SMOKE, BARE, BARE, BARE),
        "有明火和烟雾，火势严重，另有三人未戴安全帽",
        "severe fire, smoke and three people without hard hats",
    ),
    ((MAYBE_FIRE,), "疑似有明火，请核实", "possible fire; please check"),
    (
        (MAYBE_FIRE, MAYBE_SMOKE),
        "疑似有明火和烟雾，请核实",
        "possible fire and possible smoke; please check",
    ),
    ((FIRE, MAYBE_SMOKE), "有明火，疑似有烟雾，请核实", "fire and possible smoke; please check"),
    ((FIRE, MAYBE_FIRE), "有明火", "fire"),
    ((UNCLEAR, BARE), "一人未戴安全帽", "one person without a hard hat"),
]


@pytest.mark.parametrize(("found", "chinese", "english"), CASES)
def test_a_finding_is_said_with_its_place_and_number(
    found: tuple[Detection, ...], chinese: str, english: str
) -> None:
    assert alarm_sentence(looked(*found), CHINESE, "3 号塔吊下") == f"3 号塔吊下{chinese}"
    assert alarm_sentence(looked(*found), ENGLISH, "Crane 3") == f"Crane 3: {english}"


def test_a_place_that_is_no_inside_is_followed_by_a_verb() -> None:
    assert alarm_sentence(looked(BARE), CHINESE, "2 号仓库") == "2 号仓库有一人未戴安全帽"
    assert alarm_sentence(looked(FIRE), CHINESE, "2 号仓库") == "2 号仓库有明火"


def test_without_a_place_something_was_found() -> None:
    assert alarm_sentence(looked(BARE), CHINESE) == "发现一人未戴安全帽"
    assert alarm_sentence(looked(FIRE, BARE), CHINESE) == "发现明火，另有一人未戴安全帽"
    assert alarm_sentence(looked(FIRE, SMOKE), ENGLISH) == "Fire and smoke"
    assert alarm_sentence(looked(BARE), ENGLISH) == "One person without a hard hat"


@pytest.mark.parametrize("form", [CHINESE, ENGLISH])
def test_nothing_found_is_nothing_said(form: AlarmForm) -> None:
    assert alarm_sentence(looked(), form, "gate") is None
    assert alarm_sentence(looked(HAT, HAT), form, "gate") is None
    assert alarm_sentence(looked(UNCLEAR), form, "gate") is None


def test_a_picture_that_could_not_be_judged_is_said_and_never_passed_over() -> None:
    """Whatever levels were asked for."""
    failed = Inspection("b.jpg", None, (), Failure("unreadable_reply", "The reply is no list."))
    severe = replace(CHINESE, levels=parse_fail_on("severe"))
    assert alarm_sentence(failed, severe, "2 号仓库") == "2 号仓库的画面未能判断，请人工查看"
    assert alarm_sentence(failed, CHINESE) == "有一张图片未能判断，请人工查看"
    said = "the picture could not be judged; please look yourself"
    assert alarm_sentence(failed, ENGLISH, "Gate") == f"Gate: {said}"
    assert alarm_sentence(failed, ENGLISH) == said.capitalize()


def test_levels_are_those_of_fail_on() -> None:
    found = looked(FIRE, BARE, UNCLEAR)

    def said(levels: str) -> str | None:
        return alarm_sentence(found, replace(CHINESE, levels=parse_fail_on(levels)), "东门")

    assert said("severe") is None
    assert said("no_helmet") == "东门有一人未戴安全帽"
    assert said("moderate") == "东门有明火，另有一人未戴安全帽"
    assert said("any") == "东门有明火，另有一人未戴安全帽，另有一人是否戴安全帽看不清，请核实"
    unsure = replace(ENGLISH, levels=parse_fail_on("any"))
    assert alarm_sentence(looked(UNCLEAR, UNCLEAR), unsure, "Gate") == (
        "Gate: two people who may have no hard hats; please check"
    )


def test_where_more_may_be_there_than_is_listed_numbers_are_the_least() -> None:
    full = replace(CHINESE, max_objects=3)
    assert alarm_sentence(looked(BARE, BARE, HAT), full, "东门") == "东门至少有两人未戴安全帽"
    assert alarm_sentence(looked(BARE, BARE), full, "东门") == "东门有两人未戴安全帽"
    english = replace(ENGLISH, max_objects=2)
    assert alarm_sentence(looked(FIRE, FIRE), english, "Gate") == "Gate: at least two fires"


def test_numbers_are_words_that_can_be_read_aloud() -> None:
    numbers = [1, 2, 3, 9, 10, 11, 12, 20, 22, 99, 100]
    assert [chinese_number(one) for one in numbers] == (
        ["一", "两", "三", "九", "十", "十一", "十二", "二十", "二十二", "九十九", "100"]
    )
    assert [english_number(one) for one in (1, 2, 10, 11)] == ["one", "two", "ten", "11"]
