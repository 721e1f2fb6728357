"""JSON schemas and regular expressions that an answer must follow (llguidance).

`Grammars` compiles a `response_format` once and hands out a fresh `Grammar` for each request:
which tokens may come next, and which ones must. Limits come first, because schemas may come from
strangers: size, depth and list lengths here, the work of compiling and stepping inside llguidance.
Its regular expressions have no backtracking; look-around and back-references are refused.
"""

import json
from collections import OrderedDict
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from qianyan.errors import GrammarError, InputError, quote

MAX_SCHEMA_BYTES = 65_536
MAX_SCHEMA_DEPTH = 32
MAX_ENUM_VALUES = 2_048
MAX_PROPERTIES = 512
MAX_COUNT = 100_000
"""Largest minLength, maxLength, minItems, maxItems, minProperties and maxProperties."""
MAX_PATTERN_CHARACTERS = 4_096
MAX_COMPILED = 64
"""Compiled grammars kept for the next request with the same format."""

# Models are trained on the separators of Python's json.dumps; leaving white space free as well
# would leave nothing for the grammar to force.
ITEM_SEPARATOR = ", "
KEY_SEPARATOR = ": "
COUNT_KEYWORDS = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
)
FORMATS = '"json_schema", "json_object", "regex" or "text"'


class Grammar:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def is_complete(self) -> bool:
        """Whether the answer fits the grammar and nothing can follow."""
        return self._matcher.is_stopped()

    @property
    def is_accepting(self) -> bool:
        """Whether the answer fits the grammar as it is, though more may follow."""
        return self._matcher.is_accepting()

    def forced(self) -> list[int]:
        """Return the tokens that must come next, whatever the model thinks; often none."""
        token_ids = self._matcher.compute_ff_tokens()
        self._check()
        return token_ids

    def consume(self, token_id: int) -> None:
        """Step over one token; raise GrammarError when it is not allowed here."""
        self._matcher.consume_token(token_id)
        self._check()

    def mask(self) -> bytes:
        """Return one bit per token, 1 for allowed, lowest bit first, in whole 4-byte words."""
        mask = self._matcher.compute_bitmask()
        self._check()
        return mask

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(
                "The answer could not follow its format: "
                f"{_first_sentence(self._matcher.get_error())}."
            )


class Grammars:
    """Compiled formats of one tokenizer."""

    def __init__(
        self, tokenizer_json: str, stop_token_ids: frozenset[int], *, num_tokens: int
    ) -> None:
        """Prepare a vocabulary of `num_tokens`, given as a tokenizer.json; takes about a second.

        A stop token may be drawn wherever the grammar allows an end.
        """
        self._tokenizer = LLTokenizer(
            tokenizer_json, n_vocab=num_tokens, eos_token=sorted(stop_token_ids) or None
        )
        # Parser states in messages would show a stranger's schema in logs.
        self._limits = LLParserLimits(verbose_errors=False)
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def begin(self, response_format: dict[str, Any]) -> Grammar | None:
        """Compile a `response_format`, or find it compiled, and stand at its beginning.

        None for {"type": "text"}, which allows everything.
        """
        source = _to_source(response_format)
        if source is None:
            return None
        matcher = self._compiled.pop(source, None)
        if matcher is None:
            matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
            if matcher.is_error():
                raise GrammarError(
                    f"The {response_format['type']} cannot be used: "
                    f"{_first_sentence(matcher.get_error())}."
                )
        self._compiled[source] = matcher
        while len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return Grammar(matcher.deep_copy())


def _to_source(response_format: dict[str, Any]) -> str | None:
    """Check a response_format and write it in llguidance's own notation."""
    if not isinstance(response_format, dict):
        raise InputError(f"response_format is {quote(response_format)}; expected an object.")
    match response_format.get("type"):
        case "text":
            return None
        case "json_object":
            return _schema_source({"type": "object"})
        case "json_schema":
            return _schema_source(_find_schema(response_format))
        case "regex":
            return _regex_source(response_format.get("pattern"))
        case other:
            raise InputError(f"response_format.type is {quote(other)}; expected {FORMATS}.")


def _find_schema(response_format: dict[str, Any]) -> Any:
    wrapper = response_format.get("json_schema")
    if not isinstance(wrapper, dict) or "schema" not in wrapper:
        raise InputError('response_format has no json_schema.schema; "json_schema" needs it.')
    return wrapper["schema"]


def _schema_source(schema: Any) -> str:
    if not isinstance(schema, dict):
        raise GrammarError(f"The schema is {quote(schema)}; expected an object.")
    _check_schema(schema)
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        size_bytes = len(text.encode())
    except (TypeError, ValueError) as error:
        raise GrammarError("The schema is not JSON; expected plain values only.") from error
    if size_bytes > MAX_SCHEMA_BYTES:
        raise GrammarError(
            f"The schema is {size_bytes} bytes; expected at most {MAX_SCHEMA_BYTES}."
        )
    try:
        return LLMatcher.grammar_from_json_schema(
            text,
            overrides={
                "item_separator": ITEM_SEPARATOR,
                "key_separator": KEY_SEPARATOR,
                "whitespace_flexible": False,
            },
        )
    except ValueError as error:
        raise GrammarError(f"The schema cannot be used: {_first_sentence(str(error))}.") from error


def _regex_source(pattern: Any) -> str:
    if not isinstance(pattern, str) or not pattern:
        raise GrammarError(f"pattern is {quote(pattern)}; expected a regular expression.")
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise GrammarError(
            f"pattern is {len(pattern)} characters; expected at most {MAX_PATTERN_CHARACTERS}."
        )
    try:
        return LLMatcher.grammar_from_regex(pattern)
    except UnicodeEncodeError as error:
        raise GrammarError("pattern is not text: it has half a surrogate pair.") from error


def _check_schema(schema: dict[str, Any]) -> None:
    """Refuse what would be costly to compile, level by level and never deeper than the limit."""
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                _check_keywords(node)
                below.extend(node.values())
            elif isinstance(node, list):
                if len(node) > MAX_ENUM_VALUES:
                    raise GrammarError(
                        f"A list in the schema has {len(node)} values; "
                        f"expected at most {MAX_ENUM_VALUES}."
                    )
                below.extend(node)
        if not below:
            return
        level = below
    raise GrammarError(f"The schema is nested too deeply; expected at most {MAX_SCHEMA_DEPTH}.")


def _check_keywords(node: dict[str, Any]) -> None:
    if len(node) > MAX_PROPERTIES:
        raise GrammarError(
            f"An object in the schema has {len(node)} keys; expected at most {MAX_PROPERTIES}."
        )
    for keyword in COUNT_KEYWORDS & node.keys():
        count = node[keyword]
        if isinstance(count, int | float) and not 0 <= count <= MAX_COUNT:
            raise GrammarError(f"{keyword} is {count}; expected 0 to {MAX_COUNT}.")
    pattern = node.get("pattern")
    if isinstance(pattern, str) and len(pattern) > MAX_PATTERN_CHARACTERS:
        raise GrammarError(
            f"A pattern in the schema is {len(pattern)} characters; "
            f"expected at most {MAX_PATTERN_CHARACTERS}."
        )


def _first_sentence(message: str) -> str:
    """Keep the first line of a library's message, quoted and short: the rest shows its insides."""
    line = message.strip().splitlines()[0] if message.strip() else "no reason given"
    return quote(line.rstrip(". "))
