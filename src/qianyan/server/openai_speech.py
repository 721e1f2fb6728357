"""Answers of chat/completions that are spoken: text and sound in one reply.

A stream has the text in `delta.audio.transcript` and the sound in `delta.audio.data`, base64 of
16-bit PCM, mono, 24 kHz, whatever the format's name, as Bailian's Qwen2.5-Omni sends them. A reply
that is no stream, which Bailian refuses, has all of it in `message.audio`, as OpenAI's has: a WAV
file, or the bare samples. Sounds are kept nowhere, so they expire when they are made.
"""

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from fastapi import Request
from fastapi.responses import Response

from qianyan.engine.request import Completion, Finished, TokenText
from qianyan.engine.speaking import Sound
from qianyan.engine.speech import Speaking
from qianyan.errors import QianyanError, quote
from qianyan.models.omni.pcm import to_pcm16, to_wav
from qianyan.server.answer import Answer
from qianyan.server.asking import asked_now
from qianyan.server.errors import RefusedError, openai_body, to_failure
from qianyan.server.generate import Question
from qianyan.server.openai_reply import OpenAIReply
from qianyan.server.openai_request import ChatRequest
from qianyan.server.stream import EventStream, to_json, unless_gone
from qianyan.server.worker import Worker

SPOKEN = {"text", "audio"}
NOT_WITH_SPEECH = (
    *("n", "tools", "functions", "enable_search", "response_format", "ocr_options"),
    *("coordinate_space", "vl_enable_image_hw_output", "logprobs"),
)
DONE = "data: [DONE]\n\n"
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class AskedSpeech:
    """How an answer is to be spoken; None is the model's usual voice."""

    voice: str | None = None
    format: Literal["wav", "pcm16"] = "wav"


def read_speech(body: ChatRequest, worker: Worker) -> AskedSpeech | None:
    """Read whether and how an answer is to be spoken; raises RefusedError."""
    wanted = set(body.modalities or ("text",))
    if wanted == {"text"} and body.audio is None:
        return None
    if not worker.engine.speech.is_there:
        raise _refused(
            f"The model {body.model[:80]} does not speak; expected modalities ['text'] and no "
            "audio.",
            "modalities",
        )
    if wanted != SPOKEN:
        raise _refused(
            "modalities is neither ['text'] without audio nor ['text', 'audio']; expected one of "
            "them.",
            "modalities",
        )
    for name in NOT_WITH_SPEECH:
        value = getattr(body, name)
        if value and value != {"type": "text"} and (name, value) != ("n", 1):
            raise _refused(f"{name} is given for an answer that is spoken; leave it out.", name)
    given = body.audio or {}
    voice, form = given.get("voice"), given.get("format", "wav")
    if voice is not None and not isinstance(voice, str):
        raise _refused("audio.voice is no text; expected the name of a voice.", "audio")
    if form not in ("wav", "pcm16"):
        raise _refused(f"audio.format is {quote(form)}; expected wav or pcm16.", "audio")
    return AskedSpeech(voice=voice, format=form)


@dataclass(frozen=True, kw_only=True)
class SpokenReply:
    """One reply with sound; the sound's id is the same in every chunk."""

    reply: OpenAIReply
    asked: AskedSpeech
    audio_id: str = field(default_factory=lambda: f"audio_{uuid.uuid4()}")

    def transcript_chunk(self, token: TokenText) -> dict[str, Any]:
        """Write the text of one more token."""
        return self.reply.chunk(0, {"audio": self._audio({"transcript": token.text})})

    def sound_chunk(self, sound: Sound) -> dict[str, Any]:
        """Write one more piece of sound."""
        data = base64.b64encode(_pcm(sound.samples)).decode()
        return self.reply.chunk(0, {"audio": self._audio({"data": data})})

    def whole(self, completion: Completion, sounds: Sequence[Sound], usage: Any) -> dict[str, Any]:
        """Write a chat.completion with all of the sound."""
        pcm = b"".join(_pcm(sound.samples) for sound in sounds)
        file = to_wav(pcm) if self.asked.format == "wav" else pcm
        data = base64.b64encode(file).decode()
        whole = self.reply.whole([completion], [[]])
        audio = self._audio({"data": data, "transcript": completion.text})
        whole["choices"][0]["message"]["audio"] = audio
        return {**whole, "usage": usage}

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


