"""The body of POST chat/completions, parsed once: OpenAI's fields and those Bailian adds.

Numbers are checked by the engine, which knows their ranges. A field that would change the answer
and cannot be honoured is refused; one that nobody here knows is named in the header
`x-ignored-fields` of the response.
"""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from qianyan.engine.options import MAX_LOGPROBS, ChatOptions
from qianyan.errors import InputError
from qianyan.inputs.parts import PictureConfig
from qianyan.inputs.patches import PatchConfig
from qianyan.server.errors import RefusedError
from qianyan.server.extraction import (
    ExtractionOptions,
    count_pictures,
    read_ocr_options,
    to_response_format,
    wants_turning,
)
from qianyan.server.extraction import to_messages as to_extraction
from qianyan.server.generate import Question
from qianyan.server.openai_messages import to_messages
from qianyan.server.search_options import read_search_options
from qianyan.server.searching import AskedSearch, WebSearch
from qianyan.server.settings import ServerLimits
from qianyan.server.told import Telling, read_space

SAME_NAMES = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "stop",
    "max_tokens",
    "max_completion_tokens",
    "thinking_budget",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
)
"""Fields that mean the same as the engine's option of that name."""
NOT_WITH_EXTRACTION = ("n", "tools", "enable_search", "response_format", "thinking_budget")
WITHOUT_EFFECT = frozenset(
    {"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}
)
"""Fields of hosted services that change no answer."""
MOST_IGNORED_NAMES = 10
_FIELD_NAME = re.compile(r"\w{1,64}", re.ASCII)


class StreamOptions(BaseModel):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """A request for chat completions; None means not given."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: Any = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    vl_high_resolution_images: bool | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_search: bool | None = None
    search_options: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    ocr_options: dict[str, Any] | None = None
    vl_enable_image_hw_output: bool | None = None
    coordinate_space: str | None = None

    def to_question(
        self, pictures: PictureConfig | None, limits: ServerLimits, web: WebSearch | None = None
    ) -> Question:
        """Say what is asked of the engine; raises RefusedError for what it cannot do.

        Without `web` there is no search here.
        """
        self._refuse_what_is_missing()
        num_choices = 1 if self.n is None else self.n
        if not 1 <= num_choices <= limits.max_choices:
            raise _refused(f"n is {num_choices}; expected 1 to {limits.max_choices}.", "n")
        messages = to_messages(
            self.messages,
            max_pixels=pictures.max_pixels if isinstance(pictures, PatchConfig) else None,
            keeps_detail=bool(self.vl_high_resolution_images),
        )
        options, telling = self._options(), self._telling(messages)
        if telling.extraction is not None:
            messages = to_extraction(messages, telling.extraction)
            options = self._extracting(options, telling.extraction)
        return Question(
            messages=messages,
            options=options,
            num_choices=num_choices,
            reasoning_effort=self.reasoning_effort,
            search=self._search(web, num_choices),
            telling=telling,
        )

    @property
    def thinking(self) -> bool | None:
        """What is said of thinking by a switch: Bailian's, or the one of other servers' clients."""
        if self.enable_thinking is not None:
            return self.enable_thinking
        stated = (self.chat_template_kwargs or {}).get("enable_thinking")
        if stated is not None and not isinstance(stated, bool):
            raise _refused(
                "chat_template_kwargs.enable_thinking is neither true nor false.",
                "chat_template_kwargs",
            )
        return stated

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens are told for each; None: no probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def ignored_fields(self) -> list[str]:
        """Name the fields that were given and mean nothing here."""
        names = (name for name, value in (self.model_extra or {}).items() if value is not None)
        shown = (name if _FIELD_NAME.fullmatch(name) else "?" for name in names)
        return sorted(set(shown) - WITHOUT_EFFECT)[:MOST_IGNORED_NAMES]

    def _search(self, web: WebSearch | None, num_choices: int) -> AskedSearch | None:
        """Read what is asked of web search; options without `enable_search` are checked too."""
        try:
            options = read_search_options(self.search_options)
        except InputError as error:
            raise RefusedError(
                str(error), status=400, code=error.code, param="search_options"
            ) from error
        if not self.enable_search:
            return None
        if web is None:
            raise _refused(
                "This server has no web search; expected enable_search false, or a server that "
                "was started with --search-provider.",
                "enable_search",
            )
        if num_choices > 1:
            raise _refused(f"n is {num_choices}; expected 1 with enable_search.", "n")
        return AskedSearch(web, options)

    def _options(self) -> ChatOptions:
        given: dict[str, Any] = {name: getattr(self, name) for name in SAME_NAMES}
        form = self.response_format
        if form is not None and form.get("type") != "text":
            given["response_format"] = form
        given["logprobs"] = self.num_logprobs
        given["enable_thinking"] = self.thinking
        options: ChatOptions = {}
        options.update({name: value for name, value in given.items() if value is not None})  # type: ignore[typeddict-item]
        return options

    def _telling(self, messages: list[dict[str, Any]]) -> Telling:
        """Read what is to be told beside the answer."""
        space = read_space(self.coordinate_space)
        num_pictures = count_pictures(messages)
        if space is not None and num_pictures != 1:
            raise _refused(
                f"coordinate_space is given with {num_pictures} pictures in the messages; expected "
                "exactly one.",
                "coordinate_space",
            )
        extraction = None if self.ocr_options is None else read_ocr_options(self.ocr_options)
        return Telling(
            shows_image_hw=bool(self.vl_enable_image_hw_output),
            space=space,
            extraction=extraction,
            turns=extraction is not None and wants_turning(self.messages),
        )

    def _extracting(self, options: ChatOptions, extraction: ExtractionOptions) -> ChatOptions:
        """Hold an answer to its task's form; what would make it another one is refused."""
        for name in NOT_WITH_EXTRACTION:
            value = getattr(self, name)
            if value is True or value not in (None, False, 1, [], {"type": "text"}):
                raise _refused(f"{name} is given with ocr_options; expected it left out.", name)
        form = to_response_format(extraction)
        held: ChatOptions = {"temperature": 0.0, "enable_thinking": False, **options}
        if form is not None:
            held["response_format"] = form
        return held

    def _refuse_what_is_missing(self) -> None:
        """Refuse what would change the answer and is not there, rather than leave it out."""
        if self.audio is not None or set(self.modalities or ()) - {"text"}:
            raise _refused(
                f"The model {self.model[:80]} does not speak here; expected modalities ['text'] "
                "and no audio.",
                "modalities",
            )
        if set(self.chat_template_kwargs or ()) - {"enable_thinking"}:
            raise _refused(
                "chat_template_kwargs holds what this server does not know; expected only "
                "enable_thinking.",
                "chat_template_kwargs",
            )
        if self.web_search_options is not None:
            raise _refused(
                "web_search_options is of another server; expected enable_search true, and "
                "search_options beside it.",
                "web_search_options",
            )
        if self.functions:
            raise _refused("functions are of an older API; expected tools.", "functions")
        if self.top_logprobs is not None and not self.logprobs:
            raise _refused("top_logprobs is given without logprobs; expected logprobs true.",
                           "top_logprobs")  # fmt: skip
        if not 0 <= (self.top_logprobs or 0) <= MAX_LOGPROBS:
            raise InputError(f"top_logprobs is {self.top_logprobs}; expected 0 to {MAX_LOGPROBS}.")


def _refused(message: str, param: str) -> RefusedError:
    return RefusedError(message, status=400, code="unsupported_value", param=param)
