"""Budgets of thinking: what words mean, and what comes over the wire in both dialects."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from tests import thinking_model

from qianyan.engine.engine import Engine
from qianyan.engine.options import ChatOptions
from qianyan.inputs.chat import ChatTemplate
from qianyan.server.errors import RefusedError
from qianyan.server.thinking import settle_thinking

ALWAYS = ChatTemplate(thinking_model.ALWAYS)
BY_SWITCH = ChatTemplate(thinking_model.BY_SWITCH)
NEVER = ChatTemplate("{{ messages }}")
GENERATION = "/api/v1/services/aigc/text-generation/generation"
BUDGET = 7
SAYS_A = {str(thinking_model.A): 100}
"""Whatever the random weights say."""


def settled(
    template: ChatTemplate, effort: str | None = None, **options: Any
) -> tuple[bool | None, int | None]:
    given: ChatOptions = options  # type: ignore[assignment]
    found = settle_thinking(given, effort, template, default_budget=100)
    assert options == given, "the caller's are left alone"
    return found.get("enable_thinking"), found.get("thinking_budget")


@pytest.mark.parametrize(
    ("effort", "budget"),
    [("minimal", 1024), ("low", 4096), ("medium", 16_384), ("high", 65_536), ("xhigh", 262_144)],
)
def test_an_effort_is_a_budget(effort: str, budget: int) -> None:
    assert settled(BY_SWITCH, effort) == (True, budget)
    assert settled(ALWAYS, effort, enable_thinking=True) == (True, budget)


def test_no_effort_is_no_thinking() -> None:
    assert settled(BY_SWITCH, "none") == (False, 0)
    assert settled(ALWAYS, "none") == (None, 0)
    assert settled(ALWAYS, enable_thinking=False) == (None, 0)
    assert settled(NEVER, "none") == (None, None)
    assert settled(NEVER, enable_thinking=False, thinking_budget=9) == (None, None)


def test_who_says_nothing_has_the_server_s_budget() -> None:
    assert settled(BY_SWITCH) == (None, 100)
    assert settled(BY_SWITCH, enable_thinking=True) == (True, 100)
    assert settled(BY_SWITCH, enable_thinking=False) == (False, None)
    assert settled(BY_SWITCH, thinking_budget=5_000) == (None, 5_000)
    assert settled(BY_SWITCH, max_completion_tokens=50) == (None, 25), "half is the answer's"
    assert settled(BY_SWITCH, max_completion_tokens=1) == (None, 1)
    assert settled(NEVER, max_completion_tokens=50) == (None, None)


@pytest.mark.parametrize(
    ("template", "effort", "options", "words"),
    [
        (BY_SWITCH, "most", {}, "expected one of none, minimal"),
        (BY_SWITCH, "low", {"thinking_budget": 9}, "Both"),
        (BY_SWITCH, "low", {"enable_thinking": False}, "says otherwise"),
        (BY_SWITCH, "none", {"enable_thinking": True}, "says otherwise"),
        (NEVER, "low", {}, "reasoning_effort asks for thinking"),
        (NEVER, None, {"enable_thinking": True}, "enable_thinking asks for thinking"),
    ],
)
def test_what_contradicts_itself_or_the_model_is_refused(
    template: ChatTemplate, effort: str | None, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RefusedError, match=words) as caught:
        settled(template, effort, **options)
    assert (caught.value.status, caught.value.code) == (400, "unsupported_value")


@pytest.fixture(scope="module")
def thinker(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A server whose model thinks as long as it may, and may for BUDGET tokens by default."""
    folder = tmp_path_factory.mktemp("thinker")
    thinking_model.write_thinking_model(folder, thinking_model.BY_SWITCH)
    with serve(model=Engine(folder), thinking_budget=BUDGET) as client:
        yield client


def chat(client: httpx2.Client, **fields: Any) -> httpx2.Response:
    messages = [{"role": "user", "content": "what burns"}]
    body = {
        "model": "judge",
        "messages": messages,
        "temperature": 0,
        "logit_bias": SAYS_A,
        **fields,
    }
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def thought(answer: dict[str, Any]) -> int:
    told: int = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    return told


