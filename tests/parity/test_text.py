"""Our text models against transformers, float32, on small random checkpoints of each kind."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import pad
from torch.testing import assert_close

from qianyan.engine.engine import Engine
from qianyan.engine.scheduler import EngineConfig
from qianyan.models.attention import NoCache
from qianyan.models.registry import load_model
from qianyan.models.text import CausalLM
from qianyan.models.weights import save_checkpoint

assert_logits_equal = partial(assert_close, rtol=0, atol=1e-4)
GREEDY_TOKENS = 32
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
EXPERTS = {
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
WIDE_HEADS = {"head_dim": 32}  # 4 heads of 32 in a hidden size of 64
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen2, windows": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
            "num_hidden_layers": 3,
        },
    ),
    "qwen3": ("qwen3", WIDE_HEADS),
    "qwen3, tied": ("qwen3", {**WIDE_HEADS, "tie_word_embeddings": True}),
    "qwen3, yarn": ("qwen3", {**WIDE_HEADS, "rope_parameters": YARN}),
    "qwen3_moe": ("qwen3_moe", {**WIDE_HEADS, **EXPERTS}),
    "qwen3_moe, other": (
        "qwen3_moe",
        {
            **WIDE_HEADS,
            **EXPERTS,
            "num_experts_per_tok": 3,
            "norm_topk_prob": False,
            "decoder_sparse_step": 2,
            "num_hidden_layers": 4,
            "mlp_only_layers": [3],
        },
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, make_text_checkpoint: Callable[..., Path]) -> Path:
    """A small random checkpoint as transformers saves it."""
    model_type, text = KINDS[request.param]
    return make_text_checkpoint(model_type, **text)


@pytest.fixture(scope="module")
def ours(folder: Path) -> CausalLM:
    return load_model(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path, load_oracle: Callable[[Path], Any]) -> Any:
    return load_oracle(folder)


def ids(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count,), generator=generator).tolist()


def our_logits(model: CausalLM, *prompts: list[int]) -> list[torch.Tensor]:
    """Logits of several prompts in one packed pass."""
    lengths = [len(prompt) for prompt in prompts]
    hidden = torch.cat([model.embed(torch.tensor(prompt)) for prompt in prompts])
    positions = torch.cat([model.place(prompt).prompt for prompt in prompts], dim=1)
    return list(model(hidden, positions, NoCache(lengths)).split(lengths))


@pytest.mark.parametrize("count", [1, 9, 90])
@torch.inference_mode()
def test_logits_agree(ours: CausalLM, theirs: Any, count: int) -> None:
    """90 tokens are more than YaRN's trained length and many windows."""
    expected = theirs(torch.tensor([ids(count)])).logits[0]
    assert_logits_equal(our_logits(ours, ids(count))[0], expected)


@torch.inference_mode()
def test_a_packed_batch_gets_the_logits_of_the_padded_batch(ours: CausalLM, theirs: Any) -> None:
    prompts = [ids(5, 1), ids(40, 2), ids(17, 3)]
    padded = torch.stack([pad(torch.tensor(one), (40 - len(one), 0)) for one in prompts])
    mask = torch.stack([pad(torch.ones(len(one)), (40 - len(one), 0)) for one in prompts])
    expected = theirs(padded, attention_mask=mask.long()).logits
    for logits, row in zip(our_logits(ours, *prompts), expected, strict=True):
        assert_logits_equal(logits, row[-len(logits) :])


def test_the_engine_draws_the_same_greedy_tokens_cached_batched_and_in_chunks(
    folder: Path, theirs: Any
) -> None:
    talks = [[{"role": "user", "content": text}] for text in ("Is there a fire?", "火？", "a" * 50)]
    engine = Engine(folder, dtype="float32", config=EngineConfig(max_batch_tokens=16))
    together = engine.chat_many(talks, max_tokens=GREEDY_TOKENS, temperature=0)
    for talk, done in zip(talks, together, strict=True):
        num_tokens = engine.processor.tokenizer.vocab_size
        expected = theirs.generate(
            torch.tensor([done.prompt_token_ids]),
            attention_mask=torch.ones(1, len(done.prompt_token_ids), dtype=torch.long),
            suppress_tokens=list(range(num_tokens, theirs.config.vocab_size)),
            max_new_tokens=GREEDY_TOKENS,
            do_sample=False,
        )
        assert done.token_ids == expected[0, len(done.prompt_token_ids) :].tolist()
        assert len(done.token_ids) == GREEDY_TOKENS
        alone = Engine(folder, dtype="float32").chat(talk, max_tokens=8, temperature=0)
        assert alone.token_ids == done.token_ids[:8]


def test_the_hubs_config_is_the_same_model(folder: Path, ours: CausalLM, tmp_path: Path) -> None:
    """On the Hub the theta stands beside `rope_scaling`, and there are no layer types."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config.pop("layer_types", None)
    config["rope_theta"] = rope.pop("rope_theta")
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_checkpoint(ours, tmp_path)
    flat = load_model(tmp_path)
    assert flat.config == ours.config
    assert torch.equal(our_logits(flat, ids(9))[0], our_logits(ours, ids(9))[0])


@torch.inference_mode()
def test_what_we_save_loads_in_transformers(
    folder: Path, ours: CausalLM, load_oracle: Callable[[Path], Any], tmp_path: Path
) -> None:
    save_checkpoint(ours, tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    expected = load_oracle(tmp_path)(torch.tensor([ids(9)])).logits[0]
    assert_logits_equal(our_logits(ours, ids(9))[0], expected)


def test_tokens_that_are_picked_get_the_logits_they_get_among_all(ours: CausalLM) -> None:
    prompt = ids(40)
    hidden, position_ids = ours.embed(torch.tensor(prompt)), ours.place(prompt).prompt
    with torch.no_grad():
        every = ours(hidden, position_ids, NoCache([40]))
        for rows in ([39], [0, 7, 39], []):
            picked = torch.tensor(rows, dtype=torch.long)
            own = ours(hidden, position_ids, NoCache([40]), picked)
            assert_close(own, every[picked], rtol=1e-5, atol=1e-5)
