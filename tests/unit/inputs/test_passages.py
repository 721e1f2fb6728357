"""Cutting, ranking and choosing passages, on Chinese and English texts."""

import itertools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qianyan.inputs.passages import (
    GAP_MARK,
    OVERLAP_CHARS,
    PASSAGE_CHARS,
    choose_passages,
    cut,
    rank,
    strip_places,
    to_terms,
)

# How long a draw takes says nothing where others use the machine too.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
RULES = "\n\n".join(
    [
        "# 安全手册",
        "## 第一部分 消防",
        "灭火器每月检查一次。" + "发现压力不足时立即更换。" * 3,
        "## 第二部分 高处作业",
        "作业高度超过两米必须系安全带。" + "脚手架由专人验收。" * 3,
        "# Site manual",
        "## Cranes",
        "A crane is inspected every morning. " * 5,
        "## Night shifts",
        "Lamps stand every ten metres. " * 5,
    ]
)


def read(text: str) -> list[str]:
    return [text[one.start : one.end] for one in cut(text)]


def test_headings_begin_passages_and_stand_above_them() -> None:
    passages = cut(RULES)
    firsts = [RULES[one.start : one.end].partition("\n")[0] for one in passages]
    assert firsts[1] == "## 第一部分 消防"
    assert passages[1].headings == ("# 安全手册",)
    assert passages[4].headings == ("# Site manual",)


def test_page_marks_and_chinese_chapters_are_headings() -> None:
    text = "[a.pdf, page 1 of 2]\n第一章 总则\n第一条 目的。\n[a.pdf, page 2 of 2]\n第二条 范围。\n"
    passages = cut(text)
    assert passages[-1].headings[0] == "[a.pdf, page 2 of 2]"
    assert "第一章 总则" in passages[-1].headings
    assert strip_places("[a.pdf, page 1 of 2]\nx").strip() == "x"


def test_long_sections_are_cut_at_sentences_and_overlap() -> None:
    sentence = "第{}句说的是另一件与安全有关的事情。"
    text = "# 长\n" + "".join(sentence.format(number) for number in range(200))
    passages = cut(text)
    assert len(passages) > 3
    for before, after in itertools.pairwise(passages):
        assert text[before.start : before.end].endswith("。")
        assert 0 < before.end - after.start <= OVERLAP_CHARS
        assert after.headings == ("# 长",)


@UNHURRIED
@given(st.text(alphabet="ab 。.!\n#第一章[],", max_size=3000), st.integers(0, 3))
def test_passages_cover_all_text_within_their_size(text: str, copies: int) -> None:
    text = text + "x" * 1000 * copies
    passages = cut(text)
    covered = [False] * len(text)
    for one in passages:
        assert 0 < one.end - one.start <= PASSAGE_CHARS
        covered[one.start : one.end] = [True] * (one.end - one.start)
    left = "".join(char for char, is_covered in zip(text, covered, strict=True) if not is_covered)
    assert not left.strip()
    assert [one.start for one in passages] == sorted(one.start for one in passages)


@UNHURRIED
@given(st.text(max_size=2000), st.text(max_size=50), st.integers(0, 500))
def test_what_is_chosen_fits_and_all_of_it_comes_back_where_there_is_room(
    text: str, question: str, max_tokens: int
) -> None:
    chosen = choose_passages([text], question, max_tokens=max_tokens, count=len)
    assert len(chosen.texts[0]) <= max_tokens
    whole = choose_passages([text], question, max_tokens=100_000, count=len)
    assert whole.num_read == whole.num_all
    assert "".join(whole.texts[0].split()) == "".join(text.split())


def test_terms_are_words_and_pairs_of_chinese_characters() -> None:
    assert to_terms("PPE 安全帽 No.5 火") == ["ppe", "no", "5", "安全", "全帽", "火"]


def test_the_passage_that_answers_comes_first_in_both_languages() -> None:
    texts = read(RULES)
    for question, expected in (
        ("灭火器多久检查一次？", "灭火器每月"),
        ("多高要系安全带", "系安全带"),
        ("When is a crane inspected?", "crane is inspected"),
        ("how far apart are lamps", "Lamps stand"),
    ):
        scores = rank(texts, question)
        assert expected in texts[scores.index(max(scores))], question


def test_best_passages_come_in_document_order_under_their_headings() -> None:
    question = "安全带和 lamps"
    chosen = choose_passages([RULES], question, max_tokens=480, count=len)
    (text,) = chosen.texts
    assert chosen.is_matched
    assert chosen.num_read[0] < chosen.num_all[0]
    assert text.index("系安全带") < text.index("Lamps stand")
    assert text.index("# 安全手册") < text.index("## 第二部分")
    assert GAP_MARK in text
    assert "crane is" not in text


def test_a_question_without_a_shared_word_is_answered_from_all_over() -> None:
    text = "\n\n".join(f"# 标题{number}\n内容" + "字" * 90 for number in range(30))
    chosen = choose_passages([text], "summarise", max_tokens=1200, count=len)
    assert not chosen.is_matched
    assert "标题0\n" in chosen.texts[0]
    assert "标题29\n" in chosen.texts[0]
    assert 5 < chosen.num_read[0] < 30


def test_passages_of_several_documents_compete() -> None:
    texts = ["苹果是水果。" * 20, "起重机每天早上检查。" * 20]
    chosen = choose_passages(texts, "起重机何时检查", max_tokens=260, count=len)
    assert chosen.texts[0] == ""
    assert "起重机" in chosen.texts[1]
    assert chosen.num_read == (0, 1)


def test_nothing_to_read_is_nothing_chosen() -> None:
    chosen = choose_passages([""], "x", max_tokens=10, count=len)
    assert chosen.texts == ("",)
