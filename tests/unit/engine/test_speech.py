"""One answer being spoken: how it follows the text, and how it ends."""

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tests.omni_checkpoint import write_omni_checkpoint
from torch import Tensor

from qianyan.engine.engine import Engine
from qianyan.engine.request import Request
from qianyan.engine.scheduler import EngineConfig
from qianyan.engine.speaking import speak
from qianyan.engine.speech import Speaking
from qianyan.errors import InputError
from qianyan.models.omni.talker import Talker
from qianyan.models.omni.token2wav import Token2Wav
from qianyan.models.registry import thinker_alone

BLOCK_CODES = 3  # of the small checkpoint


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """One that speaks less than two seconds."""
    folder = tmp_path_factory.mktemp("omni")
    return Engine(write_omni_checkpoint(folder, talker_positions=140), dtype="float32")


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
        list(speaking.catch_up())
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


def test_the_first_sound_waits_for_a_few_blocks_and_not_for_the_text(engine: Engine) -> None:
    """Also where all of a long answer is there already; the vocoder looks some codes ahead."""
    _, speaking = begin(engine, 60)
    told, heard = [], 0
    for samples in speaking.catch_up():
        told.append(len(speaking.codes))
        heard = heard or (len(samples) > 0 and len(speaking.codes))
    assert told == [1, *range(3, 61, BLOCK_CODES)]
    assert 0 < heard <= 5 * BLOCK_CODES


def test_a_speech_that_is_left_makes_no_sound_any_more(engine: Engine) -> None:
    _, speaking = begin(engine, 6)
    pieces = speaking.finish()
    next(pieces)
    speaking.leave()
    assert [len(samples) for samples in pieces if len(samples)] == []
    assert speaking.is_cut


def test_a_speech_that_is_stopped_before_its_first_token_is_silent(engine: Engine) -> None:
    _, speaking = begin(engine, 6)
    speaking.stop()
    assert not list(speaking.catch_up())
    assert not list(speaking.finish())
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


def count_speakers() -> list[int]:
    """How many Talkers and speech decoders there are in this process."""
    there = gc.get_objects()
    return [sum(type(one) is kind for one in there) for kind in (Talker, Token2Wav)]


def test_what_speaks_is_loaded_by_the_first_who_asks_and_takes_what_was_set_aside(
    omni_checkpoint: Path,
) -> None:
    before = count_speakers()
    fresh = Engine(omni_checkpoint, dtype="bfloat16")
    hello = [{"role": "user", "content": "Hello"}]
    assert fresh.chat(hello, max_tokens=2).token_ids
    assert count_speakers() == before
    speech = fresh.speech.load()
    assert count_speakers() == [number + 1 for number in before]
    parts = (speech.talker, speech.token2wav)
    state = [tensor for part in parts for tensor in part.state_dict().values()]
    assert fresh.speech.num_bytes == sum(one.numel() * one.element_size() for one in state)
    assert fresh.speech.load() is speech


def test_the_thinker_alone_answers_and_never_speaks(omni_checkpoint: Path, tmp_path: Path) -> None:
    """By the engine's limits, or because a folder holds no more."""
    data = thinker_alone(json.loads((omni_checkpoint / "config.json").read_text()))
    shutil.copytree(omni_checkpoint, tmp_path / "alone")
    (tmp_path / "alone/spk_dict.pt").unlink()
    (tmp_path / "alone/config.json").write_text(json.dumps(data))
    weights = load_file(omni_checkpoint / "model.safetensors")
    kept = {
        name.removeprefix("thinker."): tensor
        for name, tensor in weights.items()
        if name.startswith("thinker.")
    }
    save_file(kept, tmp_path / "alone/model.safetensors", metadata={"format": "pt"})
    before = count_speakers()
    whole = Engine(omni_checkpoint)
    hello: Any = [{"role": "user", "content": "Hello"}]
    for alone in (
        Engine(omni_checkpoint, config=EngineConfig(use_speech=False)),
        Engine(tmp_path / "alone"),
    ):
        assert not alone.speech.is_there
        assert alone.speech.num_bytes == 0
        how: Any = {"max_tokens": 3, "temperature": 0}
        assert alone.chat(hello, **how).token_ids == whole.chat(hello, **how).token_ids
        with pytest.raises(InputError, match="does not speak"):
            speak(alone, hello, max_tokens=3)
    assert whole.speech.num_bytes > 0
    assert count_speakers() == before
