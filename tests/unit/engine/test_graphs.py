"""Decoding in fixed shapes: padding changes no answer, and recording that fails is given up."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qianyan.engine.cache import PagedCache
from qianyan.engine.engine import Engine
from qianyan.engine.graphs import (
    BATCH_SIZES,
    COUNTS,
    LENGTHS,
    Decoding,
    FixedSteps,
    Row,
    Run,
    Shape,
    choose_decoding,
    find_shape,
)
from qianyan.engine.paged import MAX_GATHERED_ROWS, MAX_NEW_TOKENS
from qianyan.engine.request import Completion
from qianyan.engine.runner import Runner
from qianyan.engine.scheduler import EngineConfig
from qianyan.models.attention import NoCache
from qianyan.models.language_model import LanguageModel
from qianyan.models.qwen import QWenConfig, QWenLMHeadModel
from qianyan.models.registry import load_model
from qianyan.models.rope import RopeScaling
from qianyan.models.text import CausalLM, MoeConfig, TextConfig

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {"max_tokens": 14, "logprobs": 3}


def decode_with(engine: Engine, decoding: Decoding) -> Engine:
    """Let an idle engine decode in another way than its device's own."""
    engine._runner = Runner(
        engine._runner._model,
        device=CPU,
        max_encode_patches=engine.config.max_encode_patches,
        num_blocks=engine._scheduler.pool.num_blocks,
        decoding=decoding,
    )
    return engine


@pytest.fixture(scope="module")
def questions() -> list[list[dict[str, Any]]]:
    """Seven questions of different lengths, two of them with pictures."""
    picture = {"type": "image", "image": Image.effect_noise((60, 90), 90).convert("RGB")}
    contents: list[Any] = ["the box", "x" * 200, "in", "12 boxes in the box", "y" * 30]
    contents += [[picture, {"type": "text", "text": words}] for words in ("what burns", "where")]
    return [[{"role": "user", "content": content}] for content in contents]


