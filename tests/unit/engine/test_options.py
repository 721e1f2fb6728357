"""Options are checked once, with a sentence for each that cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest

from qianyan.engine.options import (
    DEFAULT_MAX_TOKENS,
    ChatOptions,
    GenerationDefaults,
    Lengths,
    PromptSize,
    Sampling,
    check_names,
    read_generation_defaults,
    to_sampling,
)
from qianyan.errors import CapacityError, InputError

DEFAULTS = GenerationDefaults(
    stop_token_ids=frozenset({7}), temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05
)


LENGTHS = Lengths(max_model_len=4096, max_cache_tokens=9000)


def sample(options: ChatOptions, defaults: GenerationDefaults = DEFAULTS) -> Sampling:
    prompt = PromptSize(num_tokens=100)
    return to_sampling(options, defaults, prompt=prompt, lengths=LENGTHS, vocab_size=300)


def test_the_checkpoint_fills_in_what_the_caller_leaves_out() -> None:
    sampling = sample({"temperature": 0.2, "top_p": None})
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.2, 0.8, 20)
    assert sampling.stop_token_ids == {7}


def test_without_any_word_on_it_decoding_is_greedy() -> None:
    assert sample({}, GenerationDefaults()) == Sampling(max_tokens=DEFAULT_MAX_TOKENS)


def test_the_default_length_shrinks_to_the_room_left() -> None:
    sampling = to_sampling({}, DEFAULTS, prompt=PromptSize(num_tokens=4000), lengths=LENGTHS)
    assert sampling.max_tokens == 96


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": -1}, "temperature is -1; expected 0 to 2."),
        ({"temperature": float("nan")}, "temperature is 'nan'; expected 0 to 2."),
        ({"temperature": "hot"}, "temperature is 'hot'; expected 0 to 2."),
        ({"temperature": True}, "temperature is 'True'; expected 0 to 2."),
        (
            {"loop_tokens": 9},
            "loop_tokens is 9; expected 0 for never, or from 64: what is shorter is found in "
            "ordinary tables.",
        ),
        ({"loop_tokens": -1}, "loop_tokens is -1; expected 0 to 1000000."),
        ({"min_p": 1.1}, "min_p is 1.1; expected 0 to 1."),
        ({"frequency_penalty": -3}, "frequency_penalty is -3; expected -2 to 2."),
        ({"logit_bias": [1]}, "logit_bias is '[1]'; expected token ids with numbers."),
        ({"logit_bias": {"x": 1}}, "logit_bias names the token 'x'; expected an id below 300."),
        ({"logit_bias": {300: 1}}, "logit_bias names the token '300'; expected an id below 300."),
        ({"logit_bias": {-1: 1}}, "logit_bias names the token '-1'; expected an id below 300."),
        ({"logit_bias": {"7": 101}}, "logit_bias.7 is 101; expected -100 to 100."),
        (
            {"logit_bias": dict.fromkeys(range(1025), 1)},
            "logit_bias has 1025 tokens; expected at most 1024.",
        ),
        ({"thinking_budget": -1}, "thinking_budget is -1; expected 0 to 1000000."),
        (
            {"max_completion_tokens": 0},
            "max_completion_tokens is 0; expected a whole number from 1.",
        ),
        ({"top_p": 0}, "top_p is 0; expected above 0, at most 1."),
        ({"top_p": 1.5}, "top_p is 1.5; expected above 0, at most 1."),
        ({"top_k": -1}, "top_k is -1; expected 0 to 1000000."),
        ({"top_k": 2.5}, "top_k is '2.5'; expected a whole number from 0 to 1000000."),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; expected above 0, at most 10."),
        ({"presence_penalty": 3}, "presence_penalty is 3; expected -2 to 2."),
        ({"seed": -5}, "seed is -5; expected 0 to 9223372036854775807."),
        ({"priority": 101}, "priority is 101; expected -100 to 100."),
        ({"logprobs": 21}, "logprobs is 21; expected 0 to 20."),
        ({"max_tokens": 0}, "max_tokens is 0; expected a whole number from 1."),
        ({"max_tokens": 1.5}, "max_tokens is '1.5'; expected a whole number from 1."),
        ({"stop": 5}, "stop is '5'; expected a string or a list of strings."),
        ({"stop": ["a", ""]}, "A stop string has 0 characters; expected 1 to 256."),
        ({"stop": ["x"] * 17}, "stop has 17 strings; expected at most 16."),
    ],
)
def test_a_value_outside_its_range_is_named_with_its_range(options: Any, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        sample(options)
    assert str(caught.value) == sentence


def test_too_many_tokens_are_a_matter_of_capacity() -> None:
    with pytest.raises(CapacityError, match="max_tokens is 90000; expected at most 4096 minus"):
        sample({"max_tokens": 90000})
    with pytest.raises(CapacityError, match="The prompt is 4096 tokens; expected at most 4095"):
        to_sampling({}, DEFAULTS, prompt=PromptSize(num_tokens=4096), lengths=LENGTHS)


def test_a_prompt_that_is_too_long_is_told_what_binds_and_the_way_out() -> None:
    seeing = PromptSize(num_tokens=5000, num_vision_tokens=4800)
    tight = Lengths(max_model_len=32768, max_cache_tokens=4096)
    with pytest.raises(CapacityError) as caught:
        to_sampling({}, DEFAULTS, prompt=seeing, lengths=tight)
    assert str(caught.value) == (
        "The prompt is 5000 tokens, 4800 of them pictures and videos; expected at most 4095, one "
        "less than fit: max_cache_tokens is 4096, and the model could take 32768. Send less text "
        "or fewer pictures, or lower max_pixels, or raise max_cache_tokens."
    )
    with pytest.raises(CapacityError) as caught:
        to_sampling({}, DEFAULTS, prompt=PromptSize(num_tokens=5000), lengths=LENGTHS)
    assert str(caught.value) == (
        "The prompt is 5000 tokens; expected at most 4095, one less than fit: "
        "the model's length is 4096. Send less text."
    )


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"'temperatur' is not an option.*mean temperature\?"):
        check_names({"temperatur": 1})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({}, {}, GenerationDefaults(stop_token_ids=frozenset({9}))),
        ({}, {"eos_token_id": 3}, GenerationDefaults(stop_token_ids=frozenset({3}))),
        (
            {},
            {"text_config": {"eos_token_id": 4}},
            GenerationDefaults(stop_token_ids=frozenset({4})),
        ),
        (
            {"eos_token_id": [1, 2], "do_sample": True, "top_k": 1, "repetition_penalty": 1.05},
            {"eos_token_id": 3},
            GenerationDefaults(
                stop_token_ids=frozenset({1, 2}),
                temperature=1.0,
                top_k=1,
                repetition_penalty=1.05,
            ),
        ),
        (  # what does not sample ignores the numbers of sampling
            {"eos_token_id": 1, "temperature": 0.7, "top_k": 20},
            {},
            GenerationDefaults(stop_token_ids=frozenset({1})),
        ),
    ],
)
def test_defaults_come_from_the_checkpoint(
    generation: dict[str, Any],
    config: dict[str, Any],
    expected: GenerationDefaults,
    tmp_path: Path,
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_generation_defaults(tmp_path, eos_token_id=9) == expected


@pytest.mark.parametrize(
    ("options", "may_think", "answer", "every"),
    [
        ({}, False, DEFAULT_MAX_TOKENS, DEFAULT_MAX_TOKENS),
        ({}, True, DEFAULT_MAX_TOKENS, 3996),
        ({"max_tokens": 9}, False, 9, 9),
        ({"max_tokens": 9}, True, 9, 3996),
        ({"max_completion_tokens": 3000}, False, 3000, 3000),
        ({"max_completion_tokens": 3000}, True, 3000, 3000),
        ({"max_tokens": 9, "max_completion_tokens": 5}, False, 5, 5),
        ({"max_tokens": 9, "max_completion_tokens": 50}, True, 9, 50),
    ],
)
def test_the_answer_is_bounded_and_all_that_comes(
    options: ChatOptions, may_think: bool, answer: int, every: int
) -> None:
    prompt = PromptSize(num_tokens=100)
    closing_tokens = 12 if may_think else None
    sampling = to_sampling(
        options, DEFAULTS, prompt=prompt, lengths=LENGTHS, closing_tokens=closing_tokens
    )
    assert (sampling.max_tokens, sampling.max_output_tokens) == (answer, every)


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ({}, None),
        ({"thinking_budget": 500}, 500),
        ({"thinking_budget": 10_000, "max_tokens": 9}, 3996 - 12 - 9),
        ({"thinking_budget": 10_000, "max_tokens": 3000}, (3996 - 12) // 2),
        ({"thinking_budget": 0}, 0),
    ],
)
def test_a_budget_leaves_room_for_the_answer(options: ChatOptions, budget: int | None) -> None:
    prompt = PromptSize(num_tokens=100)
    sampling = to_sampling(options, DEFAULTS, prompt=prompt, lengths=LENGTHS, closing_tokens=12)
    assert sampling.thinking_budget == budget


def test_a_logit_bias_is_read_with_keys_as_json_has_them() -> None:
    assert sample({"logit_bias": {"7": -100, "12": 2.5}}).logit_bias == ((7, -100.0), (12, 2.5))
    assert sample({"logit_bias": {7: 1}}).logit_bias == ((7, 1.0),)
