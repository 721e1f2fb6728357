"""A prompt whose beginning is known gives what it gives alone, and shares nothing by mistake."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.engine.request import Completion
from qianyan.engine.scheduler import EngineConfig

LONG = "The hall has three doors, two windows and a crane. "


def picture(seed: int, width: int = 140, height: int = 84) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {"type": "image", "image": Image.fromarray(pixels)}


def clip(seed: int, fps: float) -> dict[str, Any]:
    frames = [picture(seed + index)["image"] for index in range(4)]
    return {"type": "video", "video": frames, "fps": fps}


def ask(*parts: Any) -> list[dict[str, Any]]:
    named = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": named}]


@pytest.fixture(scope="module", params=["qwen2", "qwen3_moe", "qwen2_vl", "qwen2_5_vl"])
def folder(
    request: pytest.FixtureRequest,
    make_checkpoint: Callable[..., Path],
    make_text_checkpoint: Callable[..., Path],
) -> Path:
    if request.param == "qwen2":
        windows = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
        return make_text_checkpoint("qwen2", **windows)
    if request.param == "qwen3_moe":
        experts = {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2}
        return make_text_checkpoint("qwen3_moe", head_dim=32, norm_topk_prob=True, **experts)
    return make_checkpoint(request.param, generation=request.param)


def is_seeing(folder: Path) -> bool:
    return (folder / "preprocessor_config.json").is_file()


def answer(engine: Engine, messages: list[dict[str, Any]], **options: Any) -> Completion:
    return engine.chat(messages, max_tokens=8, temperature=0, logprobs=5, **options)


def assert_same(known: Completion, fresh: Completion) -> None:
    assert known.token_ids == fresh.token_ids
    assert known.logprobs is not None
    assert fresh.logprobs is not None
    for ours, theirs in zip(known.logprobs, fresh.logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def talks(folder: Path) -> list[list[dict[str, Any]]]:
    """Prompts that begin alike, by text and, for models that see, by pictures and videos."""
    texts = [ask(LONG + "Is it safe?"), ask(LONG + "Is it safe? Say yes."), ask(LONG)]
    if not is_seeing(folder):
        return texts
    return [
        *texts,
        ask(picture(1), "What burns?"),
        ask(picture(1), "Who wears no hat? " + LONG),
        ask(picture(2), "What burns?"),
        ask(picture(1), "then", picture(2), "What burns?"),
        ask(picture(1), "then", picture(3), "What burns?"),
        ask(clip(10, 2.0), "What moves?"),
        ask(clip(10, 1.0), "What moves?"),
        ask(clip(10, 2.0), "What moves? " + LONG),
    ]


def test_known_beginnings_change_no_answer(folder: Path) -> None:
    engine = Engine(folder, dtype="float32")
    cached = []
    for messages in [*talks(folder), *talks(folder)]:
        done = answer(engine, messages)
        assert_same(done, answer(Engine(folder, dtype="float32"), messages))
        cached.append(done.usage.cached_tokens)
    assert cached[0] == 0
    assert all(cached[1:3]), "the texts begin alike"
    half = len(cached) // 2
    for messages, count in zip(talks(folder), cached[half:], strict=True):
        num_tokens = len(engine.processor(messages).prompt_token_ids)
        assert count == (num_tokens - 1) // 16 * 16, "asked again, all but the end is known"


def test_together_in_chunks_and_in_a_small_cache(folder: Path) -> None:
    """Blocks come and go under pressure; answers stay."""
    small = EngineConfig(max_batch_tokens=24, max_cache_tokens=900, max_reuse_tokens=200)
    engine = Engine(folder, dtype="float32", config=small)
    for _ in range(2):
        done = engine.chat_many(talks(folder), max_tokens=8, temperature=0, logprobs=5)
        for messages, one in zip(talks(folder), done, strict=True):
            assert_same(one, answer(Engine(folder, dtype="float32"), messages))
    pool = engine._scheduler.pool
    assert pool.num_available == pool.num_blocks


def test_the_next_turn_of_a_conversation_begins_where_the_last_ended(folder: Path) -> None:
    engine = Engine(folder, dtype="float32")
    talk = ask(LONG)
    done = answer(engine, talk)
    talk = [*talk, {"role": "assistant", "content": done.text}, *ask("And now?")]
    again = answer(engine, talk)
    assert_same(again, answer(Engine(folder, dtype="float32"), talk))
    assert again.usage.cached_tokens >= len(done.prompt_token_ids) // 16 * 16


def test_nothing_is_reused_where_that_is_switched_off(folder: Path) -> None:
    engine = Engine(folder, dtype="float32", config=EngineConfig(max_reuse_tokens=0))
    assert [answer(engine, ask(LONG)).usage.cached_tokens for _ in range(2)] == [0, 0]


def test_pictures_whose_tokens_are_known_are_not_looked_at_again(
    official_checkpoint: Path,
) -> None:
    folder = official_checkpoint
    engine = Engine(folder, dtype="float32")
    answer(engine, ask(picture(1), "What burns? " + LONG))
    looks: list[int] = []
    engine._runner._features.max_bytes = 0  # forgotten, were they needed
    engine._runner._features.keep({})
    hook = engine._runner._model.visual.register_forward_pre_hook(lambda *_: looks.append(1))
    answer(engine, ask(picture(1), "What burns? " + LONG + "Again."))
    hook.remove()
    assert looks == []
