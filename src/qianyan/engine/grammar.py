"""JSON schemas, regular expressions and calls that an answer must follow (llguidance).

`Grammars` compiles a `response_format`, or the calls of functions, once and hands out a fresh
`Grammar` for each request: which tokens may come next, and which ones must. Limits come first
(`schemas.py`); the work of compiling and stepping is bounded inside llguidance. Its regular
expressions have no backtracking; look-around and back-references are refused.
"""

import json
import threading
from collections import OrderedDict
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from qianyan.engine.calls import CALL_END, CALL_START, HEAD, TAIL
from qianyan.engine.schemas import (
    ITEM_SEPARATOR,
    KEY_SEPARATOR,
    MAX_PATTERN_CHARACTERS,
    find_places,
    to_json,
)
from qianyan.engine.tools import Function, ToolUse
from qianyan.errors import GrammarError, InputError, quote
from qianyan.inputs.tokenizer import Tokenizer

MAX_COMPILED = 64
"""Compiled grammars kept for the next request with the same format."""
FORMATS = '"json_schema", "json_object", "regex" or "text"'


class Grammar:
    """Where one answer stands in its grammar."""

    def __init__(
        self, matcher: LLMatcher, tokenizer: LLTokenizer, notes: tuple[str, ...] = ()
    ) -> None:
        self.notes = notes
        self._matcher = matcher
        self._tokenizer = tokenizer

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
        num_valid = self._matcher.validate_tokens(token_ids)
        if token_ids and not num_valid:
            # Text that spells a control token is proposed as that token, and then refused.
            first = self._matcher.compute_ff_bytes()[:1]
            return self._tokenizer.tokenize_bytes(first)
        return token_ids[:num_valid]

    def enter(self, text: str) -> bool:
        """Step over text that is there already; False, and no step, where it does not fit."""
        token_ids = self._tokenizer.tokenize_str(text)
        if self._matcher.validate_tokens(token_ids) < len(token_ids):
            return False
        return bool(self._matcher.consume_tokens(token_ids)) or not token_ids

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
        self._compiled: OrderedDict[str, tuple[LLMatcher, tuple[str, ...]]] = OrderedDict()

    def begin(self, response_format: dict[str, Any]) -> Grammar | None:
        """Compile a `response_format`, or find it compiled, and stand at its beginning.

        None for {"type": "text"}, which allows everything.
        """
        source = _to_source(response_format)
        if source is None:
            return None
        try:
            return self._begin(source)
        except _UnusableError as error:
            schema = (response_format.get("json_schema") or {}).get("schema", {})
            raise GrammarError(
                f"The {response_format['type']} cannot be used: {_told(error.reason, schema)}."
            ) from error

    def begin_with_tools(
        self, use: ToolUse, response_format: dict[str, Any] | None
    ) -> tuple[Grammar | None, Grammar | None]:
        """Give the grammar of an answer that may call, and that of what follows a <tool_call>.

        One of them is None: with words allowed beside calls, all is free up to the first
        <tool_call>; where calls or a JSON format are wanted, the first holds from the beginning.
        A "regex" holds alone: it says itself how calls are written.
        """
        if use.is_required:
            return self._begin_lark("start: calls\n", use), None
        if response_format is not None and response_format.get("type") == "regex":
            return self.begin(response_format), None
        read = None if response_format is None else _read_schema(response_format)
        if read is not None:
            self.begin(response_format or {})  # complains of it alone
            form = _lark_schema(read[0], is_strict=read[1])
            return self._begin_lark(f"start: form | calls\nform: {form}\n", use), None
        more = f'("\\n" {self._mark(CALL_START)} rest)*' if use.is_parallel else ""
        return None, self._begin_lark(f"start: rest {more}\n", use)

    def _begin_lark(self, start: str, use: ToolUse) -> Grammar:
        """Compile rules of a beginning together with those of calls and their arguments."""
        call = f"{self._mark(CALL_START)} rest"
        more = f'("\\n" {call})*' if use.is_parallel else ""
        # Where no token is <tool_call>, one may hold its end and what follows.
        gap = json.dumps("\n") if self._has_mark(CALL_START) else "/[ \\n]{0,2}/"
        bodies = " | ".join(f"call_{index}" for index in range(len(use.functions)))
        tail = f"{json.dumps(TAIL)} {self._mark(CALL_END)}"
        lines = [start, f"rest: {gap} ({bodies}) {tail}\n"]
        if "calls" in start.split():
            lines.append(f"calls: {call} {more}\n")
        for index, one in enumerate(use.functions):
            head = HEAD.format(name=json.dumps(one.name)).removeprefix("\n")
            schema = _lark_schema(to_json(one.parameters), is_strict=one.is_strict)
            lines.append(f"call_{index}: {json.dumps(head)} arguments_{index}\n")
            lines.append(f"arguments_{index}: {schema}\n")
        try:
            return self._begin(LLMatcher.grammar_from_lark("".join(lines)))
        except _UnusableError as error:
            raise self._blame(use.functions, error) from error

    def _blame(self, functions: tuple[Function, ...], error: "_UnusableError") -> GrammarError:
        """Say which function's schema is at fault, and where."""
        for one in functions:
            source = _schema_source(to_json(one.parameters), is_strict=one.is_strict)
            alone = LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
            if alone.is_error():
                reason = _told(alone.get_error(), one.parameters)
                return GrammarError(f"The parameters of {one.name} cannot be used: {reason}.")
        return GrammarError(f"The tools cannot be used: {_told(error.reason, {})}.")

    def _begin(self, source: str) -> Grammar:
        known = self._compiled.pop(source, None)
        if known is None:
            matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
            if matcher.is_error():
                raise _UnusableError(matcher.get_error())
            warnings = matcher.get_grammar_warnings()
            known = matcher, tuple(f"not held to: {quote(warning)}" for warning in warnings)
        self._compiled[source] = known
        while len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return Grammar(known[0].deep_copy(), self._tokenizer, known[1])

    def _mark(self, mark: str) -> str:
        """Write a mark in a grammar: as a token, where the vocabulary has it as one."""
        return mark if self._has_mark(mark) else json.dumps(mark)

    def _has_mark(self, mark: str) -> bool:
        token_ids = self._tokenizer.tokenize_str(mark, parse_special=True)
        return len(token_ids) == 1 and self._tokenizer.is_special_token(token_ids[0])


