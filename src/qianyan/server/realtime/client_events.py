"""What clients send over a socket, parsed once: OpenAI's realtime events and those Bailian adds.

Source: OpenAI's Realtime API, in its present form and that of its beta, and Bailian's
Qwen-Omni-Realtime. Fields that nobody here knows are left out; what would change an answer and
cannot be done is refused where it is read (`session_settings.py`).
"""

import base64
import binascii
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from qianyan.errors import quote
from qianyan.server.errors import RefusedError, field_error

MAX_ID_CHARACTERS = 512
_STRUCTURE = (",", "[", "{")
Modalities = list[Literal["text", "audio"]]
MaxTokens = int | Literal["inf"]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class TurnDetectionFields(_Fields):
    """How the server finds out that somebody speaks."""

    type: str
    threshold: float | None = Field(default=None, ge=-1, le=1)
    prefix_padding_ms: int | None = Field(default=None, ge=0, le=5_000)
    silence_duration_ms: int | None = Field(default=None, ge=100, le=10_000)
    idle_timeout_ms: int | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None


class FormatFields(_Fields):
    """What the samples are: OpenAI's `rate`, Bailian's `sample_rate`."""

    type: str
    rate: int | None = None
    sample_rate: int | None = None


class InputFields(_Fields):
    """What comes from the user."""

    format: FormatFields | None = None
    turn_detection: TurnDetectionFields | None = None
    noise_reduction: Any = None


class OutputFields(_Fields):
    """What goes to the user."""

    format: FormatFields | None = None
    voice: str | None = None
    speed: float | None = None


class AudioFields(_Fields):
    """Sound in both directions."""

    input: InputFields | None = None
    output: OutputFields | None = None


class AnswerFields(_Fields):
    """What may be said of answers, for a session and for one response."""

    modalities: Modalities | None = None
    output_modalities: Modalities | None = None
    instructions: str | None = None
    voice: str | None = None
    audio: AudioFields | None = None
    output_audio_format: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    seed: int | None = Field(default=None, ge=0)
    max_tokens: MaxTokens | None = None
    max_output_tokens: MaxTokens | None = None
    max_response_output_tokens: MaxTokens | None = None
    tools: list[Any] | None = None
    prompt: Any = None


class SessionFields(AnswerFields):
    """What may be said of a session."""

    type: str | None = None
    input_audio_format: str | None = None
    sample_rate: int | None = None
    turn_detection: TurnDetectionFields | None = None
    input_audio_noise_reduction: Any = None
    speed: float | None = None
    enable_search: bool | None = None


class ResponseFields(AnswerFields):
    """What may be said of one response."""

    conversation: str | None = None
    input: list[dict[str, Any]] | None = None
    metadata: dict[str, str] | None = None


class ClientEvent(_Fields):
    """One event of a client."""

    event_id: str | None = Field(default=None, max_length=MAX_ID_CHARACTERS)


class UpdateSession(ClientEvent):
    """Change the settings."""

    session: SessionFields


class AppendSound(ClientEvent):
    """More sound of the user."""

    audio: str


class AppendFrame(ClientEvent):
    """What the camera sees now."""

    image: str


class CommitBuffer(ClientEvent):
    """The user has ended a turn."""


class ClearBuffer(ClientEvent):
    """The user's turn did not happen."""


class CreateItem(ClientEvent):
    """Put an item into the conversation."""

    item: dict[str, Any]
    previous_item_id: str | None = Field(default=None, max_length=MAX_ID_CHARACTERS)


class _OneItem(ClientEvent):
    item_id: str = Field(max_length=MAX_ID_CHARACTERS)


class DeleteItem(_OneItem):
    """Take an item out."""


class RetrieveItem(_OneItem):
    """Show an item."""


class TruncateItem(_OneItem):
    """The user has heard an answer as far as this and no further."""

    content_index: int = Field(ge=0)
    audio_end_ms: int = Field(ge=0)


class CreateResponse(ClientEvent):
    """Answer now."""

    response: ResponseFields | None = None


class CancelResponse(ClientEvent):
    """Say no more."""

    response_id: str | None = None


class FinishSession(ClientEvent):
    """End the conversation when what is being said is said (Bailian)."""


EVENTS: dict[str, type[ClientEvent]] = {
    "session.update": UpdateSession,
    "input_audio_buffer.append": AppendSound,
    "input_image_buffer.append": AppendFrame,
    "input_audio_buffer.commit": CommitBuffer,
    "input_audio_buffer.clear": ClearBuffer,
    "conversation.item.create": CreateItem,
    "conversation.item.delete": DeleteItem,
    "conversation.item.retrieve": RetrieveItem,
    "conversation.item.truncate": TruncateItem,
    "response.create": CreateResponse,
    "response.cancel": CancelResponse,
    "session.finish": FinishSession,
}


class UnreadableEventError(RefusedError):
    """An event that is none, and the id that its client gave it."""

    def __init__(self, refused: RefusedError, event_id: str | None) -> None:
        super().__init__(
            str(refused), status=refused.status, code=refused.code, param=refused.param
        )
        self.event_id = event_id


def read_event(text: str, *, max_values: int) -> ClientEvent:
    """Read an event; raises UnreadableEventError for what is none."""
    if sum(text.count(mark) for mark in _STRUCTURE) > max_values:
        raise UnreadableEventError(
            _refused(
                f"The event holds more than {max_values} values; expected fewer.",
                code="request_too_large",
            ),
            None,
        )
    try:
        data = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise UnreadableEventError(
            _refused("The event is not valid JSON; expected an object in UTF-8.", "invalid_json"),
            None,
        ) from error
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        raise UnreadableEventError(
            _refused("The event has no type; expected an object with one.", param="type"), None
        )
    given = data.get("event_id")
    event_id = given[:MAX_ID_CHARACTERS] if isinstance(given, str) else None
    kind = EVENTS.get(data["type"])
    if kind is None:
        raise UnreadableEventError(
            _refused(
                f"The event is of type {quote(data['type'])}; expected one of {', '.join(EVENTS)}.",
                param="type",
            ),
            event_id,
        )
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UnreadableEventError(field_error(error.errors()[0]), event_id) from error


def decode_base64(data: str, where: str) -> bytes:
    """Decode what an event holds; raises RefusedError."""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refused(f"{where} is not valid base64.", param=where) from error


def _refused(message: str, code: str = "invalid_value", param: str | None = None) -> RefusedError:
    return RefusedError(message, status=400, code=code, param=param)
