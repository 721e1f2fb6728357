"""How a session, its items and its answers are written: in OpenAI's present form, or in its beta's.

Bailian's Qwen-Omni-Realtime has the events of OpenAI's beta. The present form calls some of them,
some kinds of content and the settings otherwise; nothing else differs.
"""

from dataclasses import dataclass
from typing import Any

from qianyan.server.realtime.items import Item, Part
from qianyan.server.realtime.session_settings import (
    SPOKEN_RATE_HZ,
    SessionSettings,
    TurnDetection,
)

_BETA_NAMES = {
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
    "conversation.item.added": "conversation.item.created",
}
_BETA_LACKS = frozenset({"conversation.item.done"})


@dataclass(frozen=True, kw_only=True)
class SessionFacts:
    """What of a session does not change; `expires_at` is in seconds of Unix time."""

    session_id: str
    model: str
    voices: tuple[str, ...]
    expires_at: int


@dataclass(frozen=True, kw_only=True)
class Form:
    """One of the two forms; `input_rate_hz` is the rate of sounds where a client states none."""

    is_beta: bool
    input_rate_hz: int

    def event_name(self, name: str) -> str | None:
        """Call an event by its name in this form; None for one that it does not have."""
        if not self.is_beta:
            return name
        return None if name in _BETA_LACKS else _BETA_NAMES.get(name, name)

    def session(self, facts: SessionFacts, settings: SessionSettings) -> dict[str, Any]:
        """Write a session with its settings; `voices` is our own."""
        detection = _detection(settings.detection)
        most = settings.options.get("max_tokens") or "inf"
        whole = {
            "object": "realtime.session",
            "id": facts.session_id,
            "model": facts.model,
            "instructions": settings.instructions,
            "tools": [],
            "tool_choice": "auto",
            "expires_at": facts.expires_at,
            "voices": list(facts.voices),
        }
        if self.is_beta:
            return whole | {
                "modalities": ["text", "audio"] if settings.is_spoken else ["text"],
                "voice": settings.voice,
                "input_audio_format": "pcm16",
                "output_audio_format": "pcm16",
                "sample_rate": settings.input_rate_hz,
                "input_audio_transcription": None,
                "turn_detection": detection,
                "temperature": settings.options.get("temperature"),
                "max_response_output_tokens": most,
            }
        return whole | {
            "type": "realtime",
            "output_modalities": ["audio"] if settings.is_spoken else ["text"],
            "max_output_tokens": most,
            "truncation": "auto",
            "audio": {
                "input": {
                    "format": _pcm(settings.input_rate_hz),
                    "transcription": None,
                    "noise_reduction": None,
                    "turn_detection": detection and detection | {"idle_timeout_ms": None},
                },
                "output": {"format": _pcm(SPOKEN_RATE_HZ), "voice": settings.voice, "speed": 1.0},
            },
        }

    def item(self, item: Item) -> dict[str, Any]:
        """Write an item; of sounds and pictures nothing is sent back."""
        return {
            "id": item.item_id,
            "object": "realtime.item",
            "type": "message",
            "status": item.status,
            "role": item.role,
            "content": [self._content(item, part) for part in item.parts],
        }

    def part(self, part: Part) -> dict[str, Any]:
        """Write a piece of an answer while it is made."""
        if part.kind == "text":
            return {"type": "text", "text": part.text or ""}
        return {"type": "audio", "transcript": part.text or ""}

    def modalities(self, *, is_spoken: bool, voice: str | None) -> dict[str, Any]:
        """Write how a response is given."""
        if self.is_beta:
            both = ["text", "audio"] if is_spoken else ["text"]
            return {"modalities": both, "voice": voice, "output_audio_format": "pcm16"}
        output = {"format": _pcm(SPOKEN_RATE_HZ), "voice": voice}
        return {
            "output_modalities": ["audio"] if is_spoken else ["text"],
            "audio": {"output": output} if is_spoken else None,
        }

    def _content(self, item: Item, part: Part) -> dict[str, Any]:
        if item.role == "assistant" and not self.is_beta:
            kind = "output_audio" if part.kind == "audio" else "output_text"
        elif item.role == "assistant":
            kind = part.kind
        else:
            kind = f"input_{part.kind}"
        if part.kind == "text":
            return {"type": kind, "text": part.text or ""}
        return {"type": kind} if part.kind == "image" else {"type": kind, "transcript": part.text}


def _pcm(rate_hz: int) -> dict[str, Any]:
    return {"type": "audio/pcm", "rate": rate_hz}


def _detection(detection: TurnDetection | None) -> dict[str, Any] | None:
    if detection is None:
        return None
    return {
        "type": "server_vad",
        "threshold": detection.threshold,
        "prefix_padding_ms": detection.prefix_padding_ms,
        "silence_duration_ms": detection.silence_duration_ms,
        "create_response": detection.create_response,
        "interrupt_response": detection.interrupt_response,
    }
