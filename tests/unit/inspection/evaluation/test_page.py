"""What is written: words and numbers once, on the terminal and as a page that loads nothing."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape
from PIL import Image

from qianyan.inspection.evaluation.calibration import reliability
from qianyan.inspection.evaluation.charts import Bar, bar_chart, reliability_chart
from qianyan.inspection.evaluation.comparison import Earlier, compare
from qianyan.inspection.evaluation.content import Section
from qianyan.inspection.evaluation.figures import score
from qianyan.inspection.evaluation.page import render_page
from qianyan.inspection.evaluation.pairing import Paired
from qianyan.inspection.evaluation.record import Evaluation, table_lines
from qianyan.inspection.evaluation.words import MEASURES, WORDS
from qianyan.inspection.evaluation.worst import (
    LABEL_YELLOW,
    WorstCase,
    contact_sheet,
    draw_against,
    draw_worst,
    faults,
    rank_worst,
)
from qianyan.inspection.records import SubLabel
from qianyan.inspection.results import RunFacts
from qianyan.inspection.words import Lang
from qianyan.labels.photos import LabelledPhoto

from .examples import ALL, BARE, FLAME, HELMET, failed, fire, looked, person, photo

FACTS = RunFacts(id="1", started_at="a", finished_at="b", model="<b>model", lang="zh", version="0")


@pytest.fixture
def evaluation() -> Evaluation:
    pairs = (
        (photo(FLAME, HELMET, BARE), looked(fire(0), person(0, SubLabel.HELMET))),
        (photo(name="<i>.jpg"), looked(fire(0))),
        (photo(FLAME, name="c.jpg"), failed("unreadable_reply")),
    )
    scored = score(pairs)
    return Evaluation(
        facts=FACTS,
        labels="labels.json",
        paired=Paired(pairs, ("d.jpg",), ("e.jpg",)),
        scored=scored,
        comparison=compare(scored.outcomes, Earlier("b.json", "other", scored.outcomes)),
    )


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in {"meta", "img", "line", "rect"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_the_page_is_whole_and_loads_and_runs_nothing(evaluation: Evaluation, lang: Lang) -> None:
    worst = [WorstCase("<i>.jpg", ("a", "b"), Image.new("RGB", (40, 30)))]
    page = render_page(evaluation, worst, lang)
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert {"svg", "table", "img"} <= tags.seen
    assert not {"script", "link", "iframe", "b><model"} & tags.seen
    assert not re.search(r"(src|href)=\"(?!data:image/jpeg;base64,)|url\(|@import", page)
    assert "&lt;b&gt;model" in page
    assert "&lt;i&gt;.jpg" in page
    assert WORDS[lang]["worst"] in page
    assert "unreadable_reply" in page


def test_the_terminal_says_what_the_page_says(evaluation: Evaluation) -> None:
    text = "\n".join(evaluation.lines("en"))
    page = render_page(evaluation, [], "en")
    assert "not inspected unreadable_reply 1 · answer unreadable 33.3% 1/3" in text
    for cell in ("100.0% 1/1 (20.7–100.0)", "0.667", "the same", "1 labelled pictures are not"):
        assert cell in text
        assert cell in page


def test_columns_are_lined_up_although_chinese_is_wide() -> None:
    section = Section("x", "", ("类别", "a"), (("fire", "10"), ("未戴安全帽", "2")))
    assert list(table_lines(section)) == [
        "  类别         a",
        "  fire        10",
        "  未戴安全帽   2",
    ]


def test_both_languages_have_the_same_words_and_gaps() -> None:
    gap = re.compile(r"\{\w+\}")
    assert set(WORDS["zh"]) == set(WORDS["en"])
    assert set(MEASURES["zh"]) == set(MEASURES["en"])
    for name, text in WORDS["zh"].items():
        assert sorted(gap.findall(text)) == sorted(gap.findall(WORDS["en"][name])), name


def test_the_worst_pictures_come_first_and_right_ones_not_at_all() -> None:
    outcomes = score(
        [
            (photo(FLAME), looked(fire(0))),
            (photo(FLAME), looked(fire(0), fire(200))),
            (photo(), looked(fire(0))),
            (photo(FLAME), looked()),
            (photo(FLAME), failed("x")),
        ]
    ).outcomes
    assert rank_worst(outcomes) == [3, 2, 1]
    assert rank_worst(outcomes, most=1) == [3]
    assert faults(outcomes[3], "en") == ("fire missed", "fire: 1 not found")
    assert faults(outcomes[2], "zh") == ("误报火灾", "火灾多 1 框")


def test_a_label_is_drawn_yellow(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (400, 400), "white").save(path)
    there = LabelledPhoto(path, 400, 400, ALL, (FLAME,))
    drawn = draw_against(there, looked(), lang="en")
    assert drawn.size == (300, 300)
    colours = {colour for _, colour in drawn.getcolors(10**6) or ()}
    assert any(max(abs(a - b) for a, b in zip(colour, LABEL_YELLOW, strict=True)) < 60
               for colour in colours)  # fmt: skip


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_a_worst_picture_that_cannot_be_read_is_named_without_an_image(
    evaluation: Evaluation, lang: Lang, tmp_path: Path
) -> None:
    Image.new("RGB", (400, 400), "white").save(tmp_path / "there.png")
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    pairs = [
        (LabelledPhoto(tmp_path / name, 400, 400, ALL, (FLAME,)), looked())
        for name in ("gone.png", "there.png", "damaged.png")
    ]
    cases = list(draw_worst(pairs, score(pairs).outcomes, lang))
    assert [(case.file, case.image is None) for case in cases] == [
        ("gone.png", True), ("there.png", False), ("damaged.png", True)
    ]  # fmt: skip
    told = replace(evaluation, not_drawn=("gone.png", "damaged.png"))
    note = WORDS[lang]["not_drawn"].format(n=2, names="'gone.png', 'damaged.png'")
    assert note in told.note_lines(lang)
    assert told.as_record()["not_drawn"] == ["gone.png", "damaged.png"]
    page = render_page(told, cases, lang)
    assert page.count(WORDS[lang]["no_image"]) == page.count("<em>") == 2
    assert page.count("<img") == 1
    assert escape(note) in page
    drawn, blank = contact_sheet(cases[1:2], lang), contact_sheet(cases[:1], lang)
    assert drawn.size == blank.size
    assert drawn.tobytes() != blank.tobytes()


@pytest.mark.parametrize(("number", "size"), [(0, (432, 404)), (1, (432, 404)), (4, (1264, 792))])
def test_the_contact_sheet_has_room_for_every_case(number: int, size: tuple[int, int]) -> None:
    case = WorstCase("很长" * 60 + ".jpg", ("fault",) * 40, Image.new("RGB", (400, 300)))
    assert contact_sheet([case] * number, "zh").size == size


def test_a_bar_reaches_as_far_as_its_figure() -> None:
    chart = bar_chart([Bar("a & b", 0.5, "50%", (0.25, 0.75)), Bar("c", 1.0, "1", None)], "t")
    half, whole = (float(one) for one in re.findall(r'width="([\d.]+)" rx', chart))
    assert half * 2 == pytest.approx(whole)
    assert "a &amp; b" in chart
    assert chart.count('class="whisker"') == 1


def test_a_reliable_score_lies_on_the_diagonal() -> None:
    chart = reliability_chart(reliability([(0.5, True), (0.5, False)]), "t", ("x", "y"))
    ((x, y),) = re.findall(r'class="dot" cx="([\d.]+)" cy="([\d.]+)"', chart)
    ideal = re.search(r'class="ideal" x1="(\d+)" y1="(\d+)" x2="(\d+)" y2="(\d+)"', chart)
    assert ideal is not None
    x1, y1, x2, y2 = map(float, ideal.groups())
    assert (float(x), float(y)) == ((x1 + x2) / 2, (y1 + y2) / 2)
