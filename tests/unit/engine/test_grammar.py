"""Formats an answer must follow: what they force, what they allow, what is refused."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from qianyan.engine import grammar
from qianyan.engine.grammar import Grammar, Grammars
from qianyan.errors import GrammarError, InputError

BOX = {
    "type": "object",
    "properties": {
        "bbox_2d": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 1000},
            "minItems": 4,
            "maxItems": 4,
        },
        "label": {"enum": ["火灾", "烟雾", "人员"]},
    },
    "required": ["bbox_2d", "label"],
    "additionalProperties": False,
}


def json_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def regex(pattern: Any) -> dict[str, Any]:
    return {"type": "regex", "pattern": pattern}


@pytest.fixture(scope="module")
def stop_token(tiny_tokenizer: Tokenizer) -> int:
    return int(tiny_tokenizer.token_to_id("<|im_end|>"))


@pytest.fixture(scope="module")
def grammars(tiny_tokenizer: Tokenizer, stop_token: int) -> Grammars:
    return Grammars(
        tiny_tokenizer.to_str(),
        frozenset({stop_token}),
        num_tokens=tiny_tokenizer.get_vocab_size(),
    )


@pytest.fixture(scope="module")
def accepts(grammars: Grammars, tiny_tokenizer: Tokenizer) -> Callable[[dict[str, Any], str], bool]:
    """Tell whether a whole text follows a format."""

    def check(response_format: dict[str, Any], text: str) -> bool:
        begun = grammars.begin(response_format)
        assert begun is not None
        try:
            for token_id in tiny_tokenizer.encode(text).ids:
                begun.consume(token_id)
        except GrammarError:
            return False
        return begun.is_accepting

    return check


def begin(grammars: Grammars, response_format: dict[str, Any]) -> Grammar:
    begun = grammars.begin(response_format)
    assert begun is not None
    return begun


def allowed(begun: Grammar, num_tokens: int) -> set[int]:
    """Read the mask: which tokens may come next."""
    bits = int.from_bytes(begun.mask(), "little")
    return {i for i in range(num_tokens) if bits >> i & 1}


def test_text_needs_no_grammar(grammars: Grammars) -> None:
    assert grammars.begin({"type": "text"}) is None


def test_answers_are_written_like_json_dumps(
    accepts: Callable[[dict[str, Any], str], bool],
) -> None:
    answer = {"bbox_2d": [1, 22, 333, 1000], "label": "烟雾"}
    assert accepts(json_schema(BOX), json.dumps(answer, ensure_ascii=False))
    assert not accepts(json_schema(BOX), json.dumps(answer | {"label": "猫"}, ensure_ascii=False))
    assert not accepts(json_schema(BOX), json.dumps(answer | {"bbox_2d": [1, 2, 3]}))
    assert not accepts(json_schema(BOX), json.dumps(answer)[:-1])


def test_keys_and_punctuation_are_forced(grammars: Grammars, tiny_tokenizer: Tokenizer) -> None:
    begun = begin(grammars, json_schema(BOX))
    assert tiny_tokenizer.decode(begun.forced()) == '{"bbox_2d": ['


def test_a_grammar_without_choice_forces_everything_and_completes(
    grammars: Grammars, tiny_tokenizer: Tokenizer
) -> None:
    begun = begin(grammars, json_schema({"const": "hi"}))
    for token_id in begun.forced():
        assert not begun.is_complete
        begun.consume(token_id)
    assert begun.is_complete
    assert begun.forced() == []


def test_the_stop_token_is_allowed_only_where_the_answer_may_end(
    grammars: Grammars, tiny_tokenizer: Tokenizer, stop_token: int
) -> None:
    begun = begin(grammars, regex("[0-9]+"))
    num_tokens = tiny_tokenizer.get_vocab_size()
    digits = {tiny_tokenizer.token_to_id(digit) for digit in "0123456789"}
    digits.add(tiny_tokenizer.token_to_id("12"))
    assert allowed(begun, num_tokens) == digits
    begun.consume(tiny_tokenizer.token_to_id("7"))
    assert allowed(begun, num_tokens) == digits | {stop_token}
    assert begun.is_accepting
    assert not begun.is_complete


def test_requests_with_one_format_do_not_share_their_place(grammars: Grammars) -> None:
    first, second = (begin(grammars, regex("abc")) for _ in range(2))
    for token_id in first.forced():
        first.consume(token_id)
    assert first.is_complete
    assert not second.is_complete
    assert second.forced()


def test_a_token_outside_the_grammar_is_an_error(grammars: Grammars, stop_token: int) -> None:
    with pytest.raises(GrammarError, match="could not follow its format"):
        begin(grammars, regex("abc")).consume(stop_token)


def test_any_object_is_an_object(accepts: Callable[[dict[str, Any], str], bool]) -> None:
    form = {"type": "json_object"}
    assert accepts(form, '{"a": [1, {"b": null}]}')
    assert not accepts(form, "[1]")


@pytest.mark.parametrize("pattern", ["yes|no", "^(yes|no)$", "(yes|no)"])
def test_a_pattern_means_the_whole_answer(
    pattern: str, accepts: Callable[[dict[str, Any], str], bool]
) -> None:
    assert accepts(regex(pattern), "yes")
    assert not accepts(regex(pattern), "yes no")
    assert not accepts(regex(pattern), "ye")


@pytest.mark.parametrize(
    ("response_format", "sentence"),
    [
        ({"type": "xml"}, "response_format.type is 'xml'; expected"),
        ({}, "response_format.type is 'None'; expected"),
        ("json", "response_format is 'json'; expected an object."),
        ({"type": "json_schema"}, "response_format has no json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "has no json_schema.schema"),
    ],
)
def test_an_unknown_form_is_refused(
    grammars: Grammars, response_format: Any, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        grammars.begin(response_format)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("response_format", "sentence"),
    [
        (json_schema([]), r"The schema is '\[\]'; expected an object."),
        (json_schema({"type": "objekt"}), "cannot be used: 'Invalid type: objekt'"),
        (json_schema({"not": {}}), r"cannot be used: 'Unimplemented keys: .* at 'not'"),
        (json_schema({"enum": []}), "cannot be used: 'Unsatisfiable schema"),
        (json_schema({"$ref": "http://example.com/x"}), "cannot be used: 'Resource"),
        (json_schema({"enum": ["x"] * 3000}), "has 3000 values; expected at most 2048"),
        (json_schema({"description": "x" * 70_000}), "bytes; expected at most 65536"),
        (json_schema(nested(40)), "nested too deeply; expected at most 32"),
        (json_schema(nested(20_000)), "nested too deeply; expected at most 32"),
        (json_schema({"type": "string", "maxLength": 10**9}), "maxLength is 1000000000; expected"),
        (json_schema({"type": "string", "pattern": "a" * 5000}), "A pattern in the schema is 5000"),
        (json_schema({"properties": {str(i): {} for i in range(600)}}), "has 600 keys; expected"),
        (json_schema({"const": {1, 2}}), "The schema is not JSON"),
        (json_schema({"const": float("nan")}), "The schema is not JSON"),
        (json_schema({"const": "\ud800"}), "The schema is not JSON"),
        (regex(""), "pattern is ''; expected a regular expression"),
        (regex(5), "pattern is '5'; expected a regular expression"),
        (regex("("), "The regex cannot be used"),
        (regex(r"a(?=b)"), "The regex cannot be used"),
        (regex(r"(a)\1"), "The regex cannot be used"),
        (regex("a" * 5000), "pattern is 5000 characters; expected at most 4096"),
        (regex("\ud800"), "pattern is not text"),
    ],
)
def test_a_format_outside_the_limits_is_refused(
    grammars: Grammars, response_format: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(GrammarError, match=sentence) as caught:
        grammars.begin(response_format)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize(
    "response_format",
    [
        regex("(a+)+$"),
        regex("(a|a)*b"),
        regex("(a{1,100}){1,100}"),
        regex("((((a{1,50}){1,50}){1,50}){1,50}){1,50}"),
        json_schema({"type": "string", "maxLength": 100_000}),
        json_schema({"enum": [f"value {i} of many" for i in range(2048)]}),
        json_schema({"anyOf": [{"const": "a" * i} for i in range(1, 200)]}),
    ],
)
def test_a_format_made_to_be_slow_is_quick_or_refused(
    grammars: Grammars, response_format: dict[str, Any], tiny_tokenizer: Tokenizer
) -> None:
    began = time.perf_counter()
    try:
        begun = begin(grammars, response_format)
        for _ in range(20):
            following = allowed(begun, tiny_tokenizer.get_vocab_size())
            begun.consume(min(following))
            if begun.is_complete:
                break
    except GrammarError:
        pass
    assert time.perf_counter() - began < 5.0


def test_only_so_many_compiled_formats_are_kept(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "MAX_COMPILED", 2)
    for pattern in ("a", "b", "a", "c"):
        begin(grammars, regex(pattern))
    assert len(grammars._compiled) == 2


def test_a_form_that_is_not_strict_leaves_out_what_cannot_be_held_and_says_so(
    grammars: Grammars,
) -> None:
    form = json_schema({"type": "array", "items": {"type": "integer"}, "uniqueItems": True})
    with pytest.raises(GrammarError, match="uniqueItems"):
        grammars.begin(form)
    form["json_schema"]["strict"] = False
    begun = begin(grammars, form)
    assert begun.enter("[1, 1]")
    assert len(begun.notes) == 1
    assert "uniqueItems" in begun.notes[0]
    form["json_schema"]["strict"] = "no"
    with pytest.raises(InputError, match="strict is 'no'"):
        grammars.begin(form)


def test_text_is_entered_whole_or_not_at_all(grammars: Grammars) -> None:
    begun = begin(grammars, regex("the box [0-9]+"))
    assert not begun.enter("the cat")
    assert begun.enter("the box 1")
    assert begun.is_accepting
    assert not begun.enter("x")


def test_a_mark_that_an_answer_spells_is_not_forced_as_a_token(tiny_tokenizer: Tokenizer) -> None:
    """Text between < and > can be a token of its own that a grammar over text does not take."""
    tokenizer = Tokenizer.from_str(tiny_tokenizer.to_str())
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    stop = frozenset({int(tokenizer.token_to_id("<|im_end|>"))})
    spelling = Grammars(tokenizer.to_str(), stop, num_tokens=tokenizer.get_vocab_size())
    begun = begin(spelling, json_schema({"const": "a<tool_call>b"}))
    text = ""
    while not begun.is_complete:
        for token_id in begun.forced():
            begun.consume(token_id)
            text += tokenizer.decode([token_id])
    assert text == '"a<tool_call>b"'


def test_a_schema_does_not_choose_its_own_layout(
    accepts: Callable[[dict[str, Any], str], bool],
) -> None:
    own = {"type": "array", "items": {"type": "integer"}, "x-guidance": {"item_separator": "; "}}
    assert accepts(json_schema(own), "[1, 2]")
    assert not accepts(json_schema(own), "[1; 2]")
