"""The engine against transformers' generate, on small random checkpoints that see."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.engine.request import Finished
from qianyan.engine.scheduler import EngineConfig
from qianyan.inputs.processor import ModelInputs
from qianyan.models.attention import NoCache

NUM_TOKENS = 32


def noise(width: int, height: int, seed: int) -> dict[str, Any]:
    """A content part with a random picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {"type": "image", "image": Image.fromarray(pixels)}


def clip(num_frames: int, seed: int, *, fps: float = 2.0) -> dict[str, Any]:
    """A content part with a random video, wide enough that both rules of position agree."""
    frames = [noise(280, 84, seed + index)["image"] for index in range(num_frames)]
    return {"type": "video", "video": frames, "fps": fps}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "text": [{"role": "user", "content": "Is there a fire in the hall?"}],
    "one image": [{"role": "user", "content": [noise(140, 84, 1), text("What burns?")]}],
    "several images": [
        {
            "role": "user",
            "content": [noise(56, 56, 2), noise(200, 60, 3), text("and"), noise(84, 196, 4)],
        }
    ],
    "video with an odd number of frames": [
        {"role": "user", "content": [clip(5, 20), text("What moves?")]}
    ],
    "video and image": [
        {"role": "user", "content": [noise(84, 56, 8), text("then"), clip(4, 30, fps=4.0)]},
        {"role": "assistant", "content": "Smoke."},
        {"role": "user", "content": [text("And now?"), clip(4, 40), noise(56, 84, 9)]},
    ],
    "mixed turns": [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": [text("First."), noise(112, 84, 5)]},
        {"role": "assistant", "content": "Smoke."},
        {"role": "user", "content": [noise(60, 120, 6), text("And here?"), noise(56, 112, 7)]},
    ],
}


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl"])
def seeing_checkpoint(
    request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path], official_checkpoint: Path
) -> Path:
    if request.param == "qwen2_5_vl":
        return official_checkpoint
    return make_checkpoint(request.param, generation=request.param)


