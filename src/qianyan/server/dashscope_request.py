"""The body of a request for generation in DashScope's form, read once.

Its parameters have the names of Bailian's fields in OpenAI's form, so they are read as those
(`openai_request.py`) but for the few that only this form has: `result_format`,
`incremental_output` and `vl_enable_image_hw_output`.
"""

from typing import Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError

from qianyan.server.dashscope_messages import history_messages, to_openai_messages
from qianyan.server.errors import RefusedError
from qianyan.server.openai_request import ChatRequest

ELSEWHERE = ("model", "messages", "stream", "stream_options")
"""Fields of OpenAI's form that this one has in other places, so as parameters they mean nothing."""


class Conversation(BaseModel):
    """What is to be answered: messages, or a prompt with the turns before it."""

    model_config = ConfigDict(strict=True)

    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    history: list[dict[str, str]] | None = None

    def to_messages(self) -> list[dict[str, Any]]:
        """Write either form as OpenAI's messages."""
        if self.messages and not self.prompt and not self.history:
            return to_openai_messages(self.messages)
        if self.prompt and not self.messages:
            return history_messages(self.history or (), self.prompt)
        raise RefusedError(
            "input holds messages and a prompt; expected one of them."
            if self.messages
            else "input holds nothing to answer; expected messages or a prompt.",
            status=400,
            code="missing_input",
            param="input",
        )


class Parameters(BaseModel):
    """How it is to be answered; all other names are those of `ChatRequest`."""

    model_config = ConfigDict(strict=True, extra="allow")

    result_format: Literal["text", "message"] | None = None
    incremental_output: bool | None = None
    vl_enable_image_hw_output: bool | None = None
    translation_options: dict[str, Any] | None = None

    def refuse_what_is_missing(self) -> None:
        """Refuse what would change the answer and is not there, rather than leave it out."""
        if self.translation_options is not None:
            raise RefusedError(
                "translation_options is given, which this server does not know; expected a message "
                "that says in words what is to be done.",
                status=400,
                code="unsupported_value",
                param="translation_options",
            )


class GenerationRequest(BaseModel):
    """A request for generation; None means not given."""

    model_config = ConfigDict(strict=True)

    model: str | None = None
    input: Conversation | None = None
    parameters: Parameters | None = None

    @property
    def stated(self) -> Parameters:
        """The parameters, none of them given where the request has none."""
        return self.parameters or Parameters()

    def named_model(self) -> str:
        """Give the model's name; RefusedError when there is none."""
        if not self.model:
            raise RefusedError(
                "The request names no model; you must provide a model parameter.",
                status=400,
                code="missing_model",
                param="model",
            )
        return self.model

    def to_chat(self) -> ChatRequest:
        """Read the request as one in OpenAI's form; what may go wrong is answered with 400."""
        model = self.named_model()
        self.stated.refuse_what_is_missing()
        extra = self.stated.model_extra or {}
        given = {name: value for name, value in extra.items() if name not in ELSEWHERE}
        messages = (self.input or Conversation()).to_messages()
        try:
            return ChatRequest.model_validate({**given, "model": model, "messages": messages})
        except ValidationError as error:
            places = [{**one, "loc": ("parameters", *one["loc"])} for one in error.errors()]
            raise RequestValidationError(places) from error
