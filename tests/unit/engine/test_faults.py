"""What fails inside one request ends that request alone; the engine stays whole."""

import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.engine.faults import is_out_of_memory
from qianyan.engine.request import Completion, Finished
from qianyan.engine.scheduler import RECOVERY_PASSES, EngineConfig
from qianyan.errors import CapacityError, CheckpointError, InputError, NoMemoryError, QianyanError

OPTIONS: dict[str, Any] = {"max_tokens": 12, "logprobs": 2}


def ask(words: str, *sizes: tuple[int, int]) -> list[dict[str, Any]]:
    """A question, after plain pictures of the given widths and heights."""
    content: list[dict[str, Any]] = [
        {"type": "image", "image": Image.new("RGB", size, (90, 20, 10))} for size in sizes
    ]
    return [{"role": "user", "content": [*content, {"type": "text", "text": words}]}]


TALKS = [ask("the box"), ask("what burns", (60, 90)), ask("x" * 50), ask("where", (56, 56))]


@pytest.fixture
def fresh(tiny_checkpoint: Path) -> Iterator[Engine]:
    """An engine without a past, whose blocks are all there at the end."""
    engine = Engine(tiny_checkpoint)
    yield engine
    assert engine.step() == []
    pool = engine._scheduler.pool
    assert pool.num_available == pool.num_blocks
    assert not engine._runner._prompts


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path) -> list[Completion]:
    return Engine(tiny_checkpoint).chat_many(TALKS, **OPTIONS)


def assert_same(done: list[Completion], expected: list[Completion]) -> None:
    for one, other in zip(done, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs is not None
        assert other.logprobs is not None
        for ours, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)


def fail_above(most: int, error: Exception) -> Callable[..., None]:
    """A hook that lets no pass over more tokens through."""

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if len(inputs[0]) > most:
            raise error

    return hook


def test_words_of_the_allocator_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.int8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert not is_out_of_memory(RuntimeError("The size of tensor a must match"))


def test_a_pass_without_memory_is_repeated_in_halves_and_changes_no_answer(
    fresh: Engine, expected: list[Completion]
) -> None:
    error = torch.OutOfMemoryError("out of memory")
    hook = fresh.model.register_forward_pre_hook(fail_above(9, error))
    assert_same(fresh.chat_many(TALKS, **OPTIONS), expected)
    hook.remove()
    for _ in range(RECOVERY_PASSES):
        fresh.chat(TALKS[0], max_tokens=12)
    assert fresh._scheduler._max_pass_tokens == fresh.config.max_batch_tokens


def test_a_request_without_memory_for_one_token_is_refused_with_numbers(
    fresh: Engine, expected: list[Completion]
) -> None:
    hook = fresh.model.register_forward_pre_hook(fail_above(0, MemoryError()))
    outcomes = fresh.chat_many(TALKS[:2], return_errors=True, **OPTIONS)
    hook.remove()
    for outcome in outcomes:
        assert isinstance(outcome, CapacityError)
        assert "no memory for a pass over one token behind 0 kept ones" in str(outcome)
    assert_same(fresh.chat_many(TALKS, **OPTIONS), expected)


def test_a_pass_that_fails_for_another_reason_is_raised_and_leaves_the_engine_whole(
    fresh: Engine, expected: list[Completion]
) -> None:
    hook = fresh.model.register_forward_pre_hook(fail_above(0, RuntimeError("no kernel")))
    with pytest.raises(RuntimeError, match="no kernel"):
        fresh.chat_many(TALKS, **OPTIONS)
    hook.remove()
    assert_same(fresh.chat_many(TALKS, **OPTIONS), expected)


def refuse_grid(grid: tuple[int, int, int], error: Exception) -> Callable[..., None]:
    """A hook that lets the tower look at no picture of a grid."""

    def hook(tower: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if grid in [tuple(own) for own in inputs[1]]:
            raise error

    return hook


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (
            RuntimeError("index 7 is out of bounds"),
            QianyanError,
            "not take in a picture .* 24 patches;",
        ),
        (torch.OutOfMemoryError("out of memory"), NoMemoryError, "24 patches .* Lower max_pixels"),
        (InputError("That is no picture."), InputError, "That is no picture."),
    ],
)
def test_a_picture_that_cannot_be_looked_at_ends_its_own_request_only(
    error: Exception,
    kind: type[QianyanError],
    sentence: str,
    fresh: Engine,
    expected: list[Completion],
) -> None:
    hook = fresh.model.visual.register_forward_pre_hook(refuse_grid((1, 6, 4), error))
    outcomes = fresh.chat_many(TALKS, return_errors=True, **OPTIONS)
    assert type(outcomes[1]) is kind
    with pytest.raises(kind, match=sentence):
        raise outcomes[1]
    del outcomes[1]
    hook.remove()
    others = [one for one in outcomes if isinstance(one, Completion)]
    assert_same(others, [expected[0], *expected[2:]])
    assert_same([fresh.chat(TALKS[1], **OPTIONS)], [expected[1]])


def test_output_that_is_no_number_ends_its_own_request_and_is_not_remembered(
    fresh: Engine, expected: list[Completion]
) -> None:
    passes = itertools.count()

    def spoil(module: torch.nn.Module, inputs: Any, logits: torch.Tensor) -> None:
        if next(passes) == 3:
            logits[2] = torch.nan

    hook = fresh.model.register_forward_hook(spoil)
    outcomes = fresh.chat_many(TALKS, return_errors=True, **OPTIONS)
    hook.remove()
    assert isinstance(outcomes.pop(2), CheckpointError)
    others = [one for one in outcomes if isinstance(one, Completion)]
    assert_same(others, [*expected[:2], expected[3]])
    again = fresh.chat(TALKS[2], **OPTIONS)
    assert again.usage.cached_tokens == 0
    assert_same([again], [expected[2]])


