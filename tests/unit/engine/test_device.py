"""The engine on an accelerator against the engine on the processor; run with `-m gpu`.

Without a device every test skips and says so.
"""

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from qianyan.engine.cache import PagedCache
from qianyan.engine.engine import Engine
from qianyan.engine.graphs import CudaCapture, FixedSteps, Row
from qianyan.engine.request import Completion
from qianyan.engine.scheduler import EngineConfig
from qianyan.engine.upload import Upload
from qianyan.models.attention import NoCache, segment_attention
from qianyan.models.quantize import QuantizedLinear
from qianyan.models.registry import load_model
from qianyan.models.rope import RopeScaling
from qianyan.models.text import CausalLM, MoeConfig, TextConfig

pytestmark = pytest.mark.gpu

OPTIONS: dict[str, Any] = {"max_tokens": 14, "logprobs": 3}
TOLERANCE = 2e-3
"""Of log-probabilities in float32: another order of sums, on a model whose logits are large."""


@pytest.fixture(params=["cuda", "mps"])
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not getattr(torch, "cuda" if name == "cuda" else "mps").is_available():
        pytest.skip(f"this machine has no {name} device that PyTorch can use")
    return name


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("this machine has no cuda device that PyTorch can use")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module")
def questions() -> list[list[dict[str, Any]]]:
    """Nine questions of different lengths, three of them with pictures of different sizes."""
    contents: list[Any] = ["the box", "x" * 200, "in", "12 boxes in the box", "y" * 30, "z" * 300]
    for size in ((60, 90), (90, 60), (56, 56)):
        picture = {"type": "image", "image": Image.effect_noise(size, 90).convert("RGB")}
        contents.append([picture, {"type": "text", "text": "what burns"}])
    return [[{"role": "user", "content": content}] for content in contents]


@pytest.fixture(scope="module")
def expected(engine: Engine, questions: list[list[dict[str, Any]]]) -> list[Completion]:
    """What the processor says, one question at a time."""
    return [engine.chat(question, **OPTIONS) for question in questions]


def assert_near(ours: list[Completion], theirs: list[Completion]) -> None:
    assert [each.token_ids for each in ours] == [each.token_ids for each in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.logprobs is not None
        assert other.logprobs is not None
        for step, wanted in zip(one.logprobs, other.logprobs, strict=True):
            chosen = max(wanted, key=lambda token_id: wanted[token_id])
            assert step[chosen] == pytest.approx(wanted[chosen], abs=TOLERANCE)


def test_one_pass_gives_the_processors_logits(tiny_checkpoint: Path, device: str) -> None:
    ids = torch.arange(40) % 250
    rows = []
    for name in ("cpu", device):
        model = load_model(tiny_checkpoint, dtype="float32", device=name)
        positions = model.place(ids.tolist()).prompt.to(name)
        with torch.inference_mode():
            rows.append(model(model.embed(ids.to(name)), positions, NoCache([40])).cpu())
    assert_close(rows[1], rows[0], atol=TOLERANCE, rtol=1e-4)


def test_pictures_are_seen_alike(tiny_checkpoint: Path, device: str) -> None:
    grids = [(1, 4, 6), (1, 8, 4), (1, 4, 4)]
    count = sum(t * h * w for t, h, w in grids)
    pixels = torch.randn(count, 1176, generator=torch.Generator().manual_seed(1))
    features = []
    for name in ("cpu", device):
        model = load_model(tiny_checkpoint, dtype="float32", device=name)
        with torch.inference_mode():
            features.append(model.encode_images(pixels.to(name), grids).cpu())
    assert_close(features[1], features[0], atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_segments_of_any_lengths_are_attended_alike(device: str, dtype: torch.dtype) -> None:
    lengths = [64, 64, 32, 7, 64, 500]
    query, key, value = (torch.randn(sum(lengths), 4, 80).to(dtype) for _ in range(3))
    ours = segment_attention(*(each.to(device) for each in (query, key, value)), lengths)
    theirs = segment_attention(query.float(), key.float(), value.float(), lengths)
    assert_close(ours.cpu().float(), theirs, atol=1e-4 if dtype == torch.float32 else 3e-2, rtol=0)


def test_a_batch_gives_the_processors_answers(
    tiny_checkpoint: Path,
    device: str,
    questions: list[list[dict[str, Any]]],
    expected: list[Completion],
) -> None:
    engine = Engine(tiny_checkpoint, device=device)
    assert_near(engine.chat_many(questions, **OPTIONS), expected)
    assert_near([engine.chat(question, **OPTIONS) for question in questions], expected)


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(max_batch_tokens=9),
        EngineConfig(max_num_requests=3),
        EngineConfig(max_cache_tokens=400, max_reuse_tokens=0),  # some have to make way
        EngineConfig(use_graphs=False),
    ],
)
def test_limits_change_no_answer(
    tiny_checkpoint: Path,
    device: str,
    questions: list[list[dict[str, Any]]],
    expected: list[Completion],
    config: EngineConfig,
) -> None:
    engine = Engine(tiny_checkpoint, device=device, config=config)
    assert_near(engine.chat_many(questions, **OPTIONS), expected)


