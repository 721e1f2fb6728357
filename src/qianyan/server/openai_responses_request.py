"""The body of POST responses: what it asks becomes a chat request, and what it set is shown again.

The options are chat's, under other names where the protocol has others, so whatever chat can do
and checks holds here too. What would change the answer and cannot be honoured is refused.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from qianyan.errors import GrammarError, QianyanError
from qianyan.server.errors import RefusedError, to_failure
from qianyan.server.openai_request import MOST_IGNORED_NAMES, ChatRequest
from qianyan.server.openai_responses_items import Conversation, missing, refused
from qianyan.server.openai_responses_tools import read_offer

SAME_NAMES = (
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "parallel_tool_calls",
    "enable_thinking",
    "thinking_budget",
    "vl_high_resolution_images",
    "vl_enable_image_hw_output",
    "ocr_options",
    "coordinate_space",
)
"""Fields that chat has too."""
ECHOED = {
    "temperature": 1.0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "parallel_tool_calls": True,
    "truncation": "disabled",
    "max_output_tokens": None,
    "max_tool_calls": None,
    "instructions": None,
    "previous_response_id": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "user": None,
}
"""Fields that a response repeats, with what it says where they were not given."""
INCLUDABLE = frozenset(
    {
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "message.output_text.logprobs",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)
WITHOUT_EFFECT = frozenset({"service_tier", "stream_options", "context_management"})
MAX_METADATA = 16
_RENAMED = {
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "logprobs": "top_logprobs",
    "reasoning_effort": "reasoning.effort",
    "search_options.assigned_site_list": "tools.filters.allowed_domains",
}
_PLACE = re.compile(r"[a-z_]+(?:\[\d+\]|\.\w+)*")
_MESSAGE = re.compile(r"messages\[(\d+)\]")
_TOOL = re.compile(r"tools\[(\d+)\](?:\.function)?")

Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


def _schema(*kinds: str) -> WithJsonSchema:
    """Show what a field takes that is checked where it is read, with the place that is wrong."""
    return WithJsonSchema({"anyOf": [{"type": kind} for kind in (*kinds, "null")]})


class Reasoning(BaseModel):
    """How much is thought; a summary of thoughts is the thoughts themselves."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class TextOptions(BaseModel):
    """The form of the answer."""

    model_config = ConfigDict(extra="allow")

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponseRequest(BaseModel):
    """A request for a response; None means not given."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    input: Annotated[Any, _schema("string", "array")] = None
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(max_length=200)] | None = None
    stream: bool | None = None
    background: bool | None = None
    store: bool | None = None
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Annotated[Any, _schema("string", "object")] = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    top_logprobs: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Annotated[Metadata, Field(max_length=MAX_METADATA)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    vl_high_resolution_images: bool | None = None
    vl_enable_image_hw_output: bool | None = None
    ocr_options: dict[str, Any] | None = None
    coordinate_space: str | None = None
    conversation: Annotated[Any, _schema("string", "object")] = None
    prompt: dict[str, Any] | None = None

    def refuse_what_is_missing(self) -> None:
        """Raise RefusedError for what this server has not, and for what does not go together."""
        for name in ("conversation", "prompt"):
            if getattr(self, name) is not None:
                raise _unsupported(
                    f"{name} is not kept here; expected the items in input, and "
                    "previous_response_id to go on.",
                    name,
                )
        extra = self.model_extra or {}
        for name in ("modalities", "audio"):
            if extra.get(name) not in (None, ["text"]):
                raise _unsupported(
                    f"{name} is given for a response, which has no sound; expected it left out, "
                    "or the question in chat/completions, whose answers can be spoken.",
                    name,
                )
        if self.input is None and self.previous_response_id is None:
            raise missing("input", "text or a list of items")
        for name in self.include or ():
            if name not in INCLUDABLE:
                raise refused("include", name, f"one of {', '.join(sorted(INCLUDABLE))}")
        if self.background and self.stream:
            raise _unsupported(
                "A response in the background is not streamed; expected stream false, and to "
                "retrieve it until it is completed.",
                "stream",
            )
        if self.background and self.store is False:
            raise _unsupported(
                "A response in the background is fetched later; expected store true.", "store"
            )

    def to_chat(self, items: Conversation) -> ChatRequest:
        """Ask the same in chat's words; raises RefusedError for what chat has no words for."""
        asked = {name: getattr(self, name) for name in SAME_NAMES}
        asked["messages"] = [*self._instructions(), *items.messages]
        if not asked["messages"]:
            raise refused("input", "empty", "text or at least one item")
        asked["max_completion_tokens"] = self.max_output_tokens
        asked["response_format"] = self._response_format()
        offer = read_offer(self.tools or [], self.tool_choice)
        asked |= {"tools": offer.functions, "tool_choice": offer.choice}
        if offer.search_options is not None:
            asked |= {"enable_search": True, "search_options": offer.search_options}
        if self.wants_logprobs:
            asked |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        effort = None if self.reasoning is None else self.reasoning.effort
        asked["reasoning_effort"] = "xhigh" if effort == "max" else effort
        return ChatRequest.model_validate(
            {name: value for name, value in asked.items() if value not in (None, [])}
        )

    @property
    def wants_logprobs(self) -> bool:
        """Whether the probabilities of tokens are told."""
        return "message.output_text.logprobs" in (self.include or ()) or bool(self.top_logprobs)

    @property
    def summarizes(self) -> bool:
        """Whether thoughts are told as their summary."""
        return self.reasoning is not None and self.reasoning.summary is not None

    @property
    def num_before_items(self) -> int:
        """Count the messages that stand before those of items."""
        return len(self._instructions())

    def ignored_fields(self) -> list[str]:
        """Name the fields that were given and mean nothing here."""
        names = (name for name, value in (self.model_extra or {}).items() if value is not None)
        shown = {name if _PLACE.fullmatch(name[:64]) else "?" for name in names}
        return sorted(shown - WITHOUT_EFFECT)[:MOST_IGNORED_NAMES]

    def echo(self) -> dict[str, Any]:
        """Repeat what was set, as the protocol's responses do."""
        given = {name: getattr(self, name) for name in ECHOED}
        shown = {name: ECHOED[name] if value is None else value for name, value in given.items()}
        reasoning = self.reasoning or Reasoning()
        text = self.text or TextOptions()
        verbosity = {} if text.verbosity is None else {"verbosity": text.verbosity}
        return shown | {
            "tools": [_shown_tool(tool) for tool in self.tools or ()],
            "tool_choice": self.tool_choice or "auto",
            "text": {"format": text.format or {"type": "text"}, **verbosity},
            "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
            "metadata": self.metadata or {},
            "background": bool(self.background),
            "service_tier": "default",
        }

    def _instructions(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.instructions}] if self.instructions else []

    def _response_format(self) -> dict[str, Any] | None:
        form = None if self.text is None else self.text.format
        if form is None or form.get("type") in ("text", "json_object"):
            return form
        if form.get("type") != "json_schema":
            known = "text, json_object or json_schema"
            raise refused("text.format.type", form.get("type"), known)
        if not isinstance(form.get("schema"), dict):
            raise refused("text.format.schema", form.get("schema"), "a JSON schema")
        named = {name: value for name, value in form.items() if name != "type"}
        return {"type": "json_schema", "json_schema": named}


