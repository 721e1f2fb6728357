"""The engine on whole folders of the first generation, as their authors publish them.

A folder has qwen.tiktoken and `chat_format` where later ones have tokenizer.json and a template.
The model itself is compared with its oracles in `test_qwen.py`; here the engine's answers, with
its cache, its batches and what it reads from the folder, are compared with single passes of it.
"""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.engine.scheduler import EngineConfig
from qianyan.errors import InputError, MediaError
from qianyan.inputs.processor import ModelInputs
from qianyan.models.attention import NoCache
from qianyan.models.qwen import QWenLMHeadModel, qwen_config
from qianyan.models.weights import save_checkpoint

NUM_TOKENS = 32
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = [bytes([byte]) for byte in [*PRINTABLE, *(b for b in range(256) if b not in PRINTABLE)]]
TOKENS = [*BYTES, b"fi", b"re", b"fire"]
CONFIG: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "kv_channels": 64,
    "max_position_embeddings": 1024,
    "seq_length": 64,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "no_bias": True,
    "visual": {
        "heads": 2,
        "image_size": 112,
        "image_start_id": len(TOKENS) + 208 + 6,
        "layers": 2,
        "mlp_ratio": 2.5,
        "output_dim": 128,
        "patch_size": 14,
        "width": 32,
        "n_queries": 16,
    },
}


