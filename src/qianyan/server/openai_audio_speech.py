"""POST audio/speech: a text read aloud word for word, as OpenAI's text-to-speech is asked for it.

The sound leaves block by block while it is made. It is WAV, whose header cannot tell the length of
what is not there yet and says the most, as OpenAI's does, or the bare 16-bit samples, mono, 24 kHz.
OpenAI's usual format, MP3, is not made here: without `response_format` it is WAV. What fails before
the first sound is an error like any other; later, the response breaks off, so that nobody takes it
for whole, or in a stream of events ends with the error.
"""

import asyncio
import base64
import struct
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any, Literal

import torch
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from qianyan.engine.reading_aloud import MAX_CHARACTERS, Reading
from qianyan.engine.speech import RATE_HZ
from qianyan.errors import QianyanError, quote
from qianyan.models.omni.pcm import SAMPLE_BYTES, to_pcm16
from qianyan.server.asking import asked_now
from qianyan.server.errors import RefusedError, openai_body, to_failure
from qianyan.server.metrics import Metrics
from qianyan.server.serving import Served
from qianyan.server.stream import EventStream, to_json, unless_gone
from qianyan.server.worker import Worker

router = APIRouter(tags=["speech"])
MEDIA_TYPES = {"wav": "audio/wav", "pcm": "audio/pcm"}
ENDLESS = 0xFFFFFFFF
"""The length of a sound that is still being made, in the header of a WAV file."""


class VoiceId(BaseModel):
    """A voice by its name, in the longer of OpenAI's two forms."""

    model_config = ConfigDict(strict=True)

    id: str