def test_thinking_ends_at_the_server_s_budget_and_an_answer_follows(thinker: Any) -> None:
    answer = chat(thinker, max_tokens=9).json()
    (choice,) = answer["choices"]
    assert thought(answer) == BUDGET
    assert choice["message"]["reasoning_content"].startswith("a" * BUDGET)
    assert choice["message"]["content"] == "a" * 9
    assert choice["finish_reason"] == "length"
    chunks = [
        json.loads(line.removeprefix("data: "))
        for line in chat(
            thinker, max_tokens=9, stream=True, stream_options={"include_usage": True}
        ).text.split("\n\n")
        if line and not line.endswith("[DONE]")
    ]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    reasoning = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    assert reasoning == choice["message"]["reasoning_content"]
    assert "".join(delta["content"] or "" for delta in deltas) == choice["message"]["content"]
    assert thought(chunks[-1]) == BUDGET


def test_max_tokens_counts_the_answer_and_max_completion_tokens_all(thinker: Any) -> None:
    answer = chat(thinker, max_tokens=9, thinking_budget=20).json()
    marks = answer["usage"]["completion_tokens"] - 20 - 9
    assert thought(answer) == 20
    assert marks > 0, "the words that end the reasoning are neither"
    both = chat(thinker, max_completion_tokens=15, thinking_budget=20).json()
    assert both["usage"]["completion_tokens"] == 15
    assert both["choices"][0]["message"]["content"] == ""
    assert both["choices"][0]["finish_reason"] == "length"
    shared = chat(thinker, max_completion_tokens=10).json()
    assert thought(shared) == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_thinking": False},
        {"reasoning_effort": "none"},
        {"thinking_budget": 0},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_thinking_is_turned_off_by_any_of_its_switches(
    thinker: Any, fields: dict[str, Any]
) -> None:
    answer = chat(thinker, max_tokens=5, **fields).json()
    assert thought(answer) == 0
    assert "reasoning_content" not in answer["choices"][0]["message"]
    assert answer["usage"]["completion_tokens"] == 5


def test_an_effort_is_cut_to_the_room_there_is(thinker: Any) -> None:
    """The model has room for 1024 tokens."""
    answer = chat(thinker, max_tokens=4, reasoning_effort="low").json()
    assert answer["choices"][0]["message"]["content"] == "aaaa"
    usage = answer["usage"]
    assert thought(answer) > 512
    assert 1020 <= usage["prompt_tokens"] + usage["completion_tokens"] <= 1024


def test_dashscope_s_counts_tell_the_reasoning_apart(thinker: Any) -> None:
    body: dict[str, Any] = {
        "model": "judge",
        "input": {"prompt": "what burns"},
        "parameters": {"max_tokens": 6, "temperature": 0, "result_format": "message"},
    }
    answer = thinker.post(GENERATION, json=body).json()
    assert answer["usage"]["output_tokens_details"] == {"reasoning_tokens": BUDGET}
    assert answer["output"]["choices"][0]["message"]["reasoning_content"]
    body["parameters"] = {"max_tokens": 6, "reasoning_effort": "none"}
    answer = thinker.post(GENERATION, json=body).json()
    assert set(answer["output"]) == {"finish_reason", "text"}, "as of a model that does not think"


RING = {
    "type": "function",
    "function": {
        "name": "ring",
        "parameters": {
            "type": "object",
            "properties": {"loud": {"type": "boolean"}},
            "required": ["loud"],
            "additionalProperties": False,
        },
    },
}


def test_calls_are_thought_about_first(thinker: Any) -> None:
    how: dict[str, Any] = {
        "tools": [RING],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "enable_thinking": True,
        "max_tokens": 200,
    }
    answer = chat(thinker, **how).json()
    (choice,) = answer["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]).keys() == {"loud"}
    assert choice["message"]["reasoning_content"].startswith("a" * BUDGET)
    assert (choice["finish_reason"], thought(answer)) == ("tool_calls", BUDGET)
    deltas = [
        json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
        for line in chat(thinker, stream=True, **how).text.split("\n\n")
        if line and not line.endswith("[DONE]")
    ]
    kinds = ["call" if delta["tool_calls"] else "thought" for delta in deltas
             if delta["tool_calls"] or delta.get("reasoning_content")]  # fmt: skip
    assert kinds == sorted(kinds, reverse=True), "all thoughts, then all of the call"
    pieces = [piece for delta in deltas for piece in delta["tool_calls"] or ()]
    arguments = "".join(piece["function"]["arguments"] for piece in pieces)
    assert arguments == call["function"]["arguments"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"enable_thinking": True}, "enable_thinking"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"enable_thinking": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs"),
    ],
)
def test_a_model_that_does_not_think_is_not_told_to(
    client: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "judge", "messages": [{"role": "user", "content": "hello"}], **fields}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