@pytest.fixture(scope="session")
def model() -> QWenLMHeadModel:
    """Weights under which every parameter matters."""
    model = QWenLMHeadModel(qwen_config(CONFIG)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif parameter.requires_grad:
                parameter.copy_(0.1 * noise + (0 if name.endswith("bias") else 1))
    return model


@pytest.fixture(scope="session")
def make_engine(
    model: QWenLMHeadModel, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Engine]:
    """Give a function that opens the folder with one `chat_format` or the other."""

    def make(chat_format: str) -> Engine:
        folder = tmp_path_factory.mktemp(chat_format)
        save_checkpoint(model, folder)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        generation = {"chat_format": chat_format, "eos_token_id": len(TOKENS), "top_k": 0}
        (folder / "generation_config.json").write_text(json.dumps(generation))
        lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(TOKENS))
        (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
        # Prompts come in chunks, so that what a chunk does not see must be in the cache.
        return Engine(folder, config=EngineConfig(max_batch_tokens=48))

    return make


@pytest.fixture(scope="session", params=["chatml", "raw"])
def engine(make_engine: Callable[[str], Engine], request: pytest.FixtureRequest) -> Engine:
    return make_engine(request.param)


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (91, 137, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def user(*parts: str | Image.Image) -> dict[str, Any]:
    kinds = ("text" if isinstance(part, str) else "image" for part in parts)
    content = [{"type": kind, kind: part} for kind, part in zip(kinds, parts, strict=True)]
    return {"role": "user", "content": content}


CONVERSATIONS = {
    "text": [user("Is there a fire in the hall?")],
    "text beyond the trained length": [user("fire " * 120)],
    "one picture": [user(noise(1), "What burns?")],
    "two pictures": [user(noise(2), "and", noise(3), "differ?")],
    "two turns": [
        user(noise(4), "What is it?"),
        {"role": "assistant", "content": "<ref>A fire</ref><box>(1,2),(3,4)</box>"},
        user("And here?", noise(5)),
    ],
}


def expected_tokens(model: QWenLMHeadModel, inputs: ModelInputs, vocab_size: int) -> list[int]:
    """Greedy tokens, each from one pass over everything before it."""
    ids, grids = inputs.prompt_token_ids, inputs.grid_thw
    features = None
    if inputs.pixel_values is not None:
        features = model.encode_images(torch.from_numpy(inputs.pixel_values), grids)
    prompt, placed = model.embed(torch.tensor(ids), features), model.place(ids, grids)
    answer: list[int] = []
    for _ in range(NUM_TOKENS):
        words = model.embed(torch.tensor(answer, dtype=torch.long))
        hidden = torch.cat((prompt, words))
        total = len(hidden)
        logits = model(hidden, placed.at(0, total), NoCache([total]), torch.tensor([total - 1]))
        answer.append(int(logits[0, :vocab_size].argmax()))
    return answer


@torch.inference_mode()
def test_a_batch_of_all_kinds_gets_the_greedy_tokens_of_each_alone(
    engine: Engine, model: QWenLMHeadModel
) -> None:
    completions = engine.chat_many(list(CONVERSATIONS.values()), max_tokens=NUM_TOKENS)
    vocab_size = engine.processor.tokenizer.vocab_size
    for messages, completion in zip(CONVERSATIONS.values(), completions, strict=True):
        expected = expected_tokens(model, engine.processor(messages), vocab_size)
        assert list(completion.token_ids) == expected[: len(completion.token_ids)]
        assert len(completion.token_ids) == NUM_TOKENS or completion.finish_reason == "stop"


def test_a_picture_named_in_a_text_is_the_picture_sent_as_a_part(
    make_engine: Callable[[str], Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slots hold other tokens, which the same features overwrite."""
    engine = make_engine("chatml")
    noise(6).save(tmp_path / "p.png")
    monkeypatch.chdir(tmp_path)
    part = [user(noise(6), "What burns?")]
    named = [{"role": "user", "content": "Picture 1: <img>p.png</img>\nWhat burns?"}]
    first, second = engine.chat_many([part, named], max_tokens=NUM_TOKENS)
    assert first.token_ids == second.token_ids
    assert first.images == second.images
    start = CONFIG["visual"]["image_start_id"]
    ids = second.prompt_token_ids
    place = ids.index(start)
    assert ids[place + 1 : place + 18] == [*b"p.png", *[start + 2] * 11, start + 1]
    assert first.images[0].seen_wh == (112, 112)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("see <img> there", InputError),
        ("<img><imgpad></img>", InputError),
        ("<img>no-such-file.png</img>", MediaError),
        ("<img></img>", InputError),
    ],
)
def test_texts_that_name_no_picture_are_refused_before_anything_runs(
    engine: Engine, content: str, error: type[InputError]
) -> None:
    with pytest.raises(error):
        engine.chat([{"role": "user", "content": content}], max_tokens=1)


def test_an_answer_ends_at_the_tokens_of_its_format(make_engine: Callable[[str], Engine]) -> None:
    ends = {"chatml": ("<|im_end|>", "<|im_start|>", "<|endoftext|>"), "raw": ("<|endoftext|>",)}
    for chat_format, tokens in ends.items():
        engine = make_engine(chat_format)
        ids = {engine.processor.tokenizer.token_id(token) for token in tokens}
        assert engine._defaults.stop_token_ids == ids


def test_answers_can_be_held_to_a_form(engine: Engine) -> None:
    """The grammar's compiler reads this vocabulary as it reads the later ones."""
    schema = {
        "type": "object",
        "properties": {"hazard": {"enum": ["fire", "none"]}},
        "required": ["hazard"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = engine.chat(CONVERSATIONS["one picture"], max_tokens=60, response_format=form)
    assert json.loads(answer.text)["hazard"] in ("fire", "none")


def test_beginnings_are_shared_only_by_prompts_of_one_length(
    make_engine: Callable[[str], Engine], model: QWenLMHeadModel
) -> None:
    """Beyond the trained length the keys depend on the prompt's length, not on its beginning."""
    engine = make_engine("raw")
    vocab_size = engine.processor.tokenizer.vocab_size
    start = "The hall has three doors. "
    texts = [start * 2, start * 3, start * 6, start * 3, start * 6]  # trained length: 64 bytes
    cached = []
    for text in texts:
        done = engine.chat([user(text)], max_tokens=NUM_TOKENS, temperature=0)
        expected = expected_tokens(model, engine.processor([user(text)]), vocab_size)
        assert list(done.token_ids) == expected[: len(done.token_ids)]
        cached.append(done.usage.cached_tokens)
    assert cached[1:3] == [0, 0]
    assert all(cached[3:])
