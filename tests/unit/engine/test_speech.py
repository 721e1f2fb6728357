"""One answer being spoken: how it follows the text, and how it ends."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from qianyan.engine.engine import Engine
from qianyan.engine.request import Request
from qianyan.engine.speech import Speaking

BLOCK_CODES = 3  # of the small checkpoint


@pytest.fixture(scope="module")
def engine(omni_checkpoint: Path) -> Engine:
    return Engine(omni_checkpoint, dtype="float32")


def begin(engine: Engine, max_tokens: int) -> tuple[Request, Speaking]:
    """Begin to speak an answer that is written already."""
    messages = [{"role": "user", "content": "Who is there?"}]
    options: Any = {"temperature": 0, "max_tokens": max_tokens, "seed": 5}
    request, prompt = engine.prepare(messages, options)
    for _ in engine.follow(request, prompt):
        pass
    speech = engine.speech.load()
    return request, speech.begin(request, prompt, speech.find_speaker(None))


def test_the_thinker_follows_the_text_a_block_at_a_time(engine: Engine) -> None:
    """Alone goes the first token; groups end where blocks of codes do, whenever they are asked."""
    request, speaking = begin(engine, 11)
    lengths: list[int] = []

    def note(_: Any, given: tuple[Tensor, ...], made: Tensor) -> None:
        del made
        lengths.append(len(given[0]))

    told, written = [], request.output_token_ids
    hook = engine.speech.load().thinker.model.register_forward_hook(note)
    for count in (0, 1, 2, 3, 7, 8, 11):
        request.output_token_ids = written[:count]
        speaking.catch_up()
        told.append(len(speaking.codes))
    rest = list(speaking.finish())
    hook.remove()
    assert told == [0, 1, 1, 3, 6, 6, 9]
    assert lengths[1:] == [1, 2, 3, 3, 2]
    assert lengths[0] == len(request.prompt_token_ids)
    _, at_once = begin(engine, 11)
    np.testing.assert_array_equal(np.concatenate(rest), np.concatenate(list(at_once.finish())))


def test_a_speech_that_is_stopped_ends_with_the_sound_of_its_codes(engine: Engine) -> None:
    _, speaking = begin(engine, 6)
    pieces = speaking.finish()
    heard = [next(pieces) for _ in range(5)]
    speaking.stop()
    num_codes = len(speaking.codes)
    heard += pieces
    assert len(speaking.codes) == num_codes > 6
    assert len(np.concatenate(heard)) == 480 * num_codes
    assert speaking.is_cut


def test_a_speech_that_is_stopped_before_its_first_token_is_silent(engine: Engine) -> None:
    _, speaking = begin(engine, 6)
    speaking.stop()
    assert len(speaking.catch_up()) == 0
    assert [len(samples) for samples in speaking.finish()] == [0]
    assert speaking.codes == []
    assert speaking.is_cut


def test_a_speech_that_a_limit_ends_is_cut_and_one_that_ends_by_itself_is_not(
    engine: Engine,
) -> None:
    _, speaking = begin(engine, 2)
    assert not speaking.is_cut
    assert sum(len(samples) for samples in speaking.finish()) == 480 * len(speaking.codes)
    assert speaking.is_cut
    talker = engine.speech.load().talker
    kept = talker.codec_head.weight.data.clone()
    talker.codec_head.weight.data.zero_()
    talker.codec_head.weight.data[sorted(talker.config.stop_ids)] = 1
    try:
        _, ended = begin(engine, 2)
        assert sum(len(samples) for samples in ended.finish()) == 480 * len(ended.codes)
        assert not ended.is_cut
    finally:
        talker.codec_head.weight.data.copy_(kept)