class _UnusableError(Exception):
    """The library refuses a grammar; `reason` is in its words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LazyGrammars:
    """The grammars of a checkpoint's vocabulary, which the first one asked for makes ready."""

    def __init__(self, tokenizer: Tokenizer, stop_token_ids: frozenset[int]) -> None:
        self._tokenizer, self._stop_token_ids = tokenizer, stop_token_ids
        self._grammars: Grammars | None = None
        self._lock = threading.Lock()  # not the model's: questions are prepared while it runs

    def begin(
        self, response_format: dict[str, Any] | None, use: ToolUse | None
    ) -> tuple[Grammar | None, Grammar | None]:
        """Give the grammar of the answer, and that of calls in an answer that is free."""
        if response_format is None and use is None:
            return None, None
        with self._lock:
            if self._grammars is None:  # a second's work for a large vocabulary
                self._grammars = Grammars(
                    self._tokenizer.to_json(),
                    self._stop_token_ids,
                    num_tokens=self._tokenizer.vocab_size,
                )
            if use is not None:
                return self._grammars.begin_with_tools(use, response_format)
            assert response_format is not None
            return self._grammars.begin(response_format), None


def _to_source(response_format: dict[str, Any]) -> str | None:
    """Check a response_format and write it in llguidance's own notation."""
    if not isinstance(response_format, dict):
        raise InputError(f"response_format is {quote(response_format)}; expected an object.")
    if response_format.get("type") == "regex":
        return _regex_source(response_format.get("pattern"))
    read = _read_schema(response_format)
    return None if read is None else _schema_source(read[0], is_strict=read[1])


def _read_schema(response_format: dict[str, Any]) -> tuple[str, bool] | None:
    """Give a form's schema as JSON, and whether all of it must hold; None for free text."""
    match response_format.get("type"):
        case "text":
            return None
        case "json_object":
            return to_json({"type": "object"}), True
        case "json_schema":
            wrapper = response_format.get("json_schema")
            if not isinstance(wrapper, dict) or "schema" not in wrapper:
                raise InputError(
                    'response_format has no json_schema.schema; "json_schema" needs it.'
                )
            strict = wrapper.get("strict")
            if strict is not None and not isinstance(strict, bool):
                raise InputError(f"json_schema.strict is {quote(strict)}; expected true or false.")
            return to_json(wrapper["schema"]), strict is not False
        case other:
            raise InputError(f"response_format.type is {quote(other)}; expected {FORMATS}.")


def _schema_source(schema: str, *, is_strict: bool) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(_with_layout(schema, is_strict=is_strict))
    except ValueError as error:
        raise GrammarError(f"The schema cannot be used: {_first_sentence(str(error))}.") from error


def _lark_schema(schema: str, *, is_strict: bool) -> str:
    return f"%json {_with_layout(schema, is_strict=is_strict)}"


def _with_layout(schema: str, *, is_strict: bool) -> str:
    """Say in a schema how its JSON is laid out, in place of what it may say itself."""
    layout = {
        "item_separator": ITEM_SEPARATOR,
        "key_separator": KEY_SEPARATOR,
        "whitespace_flexible": False,
        "lenient": not is_strict,
    }
    return json.dumps({**json.loads(schema), "x-guidance": layout})


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


def _told(reason: str, schema: dict[str, Any]) -> str:
    """Repeat a complaint of the library, with the places in the schema that it is about."""
    places = find_places(schema, reason)
    return _first_sentence(reason) + (f" at {quote(', '.join(places))}" if places else "")


def _first_sentence(message: str) -> str:
    """Keep the first line of a library's message, quoted and short: the rest shows its insides."""
    line = message.strip().splitlines()[0] if message.strip() else "no reason given"
    return quote(line.rstrip(". "))
