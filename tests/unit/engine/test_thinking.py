"""A small Qwen3 that learnt a few replies by heart: reasoning, calls, and forms after thinking."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from torch.nn.functional import cross_entropy

from qianyan.engine.engine import Engine
from qianyan.engine.reply import ToolCall
from qianyan.engine.request import Finished, TokenText
from qianyan.inputs.processor import Processor
from qianyan.models.attention import NoCache
from qianyan.models.registry import build_model, qwen3_config
from qianyan.models.weights import initialise, save_checkpoint

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
ALWAYS = TEMPLATE.replace("<think>\n\n</think>\n\n{% endif %}", "{% endif %}<think>\n")
RING = {"type": "function", "function": {"name": "ring", "parameters": {}}}
CALL = '<tool_call>\n{"name": "ring", "arguments": {"hall": 3}}\n</tool_call>'
FORM = {"type": "regex", "pattern": "(yes|no)"}
LESSONS: list[tuple[str, dict[str, Any], str]] = [
    ("why", {}, "<think>\nit glows\n</think>\n\nFire."),
    ("why", {"enable_thinking": False}, "Fire."),
    ("do", {"tools": [RING]}, f"<think>\nring\n</think>\n\nNow.\n{CALL}"),
    ("is it", {"enable_thinking": True}, "<think>\nmaybe\n</think>\n\nyes"),
    ("is it", {"enable_thinking": False}, "no"),
]


def ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def folder(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thinking")
    tokenizer = Tokenizer.from_str(tiny_tokenizer.to_str())
    for token in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "qwen3",
        "vocab_size": 288,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": None,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(3)
    model = build_model(qwen3_config(config))
    initialise(model, std=0.1)
    learn_by_heart(model, Processor.from_folder(folder))
    save_checkpoint(model, folder)
    return folder


def learn_by_heart(model: Any, processor: Processor) -> None:
    lessons = []
    for question, options, answer in LESSONS:
        prompt = processor(ask(question), **options).prompt_token_ids
        lessons.append((prompt, processor.tokenizer.encode(f"{answer}<|im_end|>")))
    ids = [prompt + answer[:-1] for prompt, answer in lessons]
    lengths = [len(each) for each in ids]
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    at = torch.cat(
        [
            torch.arange(start + len(prompt) - 1, start + length)
            for start, length, (prompt, _) in zip(starts, lengths, lessons, strict=True)
        ]
    )
    targets = torch.tensor([token for _, answer in lessons for token in answer])
    packed = torch.tensor([token for each in ids for token in each])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(400):
        loss = cross_entropy(model(model.embed(packed), positions, NoCache(lengths), at), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            return
    raise AssertionError(f"not learnt by heart: loss {loss.item():.3f}")


@pytest.fixture(scope="module")
def thinker(folder: Path) -> Engine:
    return Engine(folder)


def test_reasoning_and_answer_come_apart(thinker: Engine) -> None:
    done = thinker.chat(ask("why"), max_tokens=60, temperature=0)
    assert (done.reasoning, done.text) == ("it glows", "Fire.")
    assert "<think>" in thinker.processor.tokenizer.decode(done.token_ids)


def test_a_model_told_not_to_think_has_no_reasoning(thinker: Engine) -> None:
    done = thinker.chat(ask("why"), max_tokens=60, temperature=0, enable_thinking=False)
    assert (done.reasoning, done.text) == (None, "Fire.")


def test_a_stream_says_which_text_is_reasoning(thinker: Engine) -> None:
    events = list(thinker.stream(ask("why"), max_tokens=60, temperature=0))
    pieces = [event for event in events if isinstance(event, TokenText)]
    assert "".join(event.text for event in pieces if event.is_reasoning) == "it glows"
    assert "".join(event.text for event in pieces if not event.is_reasoning) == "Fire."
    assert isinstance(events[-1], Finished)
    assert events[-1].completion.reasoning == "it glows"


def test_calls_are_read_where_tools_were_offered(thinker: Engine) -> None:
    done = thinker.chat(ask("do"), max_tokens=120, temperature=0, tools=[RING])
    assert done.reasoning == "ring"
    assert done.text == "Now."
    assert done.tool_calls == (ToolCall(name="ring", arguments='{"hall": 3}'),)


def test_a_form_holds_for_the_answer_and_leaves_thinking_free(thinker: Engine) -> None:
    done = thinker.chat(
        ask("is it"), max_tokens=60, temperature=0, enable_thinking=True, response_format=FORM
    )
    assert done.reasoning == "maybe"
    assert done.text == "yes"


def test_a_form_alone_asks_for_no_thinking(thinker: Engine) -> None:
    done = thinker.chat(ask("is it"), max_tokens=60, temperature=0, response_format=FORM)
    assert (done.reasoning, done.text) == (None, "no")


def test_a_template_that_opens_the_reasoning_needs_only_its_end(folder: Path) -> None:
    """QwQ's and the thinking-only models' prompts end with <think>."""
    engine = Engine(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == TEMPLATE
    engine.processor.template = type(engine.processor.template)(ALWAYS)
    done = engine.chat(ask("why"), max_tokens=60, temperature=0)
    assert done.reasoning is not None
    assert "<think>" not in done.reasoning + done.text


def test_a_thinking_model_without_stated_sampling_does_not_draw_greedily(
    folder: Path, thinker: Engine, engine: Engine
) -> None:
    """Greedy reasoning runs in loops; the model cards ask for sampling."""
    assert thinker._defaults.temperature == 0.6
    assert engine._defaults.temperature == 0.0
    (folder / "generation_config.json").write_text('{"do_sample": false}')
    assert Engine(folder)._defaults.temperature == 0.0
    (folder / "generation_config.json").unlink()


def test_reasoning_cut_by_the_length_has_no_answer(thinker: Engine) -> None:
    done = thinker.chat(ask("why"), max_tokens=4, temperature=0)
    assert (done.finish_reason, done.text) == ("length", "")
    assert done.reasoning