class SpokenAnswer:
    """An answer on its way, and its sound: iterate over its events once; `leave` it after that.

    Sounds are made on the worker's own thread for voices, one step of one answer after the other,
    so that the model goes on meanwhile and whoever leaves is left at once.
    """

    def __init__(
        self, worker: Worker, answer: Answer, speaking: Speaking, *, leave: Callable[[], None]
    ) -> None:
        """Begin; `leave` gives back all that the answer and its speech hold."""
        self._worker, self._answer, self._speaking = worker, answer, speaking
        self._leave = leave

    @property
    def num_codes(self) -> int:
        """Count the codes that were spoken so far."""
        return len(self._speaking.codes)

    async def events(self) -> AsyncIterator[TokenText | Sound | Finished]:
        """Give tokens and sounds as they come; the last event is Finished."""
        async for event in self._answer:
            if isinstance(event, Finished):
                rest = self._speaking.finish()
                while (samples := await self._speak(partial(next, rest, None))) is not None:
                    if len(samples):
                        yield Sound(samples=samples)
                yield event
                return
            yield event
            samples = await self._speak(self._speaking.catch_up)
            if len(samples):
                yield Sound(samples=samples)

    def leave(self) -> None:
        """End the answer unless it has ended; a second time does nothing."""
        self._leave()

    async def _speak(self, step: Callable[[], Made]) -> Made:
        return await self._worker.on_voice(step)


async def answer_spoken(
    request: Request, worker: Worker, question: Question, spoken: SpokenReply, body: ChatRequest
) -> Response:
    """Answer a conversation with text and sound, whole or as a stream."""
    answer = await unless_gone(request, _begin(worker, question, spoken.asked))
    if not body.stream:
        try:
            whole = await unless_gone(request, _collect(answer, spoken))
        finally:
            answer.leave()
        return Response(to_json(whole), media_type="application/json")
    events = _write(answer, spoken, request.state.request_id, includes_usage=body.includes_usage)
    return EventStream(events, leave=answer.leave)


async def _begin(worker: Worker, question: Question, asked: AskedSpeech) -> SpokenAnswer:
    """Let the answer run and its speech with it; what speaks is loaded by the first."""
    speech = await asyncio.to_thread(worker.engine.speech.load)
    speaker = speech.find_speaker(asked.voice)
    await worker.ready(question.messages)
    owner_id = asked_now().owner_id
    with ExitStack() as begun:
        await worker.voices.sit(owner_id)
        begun.callback(worker.voices.stand_up, owner_id)
        answer = await worker.begin(question.messages, question.options)
        begun.callback(answer.leave)
        start = partial(speech.begin, answer.request, answer.prompt, speaker)
        speaking = await worker.on_voice(start)
        return SpokenAnswer(worker, answer, speaking, leave=begun.pop_all().close)


async def _collect(answer: SpokenAnswer, spoken: SpokenReply) -> dict[str, Any]:
    sounds = []
    async for event in answer.events():
        if isinstance(event, Sound):
            sounds.append(event)
        elif isinstance(event, Finished):
            completion = event.completion
    return spoken.whole(completion, sounds, spoken.usage(completion, answer.num_codes))


async def _write(
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


def _pcm(samples: np.ndarray) -> bytes:
    return to_pcm16(torch.from_numpy(samples))


def _event(data: dict[str, Any]) -> str:
    return f"data: {to_json(data)}\n\n"


def _refused(message: str, param: str) -> RefusedError:
    return RefusedError(message, status=400, code="unsupported_value", param=param)