def assert_same(ours: list[Completion], theirs: list[Completion]) -> None:
    """Expect the same tokens, and log-probabilities as near as a batch's are to one request's."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs is not None
        assert other.logprobs is not None
        for step, expected in zip(one.logprobs, other.logprobs, strict=True):
            assert step == pytest.approx(expected, abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("decoding", ["batched", "padded"])
@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(),
        EngineConfig(max_num_requests=3),
        EngineConfig(max_batch_tokens=9),
        EngineConfig(max_cache_tokens=320, max_reuse_tokens=0),
    ],
)
def test_every_way_of_decoding_gives_the_same_answers(
    tiny_checkpoint: Path,
    engine: Engine,
    questions: list[list[dict[str, Any]]],
    decoding: Decoding,
    config: EngineConfig,
) -> None:
    expected = [engine.chat(question, **OPTIONS) for question in questions]
    other = decode_with(Engine(tiny_checkpoint, config=config), decoding)
    assert_same(other.chat_many(questions, **OPTIONS), expected)


def test_answers_of_a_fixed_shape_follow_a_grammar_and_draw_their_own_numbers(
    tiny_checkpoint: Path, engine: Engine, questions: list[list[dict[str, Any]]]
) -> None:
    other = decode_with(Engine(tiny_checkpoint), "padded")
    digits = {"type": "regex", "pattern": "[0-9]{3}( [0-9]{2}){4}"}
    for options in (
        {"max_tokens": 20, "response_format": digits},
        {"max_tokens": 20, "temperature": 0.9, "seed": 7, "repetition_penalty": 1.2},
    ):
        theirs = engine.chat_many(questions, **options)
        ours = other.chat_many(questions, **options)
        assert [each.token_ids for each in ours] == [each.token_ids for each in theirs]
    steps = other._runner._fixed_steps
    assert steps is not None
    assert {1, 4} <= {shape.count for shape in steps._steps}  # the format forces a space


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> LanguageModel:
    return load_model(tiny_checkpoint, dtype="float32", device="cpu")


ROWS = [
    Row([5], 0, torch.tensor([[0], [0], [0]]), [2]),
    Row([9], 0, torch.tensor([[4], [4], [4]]), [6]),
]


@torch.inference_mode()
def test_a_step_is_recorded_once_for_each_shape_and_reads_new_inputs(model: LanguageModel) -> None:
    recorded: list[Run] = []

    def record(run: Run) -> Run:
        recorded.append(run)
        return run

    cache = PagedCache(8, CPU, is_batched=True)
    steps = FixedSteps(model, cache, device=CPU, capture=record)
    both = steps.forward(ROWS)
    one = steps.forward(ROWS[1:])
    again = steps.forward(ROWS[::-1])
    assert both is not None
    assert one is not None
    assert again is not None
    assert len(recorded) == 2
    torch.testing.assert_close(one[0], both[1])
    torch.testing.assert_close(again, both.flip(0))
    assert not torch.allclose(both[0], both[1])


TEXT = TextConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    rope_scaling=RopeScaling(),
    attention_bias=False,
    qk_norm=True,
    head_dim=8,
)
EXPERTS = MoeConfig(
    num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True
)
QWEN = QWenConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    kv_channels=8,
    max_position_embeddings=128,
    seq_length=16,
    layer_norm_epsilon=1e-6,
    rotary_emb_base=1e4,
    use_dynamic_ntk=True,
    use_logn_attn=True,
)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(CausalLM(TEXT), id="text"),
        pytest.param(CausalLM(replace(TEXT, moe=EXPERTS)), id="experts"),
        pytest.param(QWenLMHeadModel(QWEN), id="first generation"),
    ],
)
@torch.inference_mode()
def test_every_architecture_takes_padding(model: LanguageModel) -> None:
    """Padding stands at position 0 of a prompt of no tokens, which no real token does."""
    position_ids = model.place([3, 5, 7]).prompt
    rows = [Row([3 + 2 * at], 0, position_ids[:, at : at + 1], [at]) for at in range(3)]
    logits = FixedSteps(model, PagedCache(8, CPU, is_batched=True), device=CPU).forward(rows)
    hidden = model.embed(torch.tensor([3, 5, 7]))
    assert logits is not None
    torch.testing.assert_close(logits, model(hidden, position_ids, NoCache([1, 1, 1])))


@torch.inference_mode()
def test_padding_touches_no_block_of_a_request(model: LanguageModel) -> None:
    cache = PagedCache(8, CPU, is_batched=True)
    like = torch.empty(1, 2, 8)
    for layer in range(2):
        for pair in cache.storage.pair(layer, like, num_rows=1):
            pair.fill_(3)
    FixedSteps(model, cache, device=CPU).forward([*ROWS, ROWS[0]])
    keys, _ = cache.storage.pair(0, like, num_rows=1)
    written = (keys != 3).flatten(1).any(dim=1).nonzero().flatten().tolist()
    assert written == [2 * 16, 6 * 16, cache.padding_block * 16]


def test_a_model_that_cannot_be_recorded_goes_on_without(
    model: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(run: Run) -> Run:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    steps = FixedSteps(model, PagedCache(8, CPU, is_batched=True), device=CPU, capture=refuse)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        assert steps.forward(ROWS) is None
        assert steps.forward(ROWS) is None
    assert [record.message for record in caplog.records] == [
        "decoding without CUDA graphs error=operation not permitted when stream is capturing"
    ]


@torch.inference_mode()
def test_passes_that_are_watched_are_computed_one_by_one(tiny_checkpoint: Path) -> None:
    watched = load_model(tiny_checkpoint, dtype="float32", device="cpu")
    steps = FixedSteps(watched, PagedCache(8, CPU, is_batched=True), device=CPU)
    hook = watched.register_forward_hook(lambda *_: None)
    assert steps.forward(ROWS) is None
    hook.remove()
    assert steps.forward(ROWS) is not None


def row(num_new: int, stop: int, num_rows: int = 1) -> Row:
    return Row([1] * num_new, stop - num_new, torch.zeros(1, num_new), [], num_rows)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(1, 1)], Shape(1, 1, 1, 16)),
        ([row(1, 256)] * 3, Shape(4, 1, 1, 16)),
        ([row(1, 9)] * 7 + [row(2, 1500)], Shape(8, 4, 1, 96)),
        ([row(1, 9), row(5, 300, 5)], Shape(2, 16, 16, 32)),
        ([row(1, 257)] * 64, Shape(64, 1, 1, 32)),
        ([row(1, 10)] * 65, None),
        ([row(17, 20)], None),
        ([row(1, 32_769)], None),
        ([row(1, 8192)] * 64, None),
        ([row(5, 30)] * 17, None),
    ],
)
def test_the_smallest_shape_that_holds_a_step_is_taken(
    rows: list[Row], expected: Shape | None
) -> None:
    assert find_shape(rows) == expected


@torch.inference_mode()
def test_several_new_tokens_give_the_wanted_rows(model: LanguageModel) -> None:
    """Forced tokens and drafts: a request has more tokens than another, and wants more rows."""
    ids = [5, 8, 11, 17, 20, 40, 41]
    position_ids = model.place(ids).prompt
    whole = model(model.embed(torch.tensor(ids)), position_ids, NoCache([7]))
    steps = FixedSteps(model, PagedCache(8, CPU, is_batched=True), device=CPU)
    first, second = (
        [Row(ids[:1], 0, position_ids[:, :1], [2]), Row(ids[:3], 0, position_ids[:, :3], [5], 3)],
        [
            Row(ids[1:6], 1, position_ids[:, 1:6], [2], 2),
            Row(ids[3:4], 3, position_ids[:, 3:4], [5]),
        ],
    )
    torch.testing.assert_close(steps.forward(first), whole[[0, 0, 1, 2]])
    torch.testing.assert_close(steps.forward(second), whole[[4, 5, 3]])


def test_shapes_grow_and_hold_whole_blocks() -> None:
    assert sorted(BATCH_SIZES) == list(BATCH_SIZES)
    assert sorted(LENGTHS) == list(LENGTHS)
    assert sorted(COUNTS) == list(COUNTS)
    assert all(length % 16 == 0 for length in LENGTHS)
    assert COUNTS[-1] == MAX_NEW_TOKENS
    assert BATCH_SIZES[0] * LENGTHS[-1] <= MAX_GATHERED_ROWS


@pytest.mark.parametrize(
    ("device", "use_graphs", "config", "expected"),
    [
        ("cpu", True, TEXT, "alone"),
        ("cuda", True, TEXT, "graphs"),
        ("cuda:1", False, TEXT, "batched"),
        ("cuda", True, replace(TEXT, moe=EXPERTS), "batched"),
        ("mps", True, TEXT, "batched"),
    ],
)
def test_devices_decode_in_their_own_way(
    device: str, *, use_graphs: bool, config: TextConfig, expected: Decoding
) -> None:
    model = CausalLM(config)
    assert choose_decoding(model, torch.device(device), use_graphs=use_graphs) == expected
