import pytest

from qianyan.inspection.records import (
    Box,
    Detection,
    Failure,
    Hazard,
    Inspection,
    SubLabel,
    Veto,
)
from qianyan.inspection.reporting.report_words import (
    CHECK_WORDS,
    PLACE_WORDS,
    REPORT_WORDS,
    SCORE_WORDS,
    SENTENCES,
)
from qianyan.inspection.verdict import (
    describe,
    give_verdict,
    is_hazard,
    is_review,
    place_word,
    score_text,
)
from qianyan.inspection.words import Lang

BOX = Box(10, 10, 60, 60)
FIRE = Detection(Hazard.FIRE, SubLabel.SEVERE, BOX, 0.91, "logprob")
SMALL_FIRE = Detection(Hazard.FIRE, SubLabel.MINOR, BOX)
HAZE = Detection(Hazard.SMOKE, SubLabel.UNCERTAIN, BOX)
BARE = Detection(Hazard.PERSON, SubLabel.NO_HELMET, BOX)
HAT = Detection(Hazard.PERSON, SubLabel.HELMET, BOX)


def looked(*found: Detection, vetoed: tuple[Veto, ...] = ()) -> Inspection:
    return Inspection("a.jpg", found, tuple(Hazard), vetoed=vetoed)


FAILED = Inspection("b.jpg", None, (), Failure("truncated", "It is cut short."))


def test_the_verdict_counts_hazards_by_kind_and_severity_worst_first() -> None:
    verdict = give_verdict([looked(SMALL_FIRE, FIRE, BARE), looked(BARE, HAT)], "zh")
    assert verdict.tone == "alarm"
    assert verdict.headline == "发现 4 处隐患：火灾 2 处（严重 1、轻微 1）、未佩戴安全帽 2 人。"
    assert "另有 1 人佩戴安全帽。" in verdict.details
    english = give_verdict([looked(FIRE)], "en")
    assert english.headline == "1 hazard found: fire 1 (severe)."


def test_nothing_found_says_what_was_looked_for_and_never_that_it_is_safe() -> None:
    verdict = give_verdict([looked(), looked()], "zh")
    assert verdict.tone == "none"
    assert str(verdict) == "本次未发现隐患（检查了：火灾、烟雾、人员安全帽；共 2 张图片）。"
    english = str(give_verdict([looked()], "en"))
    assert english == "No hazard was found (looked for: fire, smoke, hard hats; 1 picture)."


def test_what_was_not_looked_for_everywhere_is_counted() -> None:
    fire_only = Inspection("c.jpg", (), (Hazard.FIRE,))
    headline = give_verdict([looked(), fire_only], "zh").headline
    assert "火灾、烟雾（1 张）、人员安全帽（1 张）；共 2 张图片" in headline


def test_the_uncertain_is_neither_a_hazard_nor_hidden() -> None:
    alone = give_verdict([looked(HAZE)], "zh")
    assert alone.tone == "review"
    assert alone.headline == "发现 1 处疑似隐患，待人工复核：烟雾 1 处（不确定）。"
    beside = give_verdict([looked(FIRE, HAZE)], "zh")
    assert beside.headline == "发现 1 处隐患：火灾 1 处（严重）。"
    assert beside.details[0] == "另有 1 处不确定，待人工复核：烟雾 1 处（不确定）。"


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_pictures_that_failed_are_part_of_the_verdict(lang: Lang) -> None:
    nothing = give_verdict([looked(), FAILED], lang)
    assert nothing.tone == "review"
    assert nothing.headline.endswith(
        "1 张未能检查。" if lang == "zh" else "1 could not be inspected."
    )
    hazard = give_verdict([looked(FIRE), FAILED], lang)
    assert any("2 张图片中有 1 张" in one or "1 of 2 pictures" in one for one in hazard.details)
    assert give_verdict([FAILED, FAILED], lang).tone == "failed"
    assert give_verdict([], lang).tone == "failed"


def test_vetoes_are_mentioned_and_not_counted() -> None:
    verdict = give_verdict([looked(vetoed=(Veto(FIRE, "a lamp"),))], "zh")
    assert verdict.tone == "none"
    assert verdict.details == ("复核时否决了 1 处（见各图片，未计入结论）。",)


def test_every_detection_is_a_hazard_to_be_reviewed_or_a_worn_helmet() -> None:
    kinds = [(is_hazard(one), is_review(one)) for one in (FIRE, SMALL_FIRE, HAZE, BARE, HAT)]
    assert kinds == [(True, False), (True, False), (False, True), (True, False), (False, False)]


def test_a_finding_is_one_sentence_of_what_where_how_large_and_how_sure() -> None:
    assert describe(FIRE, (100, 100), "zh") == (
        "火灾（严重），位于中央，约占画面 25%；评分 91%（对数概率）。"
    )
    assert describe(SMALL_FIRE, (4000, 3000), "en") == (
        "Fire (minor), in the upper left, less than 1% of the picture; the model gave no score."
    )


@pytest.mark.parametrize(
    ("box", "word"),
    [
        (Box(0, 0, 10, 10), "左上方"),
        (Box(45, 45, 55, 55), "中央"),
        (Box(90, 90, 100, 100), "右下方"),
        (Box(90, 45, 100, 55), "右侧"),
        (Box(45, 0, 55, 10), "上方"),
        (Box(0, 0, 100, 90), "大部分画面"),
    ],
)
def test_the_place_is_the_ninth_with_the_centre(box: Box, word: str) -> None:
    assert place_word(Detection(Hazard.FIRE, SubLabel.MINOR, box), (100, 100), "zh") == word


def test_a_missing_score_is_said_not_invented() -> None:
    assert score_text(SMALL_FIRE, "zh") == "无"
    assert score_text(FIRE, "en") == "91% log-probability"


def test_both_languages_have_the_same_words() -> None:
    for table in (REPORT_WORDS, SENTENCES, CHECK_WORDS, SCORE_WORDS):
        assert set(table["zh"]) == set(table["en"])
    assert len(PLACE_WORDS["zh"]) == len(PLACE_WORDS["en"]) == 10


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_no_word_of_a_report_claims_safety(lang: Lang) -> None:
    words = " ".join([*REPORT_WORDS[lang].values(), *SENTENCES[lang].values()])
    assert " safe " not in words.lower()
    assert "符合安全" not in words
    assert "没有隐患" not in words
