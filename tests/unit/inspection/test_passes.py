"""How many forward passes an answer takes under its schema, with the official vocabulary."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qianyan.engine.grammar import Grammars
from qianyan.engine.options import Sampling
from qianyan.engine.reply import Reply
from qianyan.engine.request import Request, Sampled
from qianyan.inputs.grounding import Notation
from qianyan.inputs.tokenizer import Tokenizer
from qianyan.inspection.prompts import AnswerForm, listing_schema
from qianyan.inspection.words import Lang

FOUND = (
    ((112, 64, 388, 512), ("火灾", "严重"), ("fire", "severe")),
    ((10, 20, 90, 204), ("烟雾", "中等"), ("smoke", "moderate")),
    ((520, 333, 1002, 740), ("人员", "未佩戴安全帽"), ("person", "no helmet")),
    ((77, 410, 260, 655), ("人员", "佩戴安全帽"), ("person", "helmet")),
)
Write = Callable[[str, dict[str, Any]], Request]


def answer(lang: Lang, form: AnswerForm = "objects", *, count: int = 4) -> list[Any]:
    rows: list[tuple[Sequence[int], tuple[str, str]]] = [
        (box, zh if lang == "zh" else en) for box, zh, en in FOUND[:count]
    ]
    if form == "rows":
        return [[*box, *words] for box, words in rows]
    return [
        {"bbox_2d": list(box), "label": label, "sub_label": sub_label}
        for box, (label, sub_label) in rows
    ]


@pytest.fixture(scope="module")
def write(shared: Path) -> Write:
    """Have a request take an answer as the official vocabulary spells it."""
    tokenizer = Tokenizer.from_folder(shared / "tokenizer" / "qwen2-vl")
    stop = tokenizer.token_id("<|im_end|>")
    assert stop is not None
    grammars = Grammars(tokenizer.to_json(), frozenset({stop}), num_tokens=tokenizer.vocab_size)

    def take(text: str, schema: dict[str, Any]) -> Request:
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        sampling = Sampling(max_tokens=1000, stop_token_ids=frozenset({stop}), logprobs=0)
        request = Request(0, [stop], sampling, Reply(tokenizer.stream()), grammars.begin(form))
        request.append_forced()
        while not request.is_finished:
            rest = text[len(tokenizer.decode(request.output_token_ids)) :]
            token_id = tokenizer.encode(rest)[0] if rest else stop
            request.append_sampled(Sampled(token_id=token_id, logprobs={token_id: -0.1}))
        assert request.completion().text == text
        return request

    return take


def schema_of(lang: Lang, form: AnswerForm = "objects", *, most: int = 10) -> dict[str, Any]:
    return listing_schema(
        lang=lang, notation=Notation.RESIZED_PIXELS, max_objects=most, answer=form
    )


@pytest.mark.parametrize(("lang", "most_passes"), [("zh", 0.47), ("en", 0.53)])
def test_half_of_an_answers_tokens_take_no_pass(
    write: Write, lang: Lang, most_passes: float
) -> None:
    text = json.dumps(answer(lang), ensure_ascii=False)
    usage = write(text, schema_of(lang)).completion().usage
    assert usage.completion_tokens > 150
    assert usage.forwarded_tokens / usage.completion_tokens <= most_passes


def test_a_sign_that_may_come_would_cost_a_pass_for_each_number(write: Write) -> None:
    text = json.dumps(answer("zh"), ensure_ascii=False)
    schema = schema_of("zh")
    bounded = write(text, schema).num_forwarded_tokens
    for kind in schema["items"]["anyOf"]:
        kind["properties"]["bbox_2d"]["items"] = {"type": "integer"}
    assert write(text, schema).num_forwarded_tokens == bounded + 16


@pytest.mark.parametrize("form", ["objects", "rows"])
def test_an_answer_ends_with_its_last_allowed_object_without_a_pass(
    write: Write, form: AnswerForm
) -> None:
    text = json.dumps(answer("zh", form), ensure_ascii=False)
    exact = write(text, schema_of("zh", form, most=4))
    roomy = write(text, schema_of("zh", form, most=10))
    assert exact.finish_reason == roomy.finish_reason == "stop"
    logprobs = exact.completion().logprobs
    assert logprobs is not None
    assert list(logprobs[-1].values()) == [0.0], "the closing bracket was forced"
    last = list(roomy.completion().logprobs or ())[-1]
    assert list(last.values()) == [-0.1], "here it was a choice"
    assert exact.num_forwarded_tokens < roomy.num_forwarded_tokens


def test_rows_take_a_third_fewer_tokens_and_hardly_fewer_passes(write: Write) -> None:
    objects, rows = (
        write(json.dumps(answer("zh", form), ensure_ascii=False), schema_of("zh", form))
        for form in ("objects", "rows")
    )
    assert len(rows.output_token_ids) < 0.7 * len(objects.output_token_ids)
    assert 0.95 * objects.num_forwarded_tokens < rows.num_forwarded_tokens
