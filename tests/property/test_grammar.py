"""Grammars: what is accepted is what the schema allows, with and without forced tokens."""

import json
from random import Random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from qianyan.engine.grammar import Grammar, Grammars
from qianyan.errors import GrammarError

WORDS = ["fire", "smoke", "火灾", "烟雾", "a b", 'quo"te', "é"]
END = "<|im_end|>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    merges = [("a", "b"), ("f", "i"), ("fi", "re"), ("r", "e"), ('"', ":"), ("1", "2")]
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet()) + [a + b for a, b in sorted(merges)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges[3:4] + merges[:3] + merges[4:]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_tokens([AddedToken(END, special=True, normalized=False)])
    return made


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    stop = frozenset({int(tokenizer.token_to_id(END))})
    return Grammars(tokenizer.to_str(), stop, num_tokens=tokenizer.get_vocab_size())


leaves = st.one_of(
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-20, 1000),
        st.integers(0, 500),
    ),
    st.builds(
        lambda words: {"enum": words}, st.lists(st.sampled_from(WORDS), min_size=1, unique=True)
    ),
    st.builds(
        lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size},
        st.integers(0, 3),
        st.integers(0, 5),
    ),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda word: {"const": word}, st.sampled_from(WORDS)),
)


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3).map(
        lambda properties: {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
    )


def arrays(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda items, low, size: {
            "type": "array",
            "items": items,
            "minItems": low,
            "maxItems": low + size,
        },
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )


schemas = st.recursive(leaves, lambda inner: objects(inner) | arrays(inner), max_leaves=5)


def instance_of(schema: dict[str, Any], chance: Random) -> Any:
    """Make a value that the schema allows, keys in the schema's order."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return chance.choice(schema["enum"])
    match schema["type"]:
        case "integer":
            return chance.randint(schema["minimum"], schema["maximum"])
        case "string":
            size = chance.randint(schema["minLength"], schema["maxLength"])
            return "".join(chance.choice('ab é火"\\\n') for _ in range(size))
        case "boolean":
            return chance.random() < 0.5
        case "null":
            return None
        case "array":
            size = chance.randint(schema["minItems"], schema["maxItems"])
            return [instance_of(schema["items"], chance) for _ in range(size)]
        case _:
            return {key: instance_of(inner, chance) for key, inner in schema["properties"].items()}


def begin(grammars: Grammars, schema: dict[str, Any]) -> Grammar:
    begun = grammars.begin({"type": "json_schema", "json_schema": {"schema": schema}})
    assert begun is not None
    return begun


def accepts(begun: Grammar, token_ids: list[int]) -> bool:
    try:
        for token_id in token_ids:
            begun.consume(token_id)
    except GrammarError:
        return False
    return begun.is_accepting


def allowed(begun: Grammar, num_tokens: int) -> list[int]:
    bits = int.from_bytes(begun.mask(), "little")
    return [i for i in range(num_tokens) if bits >> i & 1]


@settings(max_examples=60, deadline=None)
@given(schema=schemas, chance=st.randoms())
def test_every_valid_answer_is_accepted(
    schema: dict[str, Any], chance: Random, grammars: Grammars, tokenizer: Tokenizer
) -> None:
    instance = instance_of(schema, chance)
    jsonschema.validate(instance, schema)
    text = json.dumps(instance, ensure_ascii=False)
    assert accepts(begin(grammars, schema), tokenizer.encode(text).ids)


@settings(max_examples=60, deadline=None)
@given(schema=schemas, other=schemas, chance=st.randoms())
def test_what_is_accepted_is_valid(
    schema: dict[str, Any],
    other: dict[str, Any],
    chance: Random,
    grammars: Grammars,
    tokenizer: Tokenizer,
) -> None:
    instance = instance_of(other, chance)
    text = json.dumps(instance, ensure_ascii=False)
    is_valid = jsonschema.Draft202012Validator(schema).is_valid(instance)
    if accepts(begin(grammars, schema), tokenizer.encode(text).ids):
        assert is_valid


@settings(max_examples=40, deadline=None)
@given(schema=schemas, chance=st.randoms())
def test_a_random_walk_that_takes_forced_tokens_ends_in_a_valid_answer(
    schema: dict[str, Any], chance: Random, grammars: Grammars, tokenizer: Tokenizer
) -> None:
    """Every token a walk takes, forced or drawn, was allowed without forcing too."""
    num_tokens = tokenizer.get_vocab_size()
    stop = tokenizer.token_to_id(END)
    walker, follower = begin(grammars, schema), begin(grammars, schema)
    taken: list[int] = []
    while not walker.is_complete:
        forced = walker.forced()
        step = forced or [chance.choice(allowed(walker, num_tokens))]
        if step == [stop]:
            break
        for token_id in step:
            assert token_id in allowed(follower, num_tokens)
            walker.consume(token_id)
            follower.consume(token_id)
            taken.append(token_id)
        assert len(taken) < 2000
    jsonschema.validate(json.loads(tokenizer.decode(taken)), schema)
