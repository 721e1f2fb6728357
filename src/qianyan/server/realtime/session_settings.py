"""The settings of a conversation over a socket, and what clients may change of them.

Clients say the same in three ways: OpenAI's present form (`output_modalities`, `audio.input`),
that of its beta and Bailian's (`modalities`, `input_audio_format`). All are read on every path;
what would change an answer and cannot be done is refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from qianyan.engine.options import ChatOptions
from qianyan.engine.speech import USUAL_VOICE
from qianyan.errors import quote
from qianyan.server.errors import RefusedError
from qianyan.server.realtime.client_events import (
    AnswerFields,
    FormatFields,
    MaxTokens,
    SessionFields,
    TurnDetectionFields,
)

RATES_HZ = (8_000, 16_000, 24_000, 48_000)
SPOKEN_RATE_HZ = 24_000
"""Of all speech, in both forms."""
LEAST_THRESHOLD = 0.05
"""Bailian's clients may ask for less than nothing, which would hear speech in silence."""
_PCM = frozenset({"pcm", "pcm16", "pcm24", "audio/pcm"})
"""Names of 16-bit samples; Bailian calls its 24 kHz `pcm24`."""
_NUMBERS = ("temperature", "top_p", "top_k", "presence_penalty", "repetition_penalty", "seed")
_MOST_TOKENS = ("max_tokens", "max_output_tokens", "max_response_output_tokens")


