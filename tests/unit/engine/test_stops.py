"""Answers that end at token ids: before the text that they spell, or at a control token."""

from typing import Any

import pytest

from qianyan.engine.engine import Engine
from qianyan.errors import InputError

ASK = [{"role": "user", "content": "hello"}]
HOW: dict[str, Any] = {"max_tokens": 40, "temperature": 0}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("bundled", dtype="float32")


@pytest.fixture(scope="module")
def whole(engine: Engine) -> Any:
    done = engine.chat(ASK, **HOW)
    assert len(set(done.token_ids[:6])) > 3, "something to stop at"
    return done


def before(engine: Engine, whole: Any, ids: list[int]) -> str:
    """Give what the whole answer says before the first place where these tokens' text stands."""
    text: str = whole.text
    return text[: text.index(engine.processor.tokenizer.decode(ids))]


def test_any_of_several_ids_ends_an_answer(engine: Engine, whole: Any) -> None:
    one = whole.token_ids[4]
    done = engine.chat(ASK, stop=[one], **HOW)
    assert done.text == before(engine, whole, [one])
    assert done.finish_reason == "stop"
    unused = next(
        i for i in range(300, 600) if engine.processor.tokenizer.token_bytes(i) == b" the"
    )
    assert engine.chat(ASK, stop=[unused, one], **HOW).text == done.text


def test_lists_of_ids_end_an_answer_as_a_whole(engine: Engine, whole: Any) -> None:
    pair = whole.token_ids[3:5]
    done = engine.chat(ASK, stop=[pair], **HOW)
    assert done.text == before(engine, whole, pair)
    other = [whole.token_ids[4], whole.token_ids[3]]
    if engine.processor.tokenizer.decode(other) not in whole.text:
        assert engine.chat(ASK, stop=[other], **HOW).text == whole.text


def test_a_control_token_ends_an_answer_by_itself(engine: Engine) -> None:
    tokenizer = engine.processor.tokenizer
    mark = tokenizer.token_id("<|im_start|>")
    assert mark is not None
    done = engine.chat(ASK, stop=[[mark]], logit_bias={mark: 100}, **HOW)
    assert (done.token_ids, done.text, done.finish_reason) == ([mark], "", "stop")


@pytest.mark.parametrize(
    "stop", [[1, "a"], [[1], 2], [[]], [-1], [10**9], [[1.5]], [True], [[1], ["a"]], [[0]] * 17]
)
def test_what_is_no_list_of_ids_is_refused(engine: Engine, stop: Any) -> None:
    with pytest.raises(InputError, match="stop "):
        engine.chat(ASK, stop=stop, **HOW)


def test_half_a_character_is_no_word_to_stop_at(engine: Engine) -> None:
    tokenizer = engine.processor.tokenizer
    half = next(i for i in range(256) if tokenizer.token_bytes(i) == b"\xe4")
    with pytest.raises(InputError, match="no whole characters"):
        engine.chat(ASK, stop=[half], **HOW)
