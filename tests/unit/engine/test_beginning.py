"""A conversation that is computed while it is being said: the same answer, and little left to do.

The engine is that of a small Qwen2.5-Omni; its weights are random and its sizes the released ones'
where they count: 50 tokens for two seconds of sound.
"""

import wave
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qianyan.engine.blocks import BLOCK_SIZE
from qianyan.engine.cache import FeatureCache
from qianyan.engine.engine import Engine
from qianyan.engine.request import Completion, Request
from qianyan.engine.scheduler import EngineConfig
from qianyan.errors import CapacityError, InputError
from qianyan.inputs.turn import Turn

SYSTEM = {"role": "system", "content": "You watch over a building site and say what is unsafe."}
OPTIONS: dict[str, Any] = {"max_tokens": 10, "logprobs": 3}


@pytest.fixture
def engine(omni_checkpoint: Path) -> Iterator[Engine]:
    engine = Engine(omni_checkpoint)
    yield engine
    assert engine.step() == []
    assert engine.num_used_blocks == 0
    assert engine._runner._prompts == {}


@pytest.fixture
def encoded(engine: Engine) -> Iterator[list[int]]:
    """The mel frames of each pass of the audio encoder, as they happen."""
    frames: list[int] = []

    def note(tower: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        del tower
        frames.append(sum(inputs[1]))

    hook = engine.model.audio_tower.register_forward_pre_hook(note)  # type: ignore[union-attr]
    yield frames
    hook.remove()


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal(round(seconds * 16_000))).astype(np.float32)


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def listen(
    engine: Engine, samples: np.ndarray, *history: dict[str, Any], frames: bool = False
) -> tuple[list[int], list[dict[str, Any]]]:
    """Let somebody speak: what each block's prefill computed, and the messages in the end."""
    turn, counts = Turn(engine.processor.sounds, engine.processor.videos), []
    num_blocks = 0
    for start in range(0, len(samples), 4_000):
        if frames:
            turn.add_frame(Image.new("RGB", (200, 120), (start // 400 % 255, 90, 30)))
        turn.add_sound(samples[start : start + 4_000], 16_000)
        if turn.num_blocks > num_blocks:
            num_blocks = turn.num_blocks
            counts.append(engine.prefill([*history, user(turn.part_so_far())]))
    return counts, [*history, user(turn.finish())]


def assert_same(done: Completion, other: Completion) -> None:
    assert done.prompt_token_ids == other.prompt_token_ids
    assert done.token_ids == other.token_ids
    assert done.logprobs is not None
    assert other.logprobs is not None
    for ours, theirs in zip(done.logprobs, other.logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("frames", [False, True], ids=["sound", "sound and frames"])
def test_the_answer_is_that_of_the_same_conversation_at_once(
    engine: Engine, omni_checkpoint: Path, frames: bool
) -> None:
    counts, messages = listen(engine, noise(9.3), SYSTEM, frames=frames)
    done = engine.chat(messages, **OPTIONS)
    fresh = Engine(omni_checkpoint).chat(messages, **OPTIONS)
    assert_same(done, fresh)
    assert fresh.usage.cached_tokens == 0
    assert len(counts) == 4
    assert sum(counts) == done.usage.cached_tokens
    # Left are the block that was not complete, the words behind it and less than a block.
    block = done.usage.prompt_tokens // 5
    left = done.usage.prompt_tokens - done.usage.cached_tokens
    assert left < (block + 8 if frames else 33 + 8) + 2 * BLOCK_SIZE


def test_a_block_of_sound_takes_fifty_tokens_and_is_encoded_once(
    engine: Engine, encoded: list[int]
) -> None:
    counts, messages = listen(engine, noise(12.5), SYSTEM)
    assert encoded == [200] * 6
    # Two blocks of the cache more or less, as those of sound do not end where they do.
    assert all(50 - BLOCK_SIZE < count < 50 + BLOCK_SIZE for count in counts[1:])
    engine.chat(messages, **OPTIONS)
    assert encoded == [200] * 6 + [50]


def test_frames_without_a_sound_go_on_too_and_equal_moments_are_looked_at_once(
    engine: Engine, omni_checkpoint: Path
) -> None:
    """A still camera costs one look; what moves a look for each moment that is new."""
    grids: list[list[Any]] = []

    def note(tower: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        del tower
        grids.append(list(inputs[1]))

    hook = engine.model.visual.register_forward_pre_hook(note)
    still, moved = (Image.new("RGB", (200, 120), shade) for shade in ("navy", "olive"))

    def shown(*frames: Image.Image) -> list[dict[str, Any]]:
        return [SYSTEM, user({"type": "video", "video": list(frames), "fps": 1})]

    assert engine.prefill(shown(still, still)) > 0
    assert engine.prefill(shown(*[still] * 6)) > 0
    assert [len(pass_grids) for pass_grids in grids] == [1]
    assert engine.prefill(shown(*[still] * 6, moved, moved)) > 0
    assert [len(pass_grids) for pass_grids in grids] == [1, 1]
    hook.remove()
    whole = shown(*[still] * 6, moved, moved)
    done = engine.chat(whole, **OPTIONS)
    assert done.usage.prompt_tokens - done.usage.cached_tokens < 10 + 2 * BLOCK_SIZE
    assert_same(done, Engine(omni_checkpoint).chat(whole, **OPTIONS))


def test_features_that_were_forgotten_are_made_again_only_where_they_are_needed(
    engine: Engine, encoded: list[int]
) -> None:
    engine._runner._features = FeatureCache(0)
    _, messages = listen(engine, noise(8.5), SYSTEM)
    done = engine.chat(messages, **OPTIONS)
    # A block of the cache holds the last of one block of sound and the first of the next.
    assert encoded == [200] + [400] * 3 + [250]
    request, prompt = engine.prepare(messages, {"max_tokens": 2})
    list(engine.follow(request, prompt))
    assert encoded[5:] == [], "all that was heard is known"
    assert [len(medium.values) for medium in prompt.media] == [200] * 4 + [50]
    engine._look(prompt)  # as whoever speaks about it does
    assert encoded[5:] == [850]
    assert prompt.media == ()
    fresh = engine._runner.to_prompt(engine.processor(messages))
    engine._look(fresh)
    assert prompt.features is not None
    assert fresh.features is not None
    assert torch.allclose(prompt.features, fresh.features, atol=1e-5)
    assert done.token_ids[:2] == request.output_token_ids


def test_sounds_with_a_louder_place_later_are_answered_as_heard_not_as_a_file(
    engine: Engine, omni_checkpoint: Path
) -> None:
    samples = noise(7.1)
    samples[:30_000] *= 0.0005
    _, messages = listen(engine, samples)
    done = engine.chat(messages, **OPTIONS)
    assert done.usage.cached_tokens > 150
    assert_same(done, Engine(omni_checkpoint).chat(messages, **OPTIONS))


def test_a_second_turn_goes_on_behind_the_first_answer(
    engine: Engine, omni_checkpoint: Path
) -> None:
    _, messages = listen(engine, noise(4.5), SYSTEM)
    first = engine.chat(messages, **OPTIONS)
    answer = {"role": "assistant", "content": first.text or "None."}
    assert engine.prefill([*messages, answer]) < 3 * BLOCK_SIZE + len(first.text)
    counts, more = listen(engine, noise(6.5, seed=1), *messages, answer)
    assert counts[0] < 50 + 2 * BLOCK_SIZE
    done = engine.chat(more, **OPTIONS)
    assert done.usage.prompt_tokens - done.usage.cached_tokens < 60
    assert_same(done, Engine(omni_checkpoint).chat(more, **OPTIONS))


def test_what_is_known_is_not_computed_again(engine: Engine, encoded: list[int]) -> None:
    _, messages = listen(engine, noise(4.5), SYSTEM)
    engine.chat(messages, **OPTIONS)
    passes: list[int] = []
    hook = engine.model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    assert engine.prefill(messages) == 0
    assert engine.prefill([user({"type": "text", "text": "?"})]) > 0
    hook.remove()
    assert passes == [1]
    assert encoded == [200, 200, 50]


def test_less_than_a_block_of_tokens_is_left_to_the_answer(engine: Engine) -> None:
    assert engine.prefill([{"role": "system", "content": ""}]) in (0, BLOCK_SIZE)
    tiny = [{"role": "system", "content": "a"}]
    before = engine.num_used_blocks
    engine.prefill(tiny)
    assert engine.num_used_blocks == before


def test_a_prefill_that_is_let_go_leaves_nothing(omni_checkpoint: Path) -> None:
    engine = Engine(omni_checkpoint, config=EngineConfig(max_batch_tokens=32))
    turn = Turn(engine.processor.sounds)
    turn.add_sound(noise(6.5), 16_000)
    messages = [SYSTEM, user(turn.part_so_far())]
    request, prompt = engine.prepare_prefill(messages, {})
    engine.submit(request, prompt)
    engine.step()
    assert 0 < request.num_computed_tokens < request.num_tokens
    assert engine.num_used_blocks > 0
    engine.forget([request])
    assert engine.num_used_blocks == 0
    assert engine._runner._prompts == {}
    scheduler = engine._scheduler
    assert (scheduler.waiting, scheduler.running) == ([], [])
    # What was computed is good, and stays known.
    assert engine.prefill(messages) == request.num_tokens - 32


def test_answers_go_first_and_take_seats_and_blocks_from_what_is_for_later(
    omni_checkpoint: Path,
) -> None:
    config = EngineConfig(max_num_requests=1, max_batch_tokens=32, max_cache_tokens=640)
    engine = Engine(omni_checkpoint, config=config)
    turn = Turn(engine.processor.sounds)
    turn.add_sound(noise(16.5), 16_000)
    later, prompt = engine.prepare_prefill([SYSTEM, user(turn.part_so_far())], {})
    engine.submit(later, prompt)
    engine.step()
    assert later.block_table
    asked = [user({"type": "text", "text": "word " * 40})]
    expected = Engine(omni_checkpoint).chat(asked, **OPTIONS)
    done = engine.chat(asked, **OPTIONS)
    assert not later.is_finished
    assert_same(done, expected)
    while not later.is_finished:
        engine.step()
    assert later.num_computed_tokens == 0, "it has left"
    assert engine.num_used_blocks == 0


def test_beside_answers_little_is_computed_for_later(omni_checkpoint: Path) -> None:
    engine = Engine(omni_checkpoint)
    answer, prompt = engine.prepare([user({"type": "text", "text": "Hi"})], {"max_tokens": 40})
    engine.submit(answer, prompt)
    engine.step()
    long = [user({"type": "text", "text": "word " * 200})]
    later, prompt = engine.prepare_prefill(long, {})
    engine.submit(later, prompt)
    sizes = []
    while not later.is_finished:
        before = later.num_computed_tokens, len(answer.output_token_ids)
        engine.step()
        assert len(answer.output_token_ids) > before[1], "an answer never waits"
        known = before[0] or later.num_cached_tokens
        sizes.append((later.num_computed_tokens or later.num_tokens) - known)
    assert max(sizes) == 256
    assert sum(sizes) == later.num_tokens - later.num_cached_tokens
    engine.forget([answer])


def test_what_for_later_finds_no_room_waits_and_disturbs_nobody(omni_checkpoint: Path) -> None:
    engine = Engine(omni_checkpoint, config=EngineConfig(max_cache_tokens=320))
    asked = [user({"type": "text", "text": "word " * 40})]
    answer, prompt = engine.prepare(asked, {"max_tokens": 60})
    engine.submit(answer, prompt)
    engine.step()
    later, prompt = engine.prepare_prefill([user({"type": "text", "text": "other " * 40})], {})
    engine.submit(later, prompt)
    while not answer.is_finished:
        engine.step()
        assert not later.is_finished
        assert later.block_table == []
    while not later.is_finished:
        engine.step()
    assert later.error is None
    assert Engine(omni_checkpoint).chat(asked, max_tokens=60).token_ids == answer.output_token_ids


def test_what_can_never_be_answered_is_not_begun(engine: Engine, omni_checkpoint: Path) -> None:
    small = Engine(omni_checkpoint, config=EngineConfig(max_cache_tokens=160))
    turn = Turn(engine.processor.sounds)
    turn.add_sound(noise(16.5), 16_000)
    with pytest.raises(CapacityError, match="of them sound"):
        small.prefill([user(turn.part_so_far())])
    with pytest.raises(InputError, match="not an option"):
        engine.prefill([SYSTEM], tokens=3)  # type: ignore[call-arg]
    with pytest.raises(InputError):
        engine.prefill([{"role": "nobody", "content": "x"}])


def test_tools_and_the_system_prompt_are_known_before_anybody_speaks(engine: Engine) -> None:
    engine.prefill([SYSTEM])
    done = engine.chat([SYSTEM, user({"type": "text", "text": "Hi"})], **OPTIONS)
    assert done.usage.cached_tokens == 64 == done.usage.prompt_tokens // 64 * 64


def test_a_file_whose_loudest_place_comes_first_shares_what_was_heard(engine: Engine) -> None:
    samples = np.round(noise(6.5) * 32768).astype("<i2")
    samples[3000:3100] *= 3
    _, grown = listen(engine, (samples / 32768).astype(np.float32), SYSTEM)
    heard = engine.chat(grown, **OPTIONS)
    file = BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(16_000)
        written.writeframes(samples.tobytes())
    read = engine.chat([SYSTEM, user({"type": "audio", "audio": file.getvalue()})], **OPTIONS)
    assert read.usage.prompt_tokens - read.usage.cached_tokens <= BLOCK_SIZE
    assert_same(read, heard)


def test_a_request_for_later_has_keys_for_whole_blocks_only(engine: Engine) -> None:
    request, _ = engine.prepare_prefill([SYSTEM], {})
    assert isinstance(request, Request)
    assert not request.is_answered
    assert request.num_tokens % BLOCK_SIZE == 0
