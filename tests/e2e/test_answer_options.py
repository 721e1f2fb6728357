"""What the API can ask of an answer, asked of the bundled judge: a real checkpoint that sees."""

import json
from collections.abc import Iterator
from importlib.resources import files

import pytest
from PIL import Image

from qianyan.engine.engine import Engine

TOOL = {
    "type": "function",
    "function": {
        "name": "alarm",
        "parameters": {
            "type": "object",
            "properties": {"level": {"enum": ["minor", "severe"]}},
            "required": ["level"],
            "additionalProperties": False,
        },
    },
}
ASK = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.new("RGB", (64, 64), "red")},
            {"type": "text", "text": "fire?"},
        ],
    }
]


@pytest.fixture(scope="module")
def judge() -> Iterator[Engine]:
    engine = Engine(str(files("qianyan").joinpath("assets/bundled/judge")))
    yield engine
    assert engine.step() == []


def test_a_required_call_about_a_picture_follows_its_schema(judge: Engine) -> None:
    done = judge.chat(
        ASK, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=200
    )
    assert [call.name for call in done.tool_calls] == ["alarm"]
    assert json.loads(done.tool_calls[0].arguments)["level"] in ("minor", "severe")
    assert (done.text, done.finish_reason) == ("", "stop")


def test_a_budget_means_nothing_to_a_model_that_does_not_think(judge: Engine) -> None:
    plain = judge.chat(ASK, max_tokens=8)
    assert judge.chat(ASK, max_tokens=8, thinking_budget=0) == plain
    assert judge.chat(ASK, max_tokens=8, thinking_budget=4, max_completion_tokens=8) == plain
    assert plain.usage.reasoning_tokens == 0


def test_a_begun_answer_goes_on_in_its_form(judge: Engine) -> None:
    form = {"type": "regex", "pattern": "answer: [A-D]"}
    messages = [*ASK, {"role": "assistant", "content": "answer: ", "partial": True}]
    done = judge.chat(messages, response_format=form, max_tokens=8)
    assert done.text in ("A", "B", "C", "D")


def test_a_bias_forbids_what_was_said(judge: Engine) -> None:
    first = judge.chat(ASK, max_tokens=1, temperature=0).token_ids[0]
    other = judge.chat(ASK, max_tokens=1, temperature=0, logit_bias={first: -100})
    assert other.token_ids[0] != first