@dataclass(frozen=True, kw_only=True)
class TurnDetection:
    """When somebody is taken to speak, and what follows from it.

    Args:
        threshold: probability of speech from which on it is taken for some.
        prefix_padding_ms: sound before it that belongs to it.
        silence_duration_ms: silence that ends it.
        create_response: answer when it ends.
        interrupt_response: stop answering when it begins.
    """

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    create_response: bool = True
    interrupt_response: bool = True


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What the model and the server can do: `voices` is empty for a model that does not speak."""

    voices: tuple[str, ...]
    has_vad: bool
    max_text_characters: int

    @property
    def usual_voice(self) -> str | None:
        """The voice where none is asked for."""
        return USUAL_VOICE if USUAL_VOICE in self.voices else next(iter(self.voices), None)


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """How one conversation goes on; `detection` None: the client says when a turn ends."""

    is_spoken: bool
    input_rate_hz: int
    voice: str | None = None
    instructions: str = ""
    detection: TurnDetection | None = None
    options: ChatOptions = field(default_factory=ChatOptions)


def change_session(
    settings: SessionSettings, fields: SessionFields, able: Abilities
) -> SessionSettings:
    """Change the settings of a session; raises RefusedError, and changes nothing then."""
    if fields.type not in (None, "realtime"):
        raise _unsupported("session.type", f"is {quote(fields.type)}", "realtime")
    _refuse_switches(fields)
    settings = change_answer(settings, fields, able, where="session")
    given = fields.audio.input if fields.audio is not None else None
    if fields.input_audio_format is not None:
        _check_pcm(fields.input_audio_format, "session.input_audio_format")
    if fields.sample_rate is not None:
        settings = replace(settings, input_rate_hz=_rate(fields.sample_rate, "session.sample_rate"))
    if given is not None and given.format is not None:
        where = "session.audio.input.format"
        rate_hz = _rate_of(given.format, where) or settings.input_rate_hz
        settings = replace(settings, input_rate_hz=rate_hz)
    for part, where in ((fields, "session"), (given, "session.audio.input")):
        if part is not None and "turn_detection" in part.model_fields_set:
            detection = _read_detection(part.turn_detection, f"{where}.turn_detection", able)
            settings = replace(settings, detection=detection)
    return settings


def change_answer(
    settings: SessionSettings, fields: AnswerFields, able: Abilities, *, where: str
) -> SessionSettings:
    """Change what concerns answers; raises RefusedError."""
    for name in ("tools", "prompt"):
        if getattr(fields, name):
            raise _unsupported(f"{where}.{name}", "is given", "it left out")
    changed: dict[str, Any] = {}
    spoken = _read_modalities(fields, able, where)
    if spoken is not None:
        changed["is_spoken"] = spoken
    if fields.instructions is not None:
        check_text(fields.instructions, f"{where}.instructions", able.max_text_characters)
        changed["instructions"] = fields.instructions
    output = fields.audio.output if fields.audio is not None else None
    voice = fields.voice if output is None or output.voice is None else output.voice
    if voice is not None and able.voices:
        changed["voice"] = _check_voice(voice, able)
    if fields.output_audio_format is not None:
        _check_pcm(fields.output_audio_format, f"{where}.output_audio_format")
    if output is not None:
        if output.speed not in (None, 1):
            raise _unsupported(f"{where}.audio.output.speed", f"is {output.speed}", "1")
        if output.format is not None:
            place = f"{where}.audio.output.format"
            if (_rate_of(output.format, place) or SPOKEN_RATE_HZ) != SPOKEN_RATE_HZ:
                raise _unsupported(f"{place}.rate", "is another one", str(SPOKEN_RATE_HZ))
    return replace(settings, options=_read_options(settings.options, fields), **changed)


def check_text(text: str, where: str, most: int) -> None:
    """Raise RefusedError for a text that is too long."""
    if len(text) > most:
        raise RefusedError(
            f"{where} has {len(text)} characters; expected at most {most}.",
            status=400,
            code="invalid_value",
            param=where,
        )


def _read_modalities(fields: AnswerFields, able: Abilities, where: str) -> bool | None:
    """Read whether answers are spoken; None where nothing is said of it."""
    for name, combinations in (
        ("modalities", ({"text"}, {"text", "audio"})),
        ("output_modalities", ({"text"}, {"audio"})),
    ):
        given = getattr(fields, name)
        if given is None:
            continue
        if set(given) not in combinations:
            supported = " and ".join(str(sorted(one)) for one in combinations)
            raise RefusedError(  # Bailian's own sentence
                f"Invalid modalities: {given}. Supported combinations are: {supported}.",
                status=400,
                code="invalid_value",
                param=f"{where}.{name}",
            )
        if "audio" in given and not able.voices:
            raise RefusedError(
                "The model does not speak; expected modalities ['text'].",
                status=400,
                code="unsupported_value",
                param=f"{where}.{name}",
            )
        return "audio" in given
    return None


def _check_voice(voice: str, able: Abilities) -> str:
    if voice not in able.voices:
        *others, last = (f"'{name}'" for name in able.voices)
        names = f"{', '.join(others)} or {last}" if others else last
        raise RefusedError(  # the sentence that Bailian's clients know
            f"Input should be {names}: parameters.audio.voice",
            status=400,
            code="invalid_value",
            param="voice",
        )
    return voice


def _read_options(before: ChatOptions, fields: AnswerFields) -> ChatOptions:
    options = before.copy()
    for name in _NUMBERS:
        value = getattr(fields, name)
        if value is not None:
            options[name] = value  # type: ignore[literal-required]  # the engine's own names
    for most in _given(getattr(fields, name) for name in _MOST_TOKENS):
        if most == "inf":
            options.pop("max_tokens", None)
        elif isinstance(most, int) and most > 0:
            options["max_tokens"] = most
        else:
            raise _unsupported("max_output_tokens", f"is {most}", "a number above 0, or 'inf'")
    return options


def _given(values: Iterable[MaxTokens | None]) -> list[MaxTokens]:
    return [one for one in values if one is not None]


def _read_detection(
    fields: TurnDetectionFields | None, where: str, able: Abilities
) -> TurnDetection | None:
    if fields is None:
        return None
    if fields.type != "server_vad":
        raise _unsupported(f"{where}.type", f"is {quote(fields.type)}", "server_vad, or null")
    if fields.idle_timeout_ms is not None:
        raise _unsupported(f"{where}.idle_timeout_ms", "is given", "it left out")
    if not able.has_vad:
        raise RefusedError(
            f"{where} needs a detector of speech, which is not installed. Install it where the "
            "server runs: pip install 'qianyan[vad]', or set turn_detection to null and say by "
            "input_audio_buffer.commit when a turn ends.",
            status=400,
            code="missing_extra",
            param=where,
        )
    stated = {
        name: getattr(fields, name)
        for name in TurnDetection.__dataclass_fields__
        if getattr(fields, name) is not None
    }
    detection = TurnDetection(**stated)
    return replace(detection, threshold=max(detection.threshold, LEAST_THRESHOLD))


def _refuse_switches(fields: SessionFields) -> None:
    """Refuse what other servers do to sounds and answers, and this one does not."""
    if fields.enable_search:
        raise _unsupported("session.enable_search", "is true", "false")
    if fields.input_audio_noise_reduction is not None:
        raise _unsupported("session.input_audio_noise_reduction", "is given", "null")
    if fields.speed not in (None, 1):
        raise _unsupported("session.speed", f"is {fields.speed}", "1")
    given = fields.audio.input if fields.audio is not None else None
    if given is not None and given.noise_reduction is not None:
        raise _unsupported("session.audio.input.noise_reduction", "is given", "null")


def _rate_of(given: FormatFields, where: str) -> int | None:
    _check_pcm(given.type, f"{where}.type")
    rate_hz = given.rate if given.rate is not None else given.sample_rate
    return None if rate_hz is None else _rate(rate_hz, f"{where}.rate")


def _check_pcm(name: str, where: str) -> None:
    if name not in _PCM:
        raise _unsupported(where, f"is {quote(name)}", "16-bit samples (pcm16, audio/pcm)")


def _rate(rate_hz: int, where: str) -> int:
    if rate_hz not in RATES_HZ:
        raise _unsupported(where, f"is {rate_hz}", f"one of {', '.join(map(str, RATES_HZ))}")
    return rate_hz


def _unsupported(where: str, what: str, expected: str) -> RefusedError:
    return RefusedError(
        f"{where} {what}; expected {expected}.",
        status=400,
        code="unsupported_value",
        param=where,
    )
