"""DashScope's dialect from a `qianyan serve` of its own, to a model that thinks.

The model is random, but its prompt opens the reasoning and a budget ends it, whatever the weights.
"""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.served import serving
from tests.thinking_model import BY_SWITCH, write_thinking_model

KEY = "sk-test-0123456789"
TEMPLATE = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + BY_SWITCH
BUDGET = 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 whose template begins to think, as QwQ's does."""
    return write_thinking_model(tmp_path_factory.mktemp("thinker"), TEMPLATE)


@pytest.fixture(scope="module")
def address(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server in a process of its own."""
    options = ["--model", str(checkpoint), "--api-key", KEY, "--served-name", "qwen-plus"]
    with serving(tmp_path_factory.mktemp("state"), *options) as (_, address):
        yield address


def post(address: str, *, stream: bool = False, **parameters: Any) -> httpx2.Response:
    body = {
        "model": "qwen-plus",
        "input": {"messages": [{"role": "user", "content": "what burns"}]},
        "parameters": {"max_tokens": 60, "temperature": 0, **parameters},
    }
    headers = {"authorization": f"Bearer {KEY}"}
    headers |= {"x-dashscope-sse": "enable"} if stream else {}
    path = "/api/v1/services/aigc/text-generation/generation"
    answer = httpx2.post(f"{address}{path}", json=body, headers=headers, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer


def packets(answer: httpx2.Response) -> list[dict[str, Any]]:
    lines = [line for line in answer.text.splitlines() if line.startswith("data:")]
    return [json.loads(line.removeprefix("data:")) for line in lines]


def messages(answer: httpx2.Response) -> list[dict[str, Any]]:
    return [packet["output"]["choices"][0]["message"] for packet in packets(answer)]


def test_a_model_that_thinks_answers_with_messages_and_in_pieces(address: str) -> None:
    """So do Bailian's of their own accord; its counts tell the reasoning apart."""
    how = {"thinking_budget": BUDGET, "max_tokens": 12}
    whole = post(address, **how).json()
    (choice,) = whole["output"]["choices"]
    answer = post(address, stream=True, **how)
    pieces = messages(answer)
    reasoning = "".join(piece["reasoning_content"] for piece in pieces)
    assert reasoning == choice["message"]["reasoning_content"] != ""
    assert "".join(piece["content"] for piece in pieces) == choice["message"]["content"]
    assert not any(piece["content"] and piece["reasoning_content"] for piece in pieces)
    counts = [packet["usage"] for packet in packets(answer)]
    thought = [
        count.get("output_tokens_details", {}).get("reasoning_tokens", 0) for count in counts
    ]
    assert thought == sorted(thought)
    assert thought[-1] == BUDGET
    assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": BUDGET}
    assert counts[-1]["output_tokens"] == whole["usage"]["output_tokens"]


def test_whole_packets_hold_reasoning_and_answer_so_far(address: str) -> None:
    how: dict[str, Any] = {"thinking_budget": BUDGET, "max_tokens": 12}
    pieces = messages(post(address, stream=True, incremental_output=False, **how))
    whole = post(address, **how).json()["output"]["choices"][0]["message"]
    assert pieces[-1] == whole
    for before, after in pairwise(pieces):
        assert after["content"].startswith(before["content"])
        assert after["reasoning_content"].startswith(before["reasoning_content"])


def test_thinking_can_be_turned_off(address: str) -> None:
    answer = post(address, enable_thinking=False, max_tokens=5).json()
    assert set(answer["output"]) == {"finish_reason", "text"}, "like a model that does not think"
    assert "output_tokens_details" not in answer["usage"]


def test_text_for_an_answer_keeps_the_reasoning_beside_it(address: str) -> None:
    output = post(address, result_format="text", thinking_budget=BUDGET, max_tokens=5).json()[
        "output"
    ]
    assert set(output) == {"finish_reason", "text", "reasoning_content", "notes"}
    assert output["reasoning_content"]
    assert output["notes"] == [f"the reasoning was ended at its budget of {BUDGET} tokens"]
