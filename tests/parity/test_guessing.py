"""Tokens that are guessed ahead change no answer, only the number of passes."""

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.engine.request import Completion
from qianyan.engine.scheduler import EngineConfig

JUDGE = Path(str(files("qianyan").joinpath("assets/bundled/judge")))
RULES = "Hard hats are worn in the hall. Doors stay shut in the hall. " * 3
LIST = {"type": "array", "items": {"enum": ["hard hat", "hard rain"]}, "minItems": 5, "maxItems": 9}
FORM = {"type": "json_schema", "json_schema": {"name": "list", "schema": LIST}}


def ask(words: str, *seeds: int) -> list[dict[str, Any]]:
    pixels = [
        np.random.default_rng(s).integers(0, 256, (84, 140, 3), dtype=np.uint8) for s in seeds
    ]
    content: list[dict[str, Any]] = [
        {"type": "image", "image": Image.fromarray(own)} for own in pixels
    ]
    return [{"role": "user", "content": [*content, {"type": "text", "text": words}]}]


TALKS = [ask(RULES), ask("What burns?", 1), ask("ab" * 40, 2), ask("Is it safe? " + RULES)]


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen2", "judge"])
def folder(
    request: pytest.FixtureRequest,
    make_checkpoint: Callable[..., Path],
    make_text_checkpoint: Callable[..., Path],
    tiny_tokens: dict[str, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A checkpoint; the random ones end at a token that they hardly ever draw."""
    if request.param == "judge":
        return JUDGE
    if request.param == "qwen2":
        made = make_text_checkpoint("qwen2")
    else:
        made = make_checkpoint(request.param, generation=request.param)
    folder = shutil.copytree(made, tmp_path_factory.mktemp("endless") / "checkpoint")
    stop = {"eos_token_id": tiny_tokens["<|quad_end|>"]}
    (folder / "generation_config.json").write_text(json.dumps(stop))
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> Engine:
    return Engine(folder, dtype="float32", config=EngineConfig(max_draft_tokens=0))


@pytest.fixture(scope="module")
def guessing(folder: Path) -> Engine:
    return Engine(folder, dtype="float32", config=EngineConfig(max_draft_tokens=8))


def talks(engine: Engine) -> list[list[dict[str, Any]]]:
    if engine.processor.pictures is not None:
        return TALKS
    return [ask(str(talk[0]["content"][-1]["text"])) for talk in TALKS]


def assert_same(done: Completion, expected: Completion) -> None:
    assert done.token_ids == expected.token_ids
    assert (done.text, done.finish_reason) == (expected.text, expected.finish_reason)
    assert done.logprobs is not None
    assert expected.logprobs is not None
    for ours, theirs in zip(done.logprobs, expected.logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5)


def passes(done: list[Completion]) -> int:
    return sum(one.usage.forwarded_tokens for one in done)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.1, "presence_penalty": 0.3},
        {"temperature": 0.8, "seed": 4, "top_p": 0.9},
        {"stop": ["in the", "\ufffd\ufffd\ufffd", "e e"]},
        {"response_format": FORM, "max_tokens": 200},
        {"max_tokens": 7},
    ],
    ids=str,
)
def test_answers_are_those_without_guesses(
    plain: Engine, guessing: Engine, options: dict[str, Any]
) -> None:
    how = {"max_tokens": 64, "temperature": 0, "logprobs": 3, **options}
    for messages in talks(plain):
        assert_same(guessing.chat(messages, **how), plain.chat(messages, **how))
    together = guessing.chat_many(talks(plain), **how)
    for one, other in zip(together, plain.chat_many(talks(plain), **how), strict=True):
        assert_same(one, other)


def test_guesses_save_passes_where_answers_repeat(plain: Engine, guessing: Engine) -> None:
    how: dict[str, Any] = {"max_tokens": 96, "temperature": 0}
    done = [guessing.chat(messages, **how) for messages in talks(plain)]
    expected = [plain.chat(messages, **how) for messages in talks(plain)]
    assert passes(done) <= passes(expected)
    if plain.name != "judge":  # its answers are short
        assert passes(done) < 0.95 * passes(expected)


def test_what_was_guessed_leaves_nothing_behind(folder: Path, plain: Engine) -> None:
    """Blocks that hold guesses are known by what came true; a tight cache takes them back."""
    config = EngineConfig(max_draft_tokens=6, max_cache_tokens=700, max_batch_tokens=40)
    tight = Engine(folder, dtype="float32", config=config)
    how: dict[str, Any] = {"max_tokens": 90, "temperature": 0, "logprobs": 2}
    for _ in range(2):
        done = tight.chat_many(talks(plain), **how)
        for one, other in zip(done, plain.chat_many(talks(plain), **how), strict=True):
            assert_same(one, other)
    pool = tight._scheduler.pool
    assert pool.num_available == pool.num_blocks