@pytest.fixture(scope="module")
def endless_checkpoint(seeing_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a stop token that is never drawn: a row of padding."""
    folder = tmp_path_factory.mktemp("endless") / "checkpoint"
    shutil.copytree(seeing_checkpoint, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 319}')
    return folder


@pytest.fixture(scope="module")
def endless_engine(endless_checkpoint: Path) -> Engine:
    return Engine(endless_checkpoint, dtype="float32")


@pytest.fixture(scope="module")
def oracle(endless_checkpoint: Path, load_oracle: Callable[[Path], Any]) -> Any:
    return load_oracle(endless_checkpoint)


def oracle_pixels(oracle: Any, inputs: ModelInputs) -> dict[str, torch.Tensor]:
    """Sort what our processor packed in order of appearance into images and videos."""
    given: dict[str, torch.Tensor] = {}
    if inputs.pixel_values is None:
        return given
    rows = torch.from_numpy(inputs.pixel_values).split([t * h * w for t, h, w in inputs.grid_thw])
    for is_video, pixels, grid in (
        (False, "pixel_values", "image_grid_thw"),
        (True, "pixel_values_videos", "video_grid_thw"),
    ):
        picked = [i for i, (t, _, _) in enumerate(inputs.grid_thw) if (t > 1) is is_video]
        if picked:
            given[pixels] = torch.cat([rows[i] for i in picked])
            given[grid] = torch.tensor([inputs.grid_thw[i] for i in picked])
    if inputs.second_per_grid_ts and oracle.config.model_type == "qwen2_5_vl":
        given["second_per_grid_ts"] = torch.tensor(inputs.second_per_grid_ts)
    return given


def generate(oracle: Any, engine: Engine, messages: list[dict[str, Any]], **how: Any) -> list[int]:
    """Let transformers answer what our processor read; rows of padding are suppressed."""
    inputs = engine.processor(messages)
    input_ids = torch.tensor([inputs.prompt_token_ids])
    types = (input_ids == oracle.config.image_token_id).int()
    types += 2 * (input_ids == oracle.config.video_token_id).int()
    num_tokens = engine.processor.tokenizer.vocab_size
    oracle.model.rope_deltas = None  # kept between calls, and wrong for the next one
    generated = oracle.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        mm_token_type_ids=types,
        suppress_tokens=list(range(num_tokens, oracle.config.text_config.vocab_size)),
        do_sample=False,
        **{"max_new_tokens": NUM_TOKENS, **how},
        **oracle_pixels(oracle, inputs),
    )
    token_ids: list[int] = generated[0, input_ids.shape[1] :].tolist()
    return token_ids


@pytest.fixture(scope="module")
def oracle_tokens(oracle: Any, endless_engine: Engine) -> dict[str, list[int]]:
    """The 32 greedy tokens of transformers for each conversation."""
    return {
        name: generate(oracle, endless_engine, messages) for name, messages in CONVERSATIONS.items()
    }


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_greedy_tokens_equal_those_of_transformers(
    name: str, endless_engine: Engine, oracle_tokens: dict[str, list[int]]
) -> None:
    done = endless_engine.chat(CONVERSATIONS[name], max_tokens=NUM_TOKENS, temperature=0)
    assert done.token_ids == oracle_tokens[name]
    assert len(done.token_ids) == NUM_TOKENS


def test_tokens_under_a_repetition_penalty_equal_those_of_transformers(
    oracle: Any, endless_engine: Engine, oracle_tokens: dict[str, list[int]]
) -> None:
    messages = CONVERSATIONS["mixed turns"]
    expected = generate(oracle, endless_engine, messages, repetition_penalty=1.3)
    done = endless_engine.chat(messages, max_tokens=NUM_TOKENS, repetition_penalty=1.3)
    assert done.token_ids == expected != oracle_tokens["mixed turns"]


def test_an_answer_ends_at_the_stop_token_where_transformers_ends(
    endless_checkpoint: Path,
    oracle: Any,
    endless_engine: Engine,
    oracle_tokens: dict[str, list[int]],
    tmp_path: Path,
) -> None:
    messages = CONVERSATIONS["mixed turns"]
    stop = oracle_tokens["mixed turns"][9]
    expected = generate(oracle, endless_engine, messages, eos_token_id=[stop])
    folder = shutil.copytree(endless_checkpoint, tmp_path / "stops")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop, 318]}))
    done = Engine(folder).chat(messages, max_tokens=NUM_TOKENS)
    assert done.token_ids == expected
    assert done.token_ids[-1] == stop
    assert done.finish_reason == "stop"
    assert done.text == endless_engine.processor.tokenizer.decode(expected[:-1])


def test_a_batch_of_all_conversations_gives_the_same_tokens(
    endless_engine: Engine, oracle_tokens: dict[str, list[int]]
) -> None:
    done = endless_engine.chat_many(
        list(CONVERSATIONS.values()), max_tokens=NUM_TOKENS, temperature=0
    )
    assert [each.token_ids for each in done] == list(oracle_tokens.values())


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_prompts_computed_in_chunks_give_the_same_tokens(
    chunk: int, endless_checkpoint: Path, oracle_tokens: dict[str, list[int]]
) -> None:
    engine = Engine(endless_checkpoint, config=EngineConfig(max_batch_tokens=chunk))
    done = engine.chat_many(list(CONVERSATIONS.values()), max_tokens=8, temperature=0)
    assert [each.token_ids for each in done] == [ids[:8] for ids in oracle_tokens.values()]


LONG_ANSWER = 300
"""More than the room that is kept for each answer, so that answers come to be in the way."""


def test_answers_that_make_way_in_a_tight_cache_are_those_given_alone(
    endless_checkpoint: Path, endless_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(
        max_cache_tokens=1100, max_batch_tokens=200, max_reuse_tokens=64, max_draft_tokens=0
    )
    tight = Engine(endless_checkpoint, dtype="float32", config=config)
    preempted = []
    preempt = tight._scheduler._preempt
    monkeypatch.setattr(
        tight._scheduler, "_preempt", lambda one: (preempted.append(one), preempt(one))
    )
    talks = [CONVERSATIONS[name] for name in ("one image", "text", "several images")]
    options: dict[str, Any] = {"max_tokens": LONG_ANSWER, "temperature": 0, "logprobs": 3}
    done = tight.chat_many(talks, **options)
    assert preempted
    for messages, one in zip(talks, done, strict=True):
        alone = endless_engine.chat(messages, **options)
        assert one.token_ids == alone.token_ids
        assert one.usage == alone.usage
        assert one.logprobs is not None
        assert alone.logprobs is not None
        for ours, theirs in zip(one.logprobs, alone.logprobs, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_an_urgent_question_interrupts_and_changes_no_answer(
    endless_checkpoint: Path, endless_engine: Engine
) -> None:
    one = EngineConfig(max_num_requests=1, max_reuse_tokens=0)
    engine = Engine(endless_checkpoint, dtype="float32", config=one)
    options: dict[str, Any] = {"max_tokens": NUM_TOKENS, "temperature": 0.9, "seed": 3}
    events = engine.stream(CONVERSATIONS["several images"], **options)
    begun = [next(events) for _ in range(5)]
    urgent = engine.chat(CONVERSATIONS["one image"], **options, priority=-1)
    assert urgent == endless_engine.chat(CONVERSATIONS["one image"], **options)
    *rest, last = [*begun, *events]
    assert isinstance(last, Finished)
    expected = endless_engine.chat(CONVERSATIONS["several images"], **options)
    assert last.completion == expected
    assert [event.token_id for event in rest] == expected.token_ids  # type: ignore[union-attr]


def test_cached_log_probabilities_equal_one_uncached_pass(endless_engine: Engine) -> None:
    messages = CONVERSATIONS["mixed turns"]
    done = endless_engine.chat(messages, max_tokens=NUM_TOKENS, temperature=0, logprobs=5)
    inputs = endless_engine.processor(messages)
    model = endless_engine._runner._model
    token_ids = [*done.prompt_token_ids, *done.token_ids]
    with torch.inference_mode():
        assert inputs.pixel_values is not None
        features = model.encode_images(torch.from_numpy(inputs.pixel_values), inputs.grid_thw)
        hidden = model.embed(torch.tensor(inputs.prompt_token_ids), features)
        hidden = torch.cat([hidden, model.embed(torch.tensor(done.token_ids))])
        positions = model.place(inputs.prompt_token_ids, inputs.grid_thw).prompt
        answered = positions.max() + 1 + torch.arange(len(done.token_ids)).expand(3, -1)
        logits = model(hidden, torch.cat([positions, answered], 1), NoCache([len(token_ids)]))
    num_tokens = endless_engine.processor.tokenizer.vocab_size
    expected = logits[len(done.prompt_token_ids) - 1 : -1, :num_tokens].log_softmax(-1)
    assert done.logprobs is not None
    for step, row in zip(done.logprobs, expected, strict=True):
        assert step == pytest.approx({i: row[i].item() for i in step}, abs=1e-4)
        assert set(row.topk(5).indices.tolist()) <= set(step)
