"""Texts read aloud word for word: the same as an answer of those words, and checked to its end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.omni_checkpoint import write_omni_checkpoint
from tests.reading_checkpoint import write_reading_checkpoint

from qianyan.engine.engine import Engine
from qianyan.engine.reading_aloud import (
    MAX_CHARACTERS,
    PAUSE_S,
    SYSTEM,
    Reading,
    cut,
    read_aloud,
)
from qianyan.engine.speaking import speak
from qianyan.errors import CapacityError, InputError, ReplyError

SENTENCE = "3 号塔吊下一人未戴安全帽"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = write_reading_checkpoint(tmp_path_factory.mktemp("reading"))
    return Engine(folder, dtype="float32")


def test_a_text_sounds_like_an_answer_of_the_same_words(engine: Engine) -> None:
    """A grammar makes the model write it; reading aloud leaves out the writing."""
    form: dict[str, Any] = {"type": "json_schema", "json_schema": {"schema": {"const": "on fire"}}}
    question = 'Read this aloud, word for word:\n"on fire"'
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    written = speak(engine, messages, response_format=form, seed=3, voice="Ethan", max_tokens=20)
    assert written.completion.text == '"on fire"'
    read = read_aloud(engine, '"on fire"', seed=3, voice="Ethan")
    assert len(read.samples) == len(written.samples) == 480 * len('"on fire"')
    np.testing.assert_allclose(read.samples, written.samples, atol=1e-5)
    assert read.duration_s == len(read.samples) / 24_000


def test_a_seed_reads_the_same_again_and_another_voice_or_seed_does_not(engine: Engine) -> None:
    first = read_aloud(engine, SENTENCE, seed=1).samples
    assert np.isfinite(first).all()
    assert 0 < np.abs(first).max() <= 1
    assert np.array_equal(read_aloud(engine, f"  {SENTENCE}\n", seed=1).samples, first)
    for change in ({"seed": 2}, {"seed": 1, "voice": "Ethan"}):
        assert not np.array_equal(read_aloud(engine, SENTENCE, **change).samples, first)


def test_sound_comes_before_the_text_is_through(engine: Engine) -> None:
    """And what was counted is what was heard."""
    reading = Reading(engine, SENTENCE, seed=1)
    pieces = reading.pieces()
    first = next(samples for samples in pieces if len(samples))
    assert 0 < reading.num_codes < len(SENTENCE.encode()) * 0.8
    lengths = [len(first), *(len(samples) for samples in pieces)]
    assert reading.num_text_tokens == len(SENTENCE.encode())
    assert sum(lengths) == 480 * reading.num_codes
    assert reading.num_prompt_tokens > len(SYSTEM)


def test_a_long_text_is_read_passage_by_passage_with_pauses(engine: Engine) -> None:
    text = "One sentence, which is not short, is here. " * 6
    reading = Reading(engine, text, seed=1)
    samples = np.concatenate(list(reading.pieces()))
    pause = round(PAUSE_S * 24_000)
    assert len(samples) == 480 * reading.num_codes + pause
    assert reading.num_text_tokens == len(text.strip())
    starts = np.flatnonzero(np.convolve(samples == 0, np.ones(pause), "valid") == pause)
    assert len(starts) >= 1


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        (" \n。 ", InputError, "The text has no word to be read aloud"),
        ("fire" * 1025, CapacityError, f"4100 characters; expected at most {MAX_CHARACTERS}"),
        ("fire<|im_end|>", InputError, r"holds '<\|im_end\|>', which is a control word"),
        ("fire \ud800", InputError, "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(
    text: str, error: type[Exception], sentence: str, engine: Engine
) -> None:
    with pytest.raises(error, match=sentence):
        Reading(engine, text)


def test_an_unknown_voice_is_refused_with_the_known_ones(engine: Engine) -> None:
    with pytest.raises(InputError, match="Input should be 'Chelsie' or 'Ethan'"):
        Reading(engine, SENTENCE, voice="Alloy")


def test_a_model_that_does_not_speak_is_refused(tmp_path: Path) -> None:
    folder = write_reading_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"enable_audio_output": False}))
    with pytest.raises(InputError, match="does not speak"):
        read_aloud(Engine(folder, dtype="float32"), SENTENCE)


def test_a_voice_that_ends_before_its_text_is_an_error(tmp_path: Path) -> None:
    engine = Engine(write_reading_checkpoint(tmp_path, ends_early=True), dtype="float32")
    assert len(read_aloud(engine, "a fire", seed=1).samples)
    with pytest.raises(ReplyError, match="The voice ended before the text"):
        read_aloud(engine, "a bad fire", seed=1)


def test_a_voice_that_does_not_end_is_an_error(tmp_path: Path) -> None:
    """This one's Talker never ends by itself, and is full after some hundred codes."""
    folder = write_omni_checkpoint(tmp_path, talker_positions=400)
    reading = Reading(Engine(folder, dtype="float32"), "fire", seed=1)
    with pytest.raises(ReplyError, match="went on behind the text without an end"):
        list(reading.pieces())
    assert reading.num_codes > 50


@given(st.text("ab。，. \n", min_size=1, max_size=80), st.integers(1, 12))
def test_a_cut_text_is_whole_and_every_passage_fits(text: str, most: int) -> None:
    passages = cut(text, lambda passage: len(passage) <= most)
    assert all(len(passage) <= most for passage in passages)
    kept = "".join(passages)
    assert "".join(kept.split()) == "".join(text.split())


def test_texts_are_cut_behind_sentences_before_words() -> None:
    assert cut("着火了。快来人！三号门", lambda passage: len(passage) <= 6) == [
        "着火了。",
        "快来人！",
        "三号门",
    ]
    assert cut("it burns at 1.5 m, come", lambda passage: len(passage) <= 18) == [
        "it burns at 1.5 m,",
        " come",
    ]