def test_graphs_are_recorded_and_change_no_answer(
    tiny_checkpoint: Path,
    cuda: torch.device,
    questions: list[list[dict[str, Any]]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = Engine(tiny_checkpoint, device=str(cuda), config=EngineConfig(use_graphs=False))
    graphs = Engine(tiny_checkpoint, device=str(cuda))
    with caplog.at_level(logging.WARNING):
        assert_near(graphs.chat_many(questions, **OPTIONS), plain.chat_many(questions, **OPTIONS))
    assert plain._runner._fixed_steps is None
    steps = graphs._runner._fixed_steps
    assert steps is not None
    assert steps._steps
    assert not caplog.records


def test_a_format_and_drawn_tokens_are_the_processors(
    tiny_checkpoint: Path, engine: Engine, device: str, questions: list[list[dict[str, Any]]]
) -> None:
    other = Engine(tiny_checkpoint, device=device)
    digits = {"type": "regex", "pattern": "[0-9]{3}( [0-9]{2}){4}"}
    for options in (
        {"max_tokens": 20, "response_format": digits},
        {"max_tokens": 12, "temperature": 0.8, "seed": 3, "repetition_penalty": 1.1},
    ):
        ours = other.chat_many(questions, **options)
        theirs = engine.chat_many(questions, **options)
        assert [each.token_ids for each in ours] == [each.token_ids for each in theirs]


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_multiply_as_on_the_processor(device: str, bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    layer = QuantizedLinear(256, 96, bits=bits, group_size=64, bias=True)
    layer.codes = torch.randint(0, 256, layer.codes.shape, generator=generator).to(torch.uint8)
    layer.zeros = torch.randint(0, 2**bits, layer.zeros.shape, generator=generator).to(torch.uint8)
    layer.scales = torch.rand(layer.scales.shape, generator=generator) / 100
    hidden = torch.randn(5, 256, generator=generator)
    with torch.inference_mode():
        theirs = layer(hidden)
        layer.use_kernels()
        ours = layer.to(device)(hidden.to(device)).cpu() if layer.layout == "rows" else None
    if ours is None:
        pytest.skip("this processor's kernels lay codes differently; load on the device instead")
    assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_model_quantised_on_the_device_answers_as_on_the_processor(
    tiny_checkpoint: Path, device: str, questions: list[list[dict[str, Any]]], quantize: str
) -> None:
    here = Engine(tiny_checkpoint, quantize=quantize, dtype="float32")
    there = Engine(tiny_checkpoint, quantize=quantize, dtype="float32", device=device)
    assert_near(there.chat_many(questions, **OPTIONS), here.chat_many(questions, **OPTIONS))


def test_keys_stay_where_they_are(tiny_checkpoint: Path, cuda: torch.device) -> None:
    """Storage on CUDA is made once: nothing is copied when it fills, and graphs can read it."""
    engine = Engine(tiny_checkpoint, device=str(cuda))
    storage = engine._runner._cache.storage
    engine.chat([{"role": "user", "content": "a"}], max_tokens=1)
    before = [pair[0].data_ptr() for pair in storage._layers.values()]
    engine.chat_many([[{"role": "user", "content": "b" * 400}]] * 5, max_tokens=30)
    assert [pair[0].data_ptr() for pair in storage._layers.values()] == before
    assert all(len(pair[0]) == storage.num_rows for pair in storage._layers.values())


def test_memory_comes_back_when_an_engine_goes(
    tiny_checkpoint: Path, cuda: torch.device, questions: list[list[dict[str, Any]]]
) -> None:
    def work() -> None:
        engine = Engine(tiny_checkpoint, device=str(cuda))
        engine.chat_many(questions, max_tokens=6)

    def held() -> int:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(cuda)

    work()  # libraries keep their work space from here on
    before = held()
    for _ in range(3):
        work()
    assert held() <= before


@contextmanager
def waits() -> Iterator[list[warnings.WarningMessage]]:
    """Collect what PyTorch warns of while it watches for waits on the device."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_recorded_step_waits_for_the_device_once(
    tiny_checkpoint: Path, cuda: torch.device
) -> None:
    engine = Engine(tiny_checkpoint, device=str(cuda))
    stream = engine.stream([{"role": "user", "content": "count"}], max_tokens=40)
    for _ in range(8):
        next(stream)  # recorded by now
    with waits() as seen:
        engine.step()
    assert len([each for each in seen if "synchroniz" in str(each.message)]) == 1
    stream.close()  # type: ignore[attr-defined]


def test_what_is_uploaded_arrives_whole(device: str) -> None:
    upload = Upload(torch.device(device))
    pictures = [torch.randn(3000, 1176) for _ in range(4)]
    assert_close([upload(each).cpu() for each in pictures], pictures)
    parts = [torch.arange(5), torch.arange(6).view(3, 2)]
    assert_close([each.cpu() for each in upload.together(parts)], parts)


def test_a_model_that_cannot_be_recorded_decodes_without(
    cuda: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    """Experts are chosen on the host; the device works on after the failed recording."""
    experts = MoeConfig(
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True
    )
    config = TextConfig(
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
        moe=experts,
    )
    model = CausalLM(config).to(cuda)
    cache = PagedCache(8, cuda, is_batched=True)
    steps = FixedSteps(model, cache, device=cuda, capture=CudaCapture(cuda))
    rows = [Row([token_id], 0, torch.tensor([[0]]), [token_id]) for token_id in (3, 4)]
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        assert steps.forward(rows) is None
        assert steps.forward(rows) is None
    assert len(caplog.records) == 1
    assert torch.ones(2, device=cuda).sum().item() == 2