class SpeechRequest(BaseModel):
    """A text to be read aloud; None means not given.

    `seed` is our own: the same one reads the same text the same way.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str
    input: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
    voice: str | VoiceId | None = None
    response_format: str | None = None
    stream_format: Literal["audio", "sse"] | None = None
    speed: float | None = None
    instructions: str | None = None
    seed: Annotated[int | None, Field(ge=0)] = None

    @property
    def voice_name(self) -> str | None:
        """The voice's name; None is the model's usual one."""
        return self.voice.id if isinstance(self.voice, VoiceId) else self.voice

    @property
    def format(self) -> str:
        """WAV unless asked otherwise."""
        return self.response_format or "wav"

    def refuse_what_is_missing(self) -> None:
        """Refuse what would sound otherwise and cannot be done; raises RefusedError."""
        if self.format not in MEDIA_TYPES:
            raise _refused(
                f"response_format is {quote(self.format)}; expected wav or pcm.", "response_format"
            )
        if self.speed not in (None, 1):
            raise _refused(
                f"speed is {self.speed:g}, but voices speak here as fast as they were taught to; "
                "expected 1.",
                "speed",
            )
        if self.instructions:
            raise _refused(
                "instructions say how to speak, which cannot be told to a voice here; expected "
                "none.",
                "instructions",
            )


class Sounding:
    """A text being read aloud for one request; `leave` it after that."""

    def __init__(self, worker: Worker, reading: Reading, metrics: Metrics) -> None:
        self.reading = reading
        self._worker, self._metrics, self._asked = worker, metrics, asked_now()
        self._pieces = reading.pieces()
        self._left = ExitStack()
        self._ends_at = time.monotonic() + worker.limits.max_speech_s

    async def sit(self) -> None:
        """Wait for a seat among those who are spoken to; raises RefusedError."""
        await self._worker.voices.sit(self._asked.owner_id)
        self._left.callback(self._worker.voices.stand_up, self._asked.owner_id)
        self._left.callback(self._count)

    async def next(self) -> bytes | None:
        """Give the next samples; None behind the last ones. Raises RefusedError and ReplyError."""
        while True:
            self._refuse_too_late()
            samples = await self._worker.on_voice(partial(next, self._pieces, None))
            if samples is None:
                self.leave()
                return None
            if len(samples):
                self._asked.note_token()
                return to_pcm16(torch.from_numpy(samples))

    def leave(self) -> None:
        """Give back the seat; a second time does nothing."""
        self._left.close()

    @property
    def usage(self) -> dict[str, int]:
        """Count the tokens of the text, and those of the sound: 50 a second."""
        num_text, num_codes = self.reading.num_text_tokens, self.reading.num_codes
        return {
            "input_tokens": num_text,
            "output_tokens": num_codes,
            "total_tokens": num_text + num_codes,
        }

    def _count(self) -> None:
        reading = self.reading
        num_prompt = reading.num_prompt_tokens + reading.num_text_tokens
        tokens = {"prompt": num_prompt, "cached": 0, "completion": reading.num_codes}
        self._metrics.count_answer(self._asked, tokens)

    def _refuse_too_late(self) -> None:
        if time.monotonic() > self._ends_at:
            raise RefusedError(
                "The time for this request was over before the whole text was read aloud. Send a "
                "shorter one.",
                status=504,
                code="request_timeout",
            )


@router.post("/audio/speech")
async def create(request: Request, body: SpeechRequest, serving: Served) -> Response:
    """Read a text aloud."""
    serving.check_model(body.model)
    body.refuse_what_is_missing()
    sounding = await unless_gone(request, _begin(request, body, serving.worker))
    with ExitStack() as begun:
        begun.callback(sounding.leave)
        first = await unless_gone(request, sounding.next())
        begun.pop_all()
    if body.stream_format == "sse":
        return EventStream(_events(sounding, first, request.state.request_id), leave=sounding.leave)
    head = _wav_head() if body.format == "wav" else b""
    kind = {"content-type": MEDIA_TYPES[body.format]}
    return EventStream(_sound(sounding, head, first), leave=sounding.leave, headers=kind)


async def _begin(request: Request, body: SpeechRequest, worker: Worker) -> Sounding:
    """Check the text, load what speaks, and take a seat."""
    worker.refuse_unless_ready()
    if not worker.engine.speech.is_there:
        raise _refused(f"The model {body.model[:80]} does not speak; expected one that does, such "
                       "as Qwen2.5-Omni.", "model")  # fmt: skip
    speech = await asyncio.to_thread(worker.engine.speech.load)
    if body.voice_name is not None and body.voice_name not in speech.voices:
        known = ", ".join(speech.voices)
        raise _refused(f"voice is {quote(body.voice_name)}; expected one of {known}.", "voice")
    read = partial(Reading, worker.engine, body.input, voice=body.voice_name, seed=body.seed)
    sounding = Sounding(worker, await asyncio.to_thread(read), request.app.state.metrics)
    await sounding.sit()
    return sounding


async def _sound(sounding: Sounding, head: bytes, first: bytes | None) -> AsyncIterator[bytes]:
    yield head
    while first is not None:
        yield first
        first = await sounding.next()


async def _events(sounding: Sounding, first: bytes | None, request_id: str) -> AsyncIterator[str]:
    """Write OpenAI's events; what ends the speech early becomes an event with the error."""
    try:
        while first is not None:
            data = base64.b64encode(first).decode()
            yield _event({"type": "speech.audio.delta", "audio": data})
            first = await sounding.next()
    except QianyanError as error:
        yield _event({"type": "error", **openai_body(to_failure(error), request_id)})
        return
    yield _event({"type": "speech.audio.done", "usage": sounding.usage})


def _event(data: dict[str, Any]) -> str:
    return f"data: {to_json(data)}\n\n"


def _wav_head() -> bytes:
    """Write the header of a WAV file whose length is not known."""
    form = struct.pack("<HHIIHH", 1, 1, RATE_HZ, RATE_HZ * SAMPLE_BYTES, SAMPLE_BYTES, 16)
    parts = (b"RIFF", struct.pack("<I", ENDLESS), b"WAVEfmt ", struct.pack("<I", len(form)))
    return b"".join((*parts, form, b"data", struct.pack("<I", ENDLESS)))


def _refused(message: str, param: str) -> RefusedError:
    return RefusedError(message, status=400, code="unsupported_value", param=param)
