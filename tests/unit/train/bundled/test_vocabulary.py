"""The judge's vocabulary is small, complete and the same every time."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from qianyan.train.bundled.sentences import (
    DECLINED,
    LANGUAGES,
    Contents,
    corpus,
    describe,
    load_questions,
    other_question,
)
from qianyan.train.bundled.vocabulary import (
    SPECIAL_TOKENS,
    VOCABULARY_SIZE,
    train_vocabulary,
    write_vocabulary,
)

TOKENIZER = train_vocabulary(corpus())


def contents(**known: bool | int | None) -> Contents:
    return Contents(**{"fire": None, "smoke": None, "helmets": None, "bare_heads": None, **known})  # type: ignore[arg-type]


def test_ids_are_contiguous_and_special_tokens_come_last() -> None:
    vocabulary = TOKENIZER.get_vocab()
    assert sorted(vocabulary.values()) == list(range(VOCABULARY_SIZE))
    first = VOCABULARY_SIZE - len(SPECIAL_TOKENS)
    assert [vocabulary[token] for token in SPECIAL_TOKENS] == list(range(first, VOCABULARY_SIZE))


def test_training_twice_gives_the_same_vocabulary() -> None:
    assert train_vocabulary(corpus()).to_str() == TOKENIZER.to_str()


@given(st.text())
def test_any_text_comes_back_after_normalisation(text: str) -> None:
    """Bytes carry what the merges do not know; only NFC normalisation may change a text."""
    normal = unicodedata.normalize("NFC", text)
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == normal


@pytest.mark.parametrize("text", ["安全帽😀", "été\r\n\tok", "龘𠮷", "<|im_en", " two  blanks "])
def test_text_outside_the_training_corpus_encodes(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", ["hazard", "head", "severity", "describe"])
def test_a_question_is_a_few_dozen_tokens(name: str, language: str) -> None:
    words = load_questions()[name].words(language)  # type: ignore[arg-type]
    assert len(TOKENIZER.encode(words).ids) <= 64


def test_every_letter_is_one_token() -> None:
    for question in load_questions().values():
        for letter in question.options:
            assert len(TOKENIZER.encode(letter).ids) == 1


def test_special_tokens_in_a_prompt_are_single_ids() -> None:
    ids = TOKENIZER.encode("<|im_start|>user\n<|image_pad|><|image_pad|><|im_end|>").ids
    assert ids.count(TOKENIZER.token_to_id("<|image_pad|>")) == 2
    assert ids[0] == TOKENIZER.token_to_id("<|im_start|>")
    assert ids[-1] == TOKENIZER.token_to_id("<|im_end|>")


def test_the_written_files_read_back(tmp_path: Path) -> None:
    write_vocabulary(TOKENIZER, tmp_path)
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.to_str() == TOKENIZER.to_str()
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8").startswith("{%-")


@pytest.mark.parametrize(
    ("known", "zh", "en"),
    [
        (
            {"fire": True, "smoke": True},
            "图中有明火和烟雾。",
            "The picture shows an open flame and smoke.",
        ),
        (
            {"fire": True, "smoke": False, "helmets": 2, "bare_heads": 1},
            "图中有明火、戴安全帽的人员和未戴安全帽的人员。",
            "The picture shows an open flame, people with hard hats"
            " and a person without a hard hat.",
        ),
        (
            {"fire": False, "smoke": False, "helmets": 0, "bare_heads": 0},
            "图中未发现明火、烟雾或人员。",
            "No flame, smoke or person was found in this picture.",
        ),
        ({"fire": False}, "图中未发现明火。", "No flame was found in this picture."),
    ],
)
def test_a_description_says_what_was_found(
    known: dict[str, bool | int | None], zh: str, en: str
) -> None:
    assert describe(contents(**known), "zh") == zh
    assert describe(contents(**known), "en") == en


def test_other_questions_are_varied_and_never_the_closed_ones() -> None:
    rng = np.random.default_rng(3)
    made = {other_question(rng, language) for language in LANGUAGES for _ in range(200)}
    closed = {question.words(each) for question in load_questions().values() for each in LANGUAGES}
    assert len(made) > 150
    assert not made & closed
    assert set(DECLINED) == set(LANGUAGES)
