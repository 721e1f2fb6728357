"""What models are asked: every word allowed is named, and the schema says the same."""

import json
from collections.abc import Mapping

import pytest
from llguidance import LLMatcher, LLTokenizer

from qianyan.inputs.grounding import Notation
from qianyan.inspection.prompts import (
    ClosedQuestion,
    ListingForm,
    listing_parts,
    listing_prompt,
    listing_schema,
    load_questions,
)
from qianyan.inspection.records import SUB_LABELS, Hazard
from qianyan.inspection.words import Lang, label_word, sub_label_word

LANGS: tuple[Lang, ...] = ("zh", "en")


@pytest.mark.parametrize("lang", LANGS)
def test_the_prompt_names_every_label_and_sub_label_the_size_and_the_limit(lang: Lang) -> None:
    prompt = listing_prompt(
        lang=lang, notation=Notation.RESIZED_PIXELS, seen_wh=(1316, 728), max_objects=7
    )
    for hazard, sub_labels in SUB_LABELS.items():
        assert label_word(hazard, lang) in prompt
        assert all(sub_label_word(one, lang) in prompt for one in sub_labels)
    assert "1316" in prompt
    assert "728" in prompt
    assert "7" in prompt
    assert "[]" in prompt
    assert '[{"bbox_2d":[x1,y1,x2,y2],"label":"…","sub_label":"…"}]' in prompt
    assert ("所有" if lang == "zh" else "all ") in prompt
    assert "{" not in prompt.replace('[{"bbox', "").replace('…"}]', "")


@pytest.mark.parametrize("lang", LANGS)
def test_the_prompt_follows_the_notation(lang: Lang) -> None:
    thousandths = listing_prompt(
        lang=lang, notation=Notation.RELATIVE_1000, seen_wh=(1316, 728), max_objects=10
    )
    assert "1316" not in thousandths
    assert "1000" in thousandths
    other_order = listing_prompt(
        lang=lang, notation=Notation.RELATIVE_1000_YX, seen_wh=(1316, 728), max_objects=10
    )
    assert "[y1,x1,y2,x2]" in other_order


@pytest.mark.parametrize("lang", LANGS)
@pytest.mark.parametrize("notation", [Notation.RESIZED_PIXELS, Notation.RELATIVE_1000])
def test_what_comes_before_the_picture_is_the_same_for_every_picture(
    lang: Lang, notation: Notation
) -> None:
    form = ListingForm(order="rules-first")
    first, second = (
        listing_parts(lang=lang, notation=notation, seen_wh=seen_wh, form=form)
        for seen_wh in ((1316, 728), (644, 476))
    )
    whole = listing_prompt(lang=lang, notation=notation, seen_wh=(1316, 728))
    assert first.before == second.before
    assert set(whole.splitlines()) <= set(f"{first.before}\n{first.after}".splitlines())
    assert len(first.before) > 4 * len(first.after)
    assert (first.after == second.after) is (notation is Notation.RELATIVE_1000)
    usual = listing_parts(lang=lang, notation=notation, seen_wh=(1316, 728))
    assert (usual.before, usual.after) == ("", whole)


@pytest.mark.parametrize("lang", LANGS)
def test_rows_are_shown_and_bounded_in_the_notations_order(lang: Lang) -> None:
    rows = ListingForm(answer="rows")
    for notation, shape in (
        (Notation.RESIZED_PIXELS, '[[x1,y1,x2,y2,"label","sub_label"]]'),
        (Notation.RELATIVE_1000_YX, '[[y1,x1,y2,x2,"label","sub_label"]]'),
    ):
        prompt = listing_parts(lang=lang, notation=notation, seen_wh=(644, 476), form=rows)
        assert shape in prompt.after
        assert "bbox_2d" not in prompt.after
    schema = listing_schema(
        lang=lang, notation=Notation.RESIZED_PIXELS, max_objects=2, answer="rows"
    )
    fire, person = label_word(Hazard.FIRE, lang), label_word(Hazard.PERSON, lang)
    severe = sub_label_word(SUB_LABELS[Hazard.FIRE][2], lang)
    assert is_allowed(schema, [])
    assert is_allowed(schema, [[1, 2, 3, 4, fire, severe]] * 2)
    for bad in (
        [[1, 2, 3, 4, fire, severe]] * 3,
        [[1, 2, 3, 4, person, severe]],
        [[1, 2, 3, fire, severe]],
        [[1, 2, 3, 4, fire]],
        [[1, 2, 3, 4, fire, severe, severe]],
    ):
        assert not is_allowed(schema, bad)


def item(label: str, sub_label: str, box: object = (1, 2, 3, 4)) -> dict[str, object]:
    return {"bbox_2d": box, "label": label, "sub_label": sub_label}


def is_allowed(schema: Mapping[str, object], value: object) -> bool:
    """Ask the grammar engine, byte by byte, whether a value fits the schema."""
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    for token in tokenizer.tokenize_str(json.dumps(value, ensure_ascii=False)):
        if not matcher.consume_token(token):
            return False
    return bool(matcher.is_accepting())


@pytest.mark.parametrize("lang", LANGS)
def test_the_schema_admits_exactly_the_words_of_the_language(lang: Lang) -> None:
    schema = listing_schema(lang=lang, notation=Notation.RESIZED_PIXELS, max_objects=3)
    good = [
        item(label_word(hazard, lang), sub_label_word(one, lang))
        for hazard, sub_labels in SUB_LABELS.items()
        for one in sub_labels
    ]
    assert len(good) == 11
    assert is_allowed(schema, [])
    assert all(is_allowed(schema, [one]) for one in good)
    assert is_allowed(schema, good[:3])
    assert not is_allowed(schema, good[:4])
    fire, person = label_word(Hazard.FIRE, lang), label_word(Hazard.PERSON, lang)
    severe, helmet = good[2]["sub_label"], good[8]["sub_label"]
    for bad in (
        [item(fire, str(helmet))],
        [item(person, str(severe))],
        [item("car", str(severe))],
        [item(fire, str(severe), [1, 2, 3])],
        [item(fire, str(severe), [1, 2, 3, 4, 5])],
        [item(fire, str(severe), [0.5, 2, 3, 4])],
        [item(fire, str(severe), [-1, 2, 3, 4])],
        [{"bbox_2d": [1, 2, 3, 4], "label": fire}],
        {},
        None,
    ):
        assert not is_allowed(schema, bad)


def test_fractions_are_admitted_where_the_notation_writes_them() -> None:
    schema = listing_schema(lang="en", notation=Notation.RELATIVE_1, max_objects=3)
    assert is_allowed(schema, [item("fire", "severe", [0.25, 0.5, 0.75, 1])])


def test_the_closed_questions_name_their_options_in_both_languages() -> None:
    questions = load_questions()
    assert set(questions) >= {"hazard", "head", "severity"}
    for question in questions.values():
        assert isinstance(question, ClosedQuestion)
        for lang in LANGS:
            text = question.text(lang)
            assert text
            assert all(f"{letter} " in text for letter in question.options)
    assert load_questions() is questions
    with pytest.raises(TypeError):
        questions["head"].options["A"] = "no_helmet"  # type: ignore[index]