def rename(error: QianyanError, request: ResponseRequest, places: Sequence[str]) -> QianyanError:
    """Put an error about chat's fields into the words of the request it came from."""
    failure = to_failure(error)
    if failure.status >= 500 or failure.status in (429, 499):
        return error

    def place_of(found: re.Match[str]) -> str:
        at = int(found[1]) - request.num_before_items
        return places[at] if 0 <= at < len(places) else "instructions"

    def tool_of(found: re.Match[str]) -> str:
        at = int(found[1])
        places = read_offer(request.tools or [], request.tool_choice).places
        return f"tools[{places[at]}]" if at < len(places) else "tools"

    message = _TOOL.sub(tool_of, _MESSAGE.sub(place_of, failure.message))
    for old, new in _RENAMED.items():
        message = re.sub(rf"\b(?<!\.){re.escape(old)}\b", new, message)
    place = _PLACE.match(message)
    is_form = isinstance(error, GrammarError) and request.text is not None
    named = {**_RENAMED, "messages": "input"}.get(failure.param or "", failure.param)
    is_field = place is not None and re.split(r"[.\[]", place[0])[0] in ResponseRequest.model_fields
    return RefusedError(
        message,
        status=failure.status,
        code=failure.code,
        param=place[0] if place is not None and is_field else "text.format" if is_form else named,
    )


def _shown_tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": None, **tool}


def _unsupported(message: str, param: str) -> RefusedError:
    return RefusedError(message, status=400, code="unsupported_value", param=param)
