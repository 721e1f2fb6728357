"""Formats over the official vocabulary of 151,665 tokens (development data, else skipped)."""

import json
from pathlib import Path

import pytest

from qianyan.engine.grammar import Grammars
from qianyan.inputs.tokenizer import Tokenizer

ANSWER = [
    {"bbox_2d": [112, 64, 388, 512], "label": "火灾", "sub_label": "严重"},
    {"bbox_2d": [10, 20, 90, 204], "label": "烟雾", "sub_label": "轻微"},
    {"bbox_2d": [520, 333, 1002, 740], "label": "人员", "sub_label": "未佩戴安全帽"},
]
SCHEMA = {
    "type": "array",
    "maxItems": 10,
    "items": {
        "type": "object",
        "properties": {
            "bbox_2d": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": 10000},
                "minItems": 4,
                "maxItems": 4,
            },
            "label": {"enum": ["火灾", "烟雾", "人员"]},
            "sub_label": {"enum": ["轻微", "中等", "严重", "佩戴安全帽", "未佩戴安全帽"]},
        },
        "required": ["bbox_2d", "label", "sub_label"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> Tokenizer:
    return Tokenizer.from_folder(shared / "tokenizer" / "qwen2.5-vl")


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    stop = tokenizer.token_id("<|im_end|>")
    assert stop is not None
    return Grammars(tokenizer.to_json(), frozenset({stop}), num_tokens=tokenizer.vocab_size)


def test_more_than_half_of_a_list_of_boxes_is_forced(
    tokenizer: Tokenizer, grammars: Grammars
) -> None:
    begun = grammars.begin({"type": "json_schema", "json_schema": {"schema": SCHEMA}})
    assert begun is not None
    rest = json.dumps(ANSWER, ensure_ascii=False)
    drawn, forced_count = 0, 0
    while rest:
        forced = begun.forced()
        if forced:
            text = tokenizer.decode(forced)
            assert rest.startswith(text)
            forced_count += len(forced)
        else:
            forced = tokenizer.encode(rest)[:1]
            text = tokenizer.decode(forced)
            drawn += 1
        for token_id in forced:
            begun.consume(token_id)
        rest = rest.removeprefix(text)
    assert begun.is_accepting
    assert forced_count > 0.5 * (drawn + forced_count), f"{forced_count} forced, {drawn} drawn"
