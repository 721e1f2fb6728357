"""Answers of chat/completions that are spoken: text and sound in one reply.

A stream has the text in `delta.audio.transcript` and the sound in `delta.audio.data`, base64 of
16-bit PCM, mono, 24 kHz, whatever the format's name, as Bailian's Qwen2.5-Omni sends them. A reply
that is no stream, which Bailian refuses, has all of it in `message.audio`, as OpenAI's has: a WAV
file, or the bare samples. Sounds are kept nowhere, so they expire when they are made.
"""

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from qianyan.engine.request import Completion, Finished, TokenText
from qianyan.engine.speaking import Sound
from qianyan.errors import QianyanError
from qianyan.server.errors import openai_body, to_failure
from qianyan.server.openai_reply import OpenAIReply
from qianyan.server.spoken_answer import (
    AskedSpeech,
    SpokenAnswer,
    WholeSpeech,
    new_sound_id,
    to_pcm,
)
from qianyan.server.stream import to_json

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, kw_only=True)
class SpokenReply:
    """One reply with sound; the sound's id is the same in every chunk."""

    reply: OpenAIReply
    asked: AskedSpeech
    audio_id: str = field(default_factory=new_sound_id)

    def transcript_chunk(self, token: TokenText) -> dict[str, Any]:
        """Write the text of one more token."""
        return self.reply.chunk(0, {"audio": self._audio({"transcript": token.text})})

    def sound_chunk(self, sound: Sound) -> dict[str, Any]:
        """Write one more piece of sound."""
        data = base64.b64encode(to_pcm(sound)).decode()
        return self.reply.chunk(0, {"audio": self._audio({"data": data})})

    def whole(self, spoken: WholeSpeech) -> dict[str, Any]:
        """Write a chat.completion with all of the sound."""
        completion = spoken.completion
        data = base64.b64encode(self.asked.to_file(spoken.pcm)).decode()
        whole = self.reply.whole([completion], [[]])
        audio = self._audio({"data": data, "transcript": completion.text})
        whole["choices"][0]["message"]["audio"] = audio
        return {**whole, "usage": self.usage(completion, spoken.num_codes)}

    def usage(self, completion: Completion, num_codes: int) -> dict[str, Any]:
        """Count the tokens, those of the speech among them: 50 a second."""
        usage: dict[str, Any] = self.reply.usage_chunk([completion])["usage"]
        num_text = usage["completion_tokens"]
        details = usage["completion_tokens_details"]
        return {
            **usage,
            "completion_tokens": num_text + num_codes,
            "total_tokens": usage["total_tokens"] + num_codes,
            "completion_tokens_details": {
                **details,
                "audio_tokens": num_codes,
                "text_tokens": num_text,
            },
        }

    def _audio(self, part: dict[str, str]) -> dict[str, Any]:
        return {"id": self.audio_id, "expires_at": self.reply.created, **part}


async def write_speech(
    answer: SpokenAnswer, spoken: SpokenReply, request_id: str, *, includes_usage: bool
) -> AsyncIterator[str]:
    """Write a stream of chunks; what ends an answer early becomes an event with the error."""
    reply = spoken.reply
    yield _event(reply.first_chunk(0))
    try:
        async for event in answer.events():
            if isinstance(event, Sound):
                yield _event(spoken.sound_chunk(event))
            elif isinstance(event, Finished):
                completion = event.completion
                yield _event(reply.last_chunk(0, completion))
            elif event.text:
                yield _event(spoken.transcript_chunk(event))
    except QianyanError as error:
        yield _event(openai_body(to_failure(error), request_id))
        return
    if includes_usage:
        usage = spoken.usage(completion, answer.num_codes)
        yield _event({**reply.usage_chunk([completion]), "usage": usage})
    yield DONE


def _event(data: dict[str, Any]) -> str:
    return f"data: {to_json(data)}\n\n"
