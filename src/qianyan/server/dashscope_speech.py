"""Spoken answers in DashScope's words, which Bailian itself has in OpenAI's form only.

The sound is in `output.audio`, where Bailian's speech models have theirs and its SDK reads it:
`data`, `id` and `expires_at`. In a stream each packet has what is new of it, whatever
`incremental_output` says of the text: base64 of 16-bit PCM, mono, 24 kHz. A whole answer has a WAV
file, or the bare samples. Sounds are kept nowhere, so they expire when they are made.
"""

import base64
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from qianyan.engine.request import Finished
from qianyan.engine.speaking import Sound
from qianyan.server.dashscope_reply import Choice, DashScopeReply
from qianyan.server.generate import Question
from qianyan.server.spoken_answer import (
    AskedSpeech,
    SpokenAnswer,
    begin_spoken,
    collect_spoken,
    new_sound_id,
    to_pcm,
)
from qianyan.server.worker import Worker


@dataclass(frozen=True, kw_only=True)
class SpokenPackets:
    """Asks a question and writes the answer with its sound, whose id every packet repeats."""

    worker: Worker
    question: Question
    asked: AskedSpeech
    reply: DashScopeReply
    audio_id: str = field(default_factory=new_sound_id)
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self) -> dict[str, Any]:
        """Answer as a whole."""
        spoken = await collect_spoken(self.worker, self.question, self.asked)
        packet = self.reply.whole([spoken.completion], [[]])
        return self._sounding(packet, self.asked.to_file(spoken.pcm), spoken.num_codes)

    async def begin(self) -> tuple[AsyncIterator[dict[str, Any]], Callable[[], None]]:
        """Let a stream begin; give its packets, and what must be called when nobody reads."""
        answer = await begin_spoken(self.worker, self.question, self.asked)
        return self._follow(answer), answer.leave

    async def _follow(self, answer: SpokenAnswer) -> AsyncIterator[dict[str, Any]]:
        choice = Choice(0, answer)
        async for event in answer.events():
            fresh = b""
            packet: dict[str, Any] | None
            if isinstance(event, Sound):
                fresh = to_pcm(event)
                packet = self.reply.quiet_packet(choice)
            elif isinstance(event, Finished):
                packet = self.reply.last_packet(choice, event.completion)
            else:
                packet = self.reply.packet(choice, event)
            if packet is not None:
                yield self._sounding(packet, fresh, answer.num_codes)

    def _sounding(self, packet: dict[str, Any], data: bytes, num_codes: int) -> dict[str, Any]:
        """Put a sound beside what a packet says, and its codes to the tokens of the answer."""
        sound = base64.b64encode(data).decode()
        audio = {"data": sound, "id": self.audio_id, "expires_at": self.created}
        usage = packet["usage"]
        num_text = usage["output_tokens"]
        details = {"text_tokens": num_text, **usage.get("output_tokens_details", {})}
        usage |= {
            "output_tokens": num_text + num_codes,
            "total_tokens": usage["total_tokens"] + num_codes,
            "output_tokens_details": {**details, "audio_tokens": num_codes},
        }
        return {**packet, "output": {**packet["output"], "audio": audio}}