def test_the_first_error_ends_a_batch_unless_errors_are_asked_for(fresh: Engine) -> None:
    passes = itertools.count()

    def spoil(module: torch.nn.Module, inputs: Any, logits: torch.Tensor) -> None:
        if next(passes) == 3:
            logits[2] = torch.nan

    hook = fresh.model.register_forward_hook(spoil)
    with pytest.raises(CheckpointError, match="not a number"):
        fresh.chat_many(TALKS, max_tokens=500)
    hook.remove()
    assert next(passes) < 10, "the others are dropped"


def test_errors_of_preparation_stand_in_their_places(
    fresh: Engine, expected: list[Completion]
) -> None:
    broken = [{"role": "user", "content": [{"type": "image", "image": "data:image/png;base64,A"}]}]
    outcomes = fresh.chat_many(
        [TALKS[0], broken, [], ask("x" * 5000), TALKS[1]], return_errors=True, **OPTIONS
    )
    first, unread, empty, long, last = outcomes
    assert isinstance(unread, InputError)
    assert isinstance(empty, InputError)
    assert isinstance(long, CapacityError)
    assert isinstance(first, Completion)
    assert isinstance(last, Completion)
    assert_same([first, last], expected[:2])


def test_a_picture_beyond_the_cache_is_refused_before_the_tower_runs(
    tiny_checkpoint: Path,
) -> None:
    small = Engine(tiny_checkpoint, config=EngineConfig(max_cache_tokens=60))
    looks: list[int] = []
    small.model.visual.register_forward_pre_hook(lambda *_: looks.append(1))
    with pytest.raises(CapacityError) as caught:
        small.chat(ask("what", (200, 200)))
    assert "49 of them pictures and videos; expected at most 59" in str(caught.value)
    assert "max_cache_tokens is 60, and the model could take 2048" in str(caught.value)
    assert "lower max_pixels, or raise max_cache_tokens" in str(caught.value)
    assert looks == []


@pytest.mark.parametrize("num_events", [0, 1, 5])
def test_a_request_may_be_dropped_while_it_makes_way(
    num_events: int, tiny_checkpoint: Path
) -> None:
    """Waiting, in prefill, between chunks, decoding and preempted: the blocks come back."""
    config = EngineConfig(max_num_requests=1, max_batch_tokens=16)
    engine = Engine(tiny_checkpoint, config=config)
    low = engine.stream(ask("x" * 90, (56, 56)), max_tokens=50)
    list(itertools.islice(low, num_events))
    high = engine.stream(ask("the box"), max_tokens=50, priority=-1)
    next(high)
    low.close()  # type: ignore[attr-defined]
    *_, last = high
    assert isinstance(last, Finished)
    assert last.completion.token_ids == engine.chat(ask("the box"), max_tokens=50).token_ids
    pool = engine._scheduler.pool
    assert pool.num_available == pool.num_blocks
    assert not engine._runner._prompts


@pytest.mark.parametrize("num_steps", range(9))
def test_a_request_dropped_between_chunks_gives_its_blocks_back(
    num_steps: int, tiny_checkpoint: Path
) -> None:
    engine = Engine(tiny_checkpoint, config=EngineConfig(max_batch_tokens=16))
    request, prompt = engine.prepare(ask("x" * 90, (56, 56)), {"max_tokens": 3})
    engine.submit(request, prompt)
    for _ in range(num_steps):
        engine.step()
    assert not request.is_finished
    engine.forget([request])
    assert engine.step() == []
    pool = engine._scheduler.pool
    assert pool.num_available == pool.num_blocks
    assert not engine._runner._prompts


MOST_GROWTH_BYTES = 48 * 2**20
"""Of resident memory after the first tenth: what allocators take and do not give back."""


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
@pytest.mark.parametrize("count", [240, pytest.param(10_000, marks=pytest.mark.slow)])
def test_requests_dropped_at_every_stage_leave_nothing_behind(
    count: int, tiny_checkpoint: Path
) -> None:
    """Waiting, half computed, decoding, making way, finished; many of them, in a tight cache."""
    config = EngineConfig(max_cache_tokens=480, max_num_requests=3, max_batch_tokens=60)
    engine = Engine(tiny_checkpoint, config=config)
    choice = random.Random(count)  # noqa: S311  (which stage, not a secret)
    asked = [ask("a"), ask("x" * 90), ask("look", (56, 56)), ask("a" * 200)]
    begun = 0
    for number in range(count // 4):
        streams = [
            engine.stream(
                choice.choice(asked),
                max_tokens=choice.choice([2, 4, 40]),
                priority=choice.randint(-1, 1),
            )
            for _ in range(4)
        ]
        for stream in streams:  # none, some or all of the events
            list(itertools.islice(stream, choice.randrange(7)))
        choice.shuffle(streams)
        for stream in streams:
            stream.close()  # type: ignore[attr-defined]
        if number == count // 40:
            begun = resident_bytes()
    assert engine.step() == []
    assert not engine._runner._prompts
    assert not engine._scheduler.running
    assert not engine._scheduler.waiting
    pool = engine._scheduler.pool
    assert pool.num_available == pool.num_blocks
    assert resident_bytes() - begun < MOST_GROWTH_BYTES
