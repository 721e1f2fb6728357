"""A small Qwen3 that learnt a few replies by heart: reasoning, calls, and forms after thinking."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from torch.nn.functional import cross_entropy

from qianyan.engine.engine import Engine
from qianyan.engine.loops import Loop
from qianyan.engine.reply import CLOSING, CLOSING_WORDS, ToolCall
from qianyan.engine.request import Finished, TokenText
from qianyan.errors import InputError
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
    done = thinker.chat(ask("why"), max_completion_tokens=4, temperature=0)
    assert (done.finish_reason, done.text) == ("length", "")
    assert done.reasoning


def test_a_budget_ends_the_reasoning_and_the_answer_follows(thinker: Engine) -> None:
    done = thinker.chat(ask("why"), max_tokens=60, temperature=0, thinking_budget=3)
    whole = thinker.processor.tokenizer.decode(done.token_ids)
    assert done.reasoning == "it"  # three tokens: a line break and two letters
    assert whole.startswith("<think>\nit\n\nConsidering the limited time by the user")
    assert "directly now.\n</think>\n\n" in whole
    assert (done.usage.reasoning_tokens, done.finish_reason) == (3, "stop")
    assert done.notes == ("the reasoning was ended at its budget of 3 tokens",)
    assert "Considering" not in done.text
    closing = len(thinker.processor.tokenizer.encode(CLOSING_WORDS + CLOSING))
    assert done.usage.forwarded_tokens == done.usage.completion_tokens - closing


def test_a_budget_that_is_not_reached_changes_nothing(thinker: Engine) -> None:
    free = thinker.chat(ask("why"), max_tokens=60, temperature=0)
    done = thinker.chat(ask("why"), max_tokens=60, temperature=0, thinking_budget=50)
    assert done == free
    assert free.usage.reasoning_tokens == len("\nit glows\n")


def test_a_budget_of_nothing_goes_straight_to_the_answer(thinker: Engine) -> None:
    done = thinker.chat(ask("why"), max_tokens=60, temperature=0, thinking_budget=0)
    assert (done.reasoning, done.text) == (None, "Fire.")
    assert done.usage.reasoning_tokens == 0


def test_a_budget_of_nothing_closes_what_the_template_opened(folder: Path) -> None:
    engine = Engine(folder)
    engine.processor.template = type(engine.processor.template)(
        ALWAYS.replace("enable_thinking", "thinks")
    )
    done = engine.chat(ask("why"), max_tokens=60, temperature=0, thinking_budget=0)
    prompt = engine.processor.tokenizer.decode(done.prompt_token_ids)
    whole = engine.processor.tokenizer.decode(done.token_ids)
    assert (prompt + whole).count("<think>\n\n</think>\n\n") == 1
    assert (done.reasoning, done.usage.reasoning_tokens) == ("", 0)


def test_after_a_budget_the_answer_keeps_its_form(thinker: Engine) -> None:
    done = thinker.chat(
        ask("is it"),
        max_tokens=60,
        temperature=0,
        enable_thinking=True,
        response_format=FORM,
        thinking_budget=4,
    )
    assert done.reasoning == "may"
    assert done.text in ("yes", "no")


def test_streamed_pieces_leave_out_the_words_that_end_a_reasoning(thinker: Engine) -> None:
    *pieces, last = thinker.stream(ask("why"), max_tokens=60, temperature=0, thinking_budget=3)
    assert isinstance(last, Finished)
    texts = [piece for piece in pieces if isinstance(piece, TokenText)]
    assert [piece.token_id for piece in texts] == last.completion.token_ids
    assert "".join(piece.text for piece in texts if piece.is_reasoning) == "it"
    assert "".join(piece.text for piece in texts if not piece.is_reasoning) == last.completion.text


def test_max_tokens_counts_the_answer_and_max_completion_tokens_all(thinker: Engine) -> None:
    answer = thinker.chat(ask("why"), max_tokens=4, temperature=0)
    assert (answer.reasoning, answer.finish_reason) == ("it glows", "length")
    thought = answer.usage.reasoning_tokens
    assert answer.usage.completion_tokens == thought + len(("<think>", "</think>")) + 4
    every = thinker.chat(ask("why"), max_completion_tokens=4, temperature=0)
    assert (every.text, every.finish_reason) == ("", "length")
    assert every.usage.completion_tokens == 4
    both = thinker.chat(ask("why"), max_tokens=4, max_completion_tokens=6, temperature=0)
    assert both.usage.completion_tokens == 6


def test_told_not_to_think_both_lengths_count_the_same(thinker: Engine) -> None:
    how = {"temperature": 0, "enable_thinking": False}
    one = thinker.chat(ask("why"), max_tokens=3, **how)
    other = thinker.chat(ask("why"), max_tokens=20, max_completion_tokens=3, **how)
    assert one == other
    assert (one.finish_reason, one.usage.completion_tokens) == ("length", 3)


FOREVER = {
    "temperature": 0,
    "max_tokens": 400,
    "response_format": {"type": "regex", "pattern": "(no, )*!"},
}


def test_endless_repetition_ends_the_answer_and_says_so(thinker: Engine) -> None:
    """Every token of the pattern but the last choice is forced; a bias makes it go on for ever."""
    bias = {thinker.processor.tokenizer.encode("n")[0]: 100}
    done = thinker.chat(ask("why"), logit_bias=bias, loop_tokens=80, **FOREVER)
    assert done.text.startswith("no, no, no, ")
    assert (done.finish_reason, done.usage.completion_tokens) == ("length", 80)
    assert done.loop == Loop(period=4, repeats=20)
    assert done.notes == ("the answer ran in a loop and was ended: 4 tokens came 20 times",)


def test_repetition_goes_on_where_it_is_allowed_or_too_short(thinker: Engine) -> None:
    bias = {thinker.processor.tokenizer.encode("n")[0]: 100}
    for loop_tokens in (0, None):
        done = thinker.chat(ask("why"), logit_bias=bias, loop_tokens=loop_tokens, **FOREVER)
        assert (done.loop, done.usage.completion_tokens, done.notes) == (None, 400, ())


def test_a_required_call_comes_after_free_thinking(thinker: Engine) -> None:
    done = thinker.chat(
        ask("do"),
        max_tokens=120,
        temperature=0,
        tools=[RING],
        tool_choice="required",
        parallel_tool_calls=False,
        enable_thinking=True,
    )
    assert done.reasoning == "ring"
    assert [call.name for call in done.tool_calls] == ["ring"]
    assert (done.text, done.finish_reason) == ("", "stop")


def test_a_required_call_alone_asks_for_no_thinking(thinker: Engine) -> None:
    options = {"tools": [RING], "tool_choice": "required", "parallel_tool_calls": False}
    done = thinker.chat(ask("do"), max_tokens=120, temperature=0, **options)
    assert done.reasoning is None
    assert [call.name for call in done.tool_calls] == ["ring"]


def begun(question: str, text: Any, **more: Any) -> list[dict[str, Any]]:
    return [*ask(question), {"role": "assistant", "content": text, "partial": True, **more}]


@pytest.mark.parametrize("text", ["Fi", [{"type": "text", "text": "Fi"}]])
def test_a_begun_answer_goes_on_where_it_stands(thinker: Engine, text: Any) -> None:
    done = thinker.chat(begun("why", text), max_tokens=20, temperature=0)
    assert (done.reasoning, done.text) == (None, "re.")
    prompt = thinker.processor.tokenizer.decode(done.prompt_token_ids, skip_special=False)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nFi")


def test_a_begun_answer_closes_the_reasoning_that_a_template_opens(folder: Path) -> None:
    engine = Engine(folder)
    engine.processor.template = type(engine.processor.template)(
        ALWAYS.replace("enable_thinking", "thinks")
    )
    done = engine.chat(begun("why", "Fi"), max_tokens=4, temperature=0)
    prompt = engine.processor.tokenizer.decode(done.prompt_token_ids)
    assert prompt.endswith("<think>\n\n</think>\n\nFi")
    assert done.reasoning is None


def test_a_begun_answer_keeps_to_its_form(thinker: Engine) -> None:
    done = thinker.chat(begun("is it", "ye"), max_tokens=9, temperature=0, response_format=FORM)
    assert done.text == "s"
    with pytest.raises(InputError, match="beginning 'maybe' does not fit its format"):
        thinker.chat(begun("is it", "maybe"), max_tokens=9, response_format=FORM)


@pytest.mark.parametrize(
    ("messages", "options", "sentence"),
    [
        (begun("why", "Fi") + ask("and"), {}, r"messages\[1\] is partial; expected"),
        ([{"role": "user", "content": "x", "partial": True}], {}, r"messages\[0\] is partial"),
        ([{"role": "user", "content": "x", "partial": 1}], {}, r"messages\[0\].partial is '1'"),
        (begun("why", "Fi"), {"enable_thinking": True}, "goes on without enable_thinking"),
        (
            begun("why", "Fi", tool_calls=[{"function": {"name": "f", "arguments": "{}"}}]),
            {},
            "holds more than text",
        ),
    ],
)
def test_a_begun_answer_outside_the_form_is_refused(
    thinker: Engine, messages: list[dict[str, Any]], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        thinker.chat(messages, max_tokens=4, **options)
