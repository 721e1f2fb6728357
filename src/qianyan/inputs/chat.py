"""A checkpoint's chat template: messages to the exact prompt text the model was trained on.

Templates are programs from a checkpoint folder, so they run in Jinja's immutable sandbox, see only
plain JSON values, and cannot store names that reach into Python. Byte-for-byte results matter: the
environment below is the one that published templates are written against (block trimming, JSON
without ASCII or HTML escapes, `raise_exception`, `strftime_now`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Self

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from qianyan.errors import ConfigError, InputError, quote
from qianyan.inputs.tokenizer import read_json

# What a template's own code can raise on messages it was not written for.
_TEMPLATE_FAULTS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class ChatTemplate:
    """One compiled chat template; rendering is pure and safe to share between threads."""

    def __init__(self, source: str, *, special_tokens: Mapping[str, str] | None = None) -> None:
        """Compile `source`; `special_tokens` are the names it may use, such as eos_token."""
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"The chat template is not valid Jinja (line {error.lineno}); copy the "
                "checkpoint's file again."
            ) from error
        except RecursionError as error:
            raise ConfigError("The chat template is nested too deeply to compile.") from error

    @classmethod
    def from_folder(
        cls, folder: Path | str, *, special_tokens: Mapping[str, str] | None = None
    ) -> Self:
        """Find the template in chat_template.jinja, chat_template.json or tokenizer_config.json."""
        folder = Path(folder)
        source = _find_source(folder)
        if source is None:
            raise ConfigError(
                f"{folder.name}/ has no chat template; expected chat_template.jinja, "
                "chat_template.json or one in tokenizer_config.json."
            )
        return cls(source, special_tokens=special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Write the messages out as one prompt.

        Args:
            messages: plain JSON values in the shape the template was written for.
            tools: function schemas, or None.
            add_generation_prompt: end with the opening of an assistant turn.
            variables: anything else the template reads, such as enable_thinking.

        Raises:
            InputError: the template refuses these messages.
            ConfigError: the template reaches for what the sandbox forbids.
        """
        try:
            return self._template.render(
                **{
                    **self._special_tokens,
                    "messages": messages,
                    "tools": tools,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                    **variables,
                }
            )
        except jinja2.exceptions.SecurityError as error:
            raise ConfigError(
                "The chat template reaches for what a template may not touch; use the "
                "checkpoint's published template."
            ) from error
        except _RefusedMessages as error:
            raise InputError(
                f"The chat template refuses these messages: {quote(error.message)}."
            ) from error
        except (jinja2.TemplateError, *_TEMPLATE_FAULTS) as error:
            raise InputError(
                "The chat template cannot write these messages; check their roles, their order "
                "and that every one has content."
            ) from error

    @cached_property
    def takes_parts(self) -> bool:
        """Whether content given as a list of parts comes out as the same text given plainly."""
        text = "a probe of the template"
        try:
            plain = self.render([{"role": "user", "content": text}])
            parts = self.render([{"role": "user", "content": [{"type": "text", "text": text}]}])
        except (InputError, ConfigError):
            return False
        return plain == parts

    @property
    def takes_tools(self) -> bool:
        """Whether the template speaks of functions or calls, to show or to refuse them."""
        return re.search(r"\btool(s|_calls)\b", self.source) is not None

    @property
    def takes_thinking(self) -> bool:
        """Whether the template can be told to let the model think, or not to (Qwen3)."""
        return "enable_thinking" in self.source

    @property
    def is_thinking(self) -> bool:
        """Whether the template is that of a model that thinks before it answers."""
        return "<think>" in self.source

    @property
    def takes_arguments_as_text(self) -> bool:
        """Whether a tool call's arguments may stay the JSON text that the OpenAI form has.

        Templates that do not test for it would write the text as a JSON string, quoted twice.
        """
        return "arguments is string" in self.source


def _find_source(folder: Path) -> str | None:
    """Read the template text in the order of precedence of the published tools."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json(folder / name).get("chat_template")
        if isinstance(template, list):  # named templates: the one for plain chat
            named = {entry.get("name"): entry.get("template") for entry in template}
            template = named.get("default")
        if isinstance(template, str):
            return template
    return None


class _RefusedMessages(jinja2.TemplateError):
    """The template called raise_exception."""


def _raise_exception(message: str) -> NoReturn:
    raise _RefusedMessages(str(message))


def _strftime_now(layout: str) -> str:
    return datetime.now().astimezone().strftime(layout)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Dump to JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class _PlainNamespace(Namespace):
    """A Jinja namespace that cannot hold underscored names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError("underscored name on a namespace")
        super().__setitem__(name, value)


class _GenerationBlock(Extension):
    """Reads `{% generation %}` blocks, which mark the parts to train on, as their plain content."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own attribute)

    def parse(self, parser: Parser) -> list[Node]:
        """Replace the block by what is inside it."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": _PlainNamespace,
    }
    return environment
