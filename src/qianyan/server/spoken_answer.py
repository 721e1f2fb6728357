"""One answer that is spoken, for any dialect: what may be asked of it, and its events.

Text and sound come in one stream of events, the sound behind the text. Sounds are made on the
worker's own thread for voices, one step of one answer after the other, so that the model goes on
meanwhile and whoever leaves is left at once.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch

from qianyan.engine.request import Completion, Finished, Request, TokenText
from qianyan.engine.speaking import Sound
from qianyan.engine.speech import Speaking
from qianyan.errors import quote
from qianyan.models.omni.pcm import to_pcm16, to_wav
from qianyan.server.answer import Answer
from qianyan.server.asking import asked_now
from qianyan.server.errors import RefusedError
from qianyan.server.generate import Question, settle
from qianyan.server.openai_request import ChatRequest
from qianyan.server.worker import Worker

SPOKEN = {"text", "audio"}
NOT_WITH_SPEECH = (
    *("n", "tools", "functions", "enable_search", "response_format", "ocr_options"),
    *("coordinate_space", "vl_enable_image_hw_output", "logprobs"),
)
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class AskedSpeech:
    """How an answer is to be spoken; None is the model's usual voice."""

    voice: str | None = None
    format: Literal["wav", "pcm16"] = "wav"

    def to_file(self, pcm: bytes) -> bytes:
        """Make all samples of an answer what a reply holds that is no stream."""
        return to_wav(pcm) if self.format == "wav" else pcm


@dataclass(frozen=True, kw_only=True)
class WholeSpeech:
    """A finished answer and all of its sound, 16-bit samples of 24 kHz, 480 for each code."""

    completion: Completion
    pcm: bytes
    num_codes: int


def take_speech(body: ChatRequest, worker: Worker) -> tuple[ChatRequest, AskedSpeech | None]:
    """Take out of a request whether and how its answer is to be spoken; raises RefusedError."""
    speech = _read_speech(body, worker)
    if speech is None:
        return body, None
    return body.model_copy(update={"modalities": None, "audio": None}), speech


def _read_speech(body: ChatRequest, worker: Worker) -> AskedSpeech | None:
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
    return _read_voice(body.audio or {})


def _read_voice(given: dict[str, Any]) -> AskedSpeech:
    voice, form = given.get("voice"), given.get("format", "wav")
    if voice is not None and not isinstance(voice, str):
        raise _refused("audio.voice is no text; expected the name of a voice.", "audio")
    if form not in ("wav", "pcm16"):
        raise _refused(f"audio.format is {quote(form)}; expected wav or pcm16.", "audio")
    return AskedSpeech(voice=voice, format=form)


class SpokenAnswer:
    """An answer on its way, and its sound: iterate over its events once; `leave` it after that."""

    def __init__(
        self, worker: Worker, answer: Answer, speaking: Speaking, *, leave: Callable[[], None]
    ) -> None:
        """Begin; `leave` gives back all that the answer and its speech hold."""
        self._worker, self._answer, self._speaking = worker, answer, speaking
        self._leave = leave
        self._is_late = False
        max_s = worker.limits.max_speech_s
        self._timer = asyncio.get_running_loop().call_later(max_s, self._end_late)

    @property
    def request(self) -> Request:
        """What is known of the text while it is written."""
        return self._answer.request

    @property
    def num_codes(self) -> int:
        """Count the codes that were spoken so far, 50 for each second."""
        return len(self._speaking.codes)

    async def events(self) -> AsyncIterator[TokenText | Sound | Finished]:
        """Give tokens and sounds as they come; the last event is Finished.

        An answer whose speech was cut ends with "length": by `max_speech_s`, or by the most that
        the model says at a time.
        """
        async for event in self._answer:
            is_last = isinstance(event, Finished)
            if not is_last:
                yield event
            pieces = self._speaking.finish() if is_last else self._speaking.catch_up()
            while (samples := await self._speak(partial(next, pieces, None))) is not None:
                if len(samples):
                    yield Sound(samples=samples)
            if isinstance(event, Finished):
                yield Finished(completion=self._end(event.completion))
                return

    def leave(self) -> None:
        """End the answer at once unless it has ended; a second time does nothing."""
        self._timer.cancel()
        self._speaking.leave()
        self._leave()

    def _end_late(self) -> None:
        """End the speech, not its text, because its time is over."""
        self._is_late = True
        self._speaking.stop()

    def _end(self, completion: Completion) -> Completion:
        if not self._speaking.is_cut:
            return completion
        is_late = self._is_late or completion.is_cut_by_time
        return replace(completion, finish_reason="length", is_cut_by_time=is_late)

    async def _speak(self, step: Callable[[], Made]) -> Made:
        return await self._worker.on_voice(step)


async def begin_spoken(worker: Worker, question: Question, asked: AskedSpeech) -> SpokenAnswer:
    """Let an answer run and its speech with it; whoever gets it must `leave` it.

    What speaks is loaded by the first. Raises what `Worker.begin` does, and InputError for a voice
    that is not there.
    """
    speech = await asyncio.to_thread(worker.engine.speech.load)
    speaker = speech.find_speaker(asked.voice)
    options = settle(worker, question)
    await worker.ready(question.messages)
    now = asked_now()
    with ExitStack() as begun:
        await worker.voices.sit(now.owner_id)
        begun.callback(worker.voices.stand_up, now.owner_id)
        answer = await worker.begin(question.messages, options)
        begun.callback(answer.leave)
        start = partial(speech.begin, answer.request, answer.prompt, speaker)
        speaking = await worker.on_voice(start)
        begun.callback(lambda: worker.count_speech(now, len(speaking.codes)))
        return SpokenAnswer(worker, answer, speaking, leave=begun.pop_all().close)


async def collect_spoken(worker: Worker, question: Question, asked: AskedSpeech) -> WholeSpeech:
    """Give an answer and its sound, whole."""
    answer = await begin_spoken(worker, question, asked)
    pcm = bytearray()
    try:
        async for event in answer.events():
            if isinstance(event, Sound):
                pcm += to_pcm(event)
            elif isinstance(event, Finished):
                completion = event.completion
    finally:
        answer.leave()
    return WholeSpeech(completion=completion, pcm=bytes(pcm), num_codes=answer.num_codes)


def new_sound_id() -> str:
    """Make an id for the sound of an answer."""
    return f"audio_{uuid.uuid4()}"


def to_pcm(sound: Sound) -> bytes:
    """Write a sound as 16-bit samples."""
    return to_pcm16(torch.from_numpy(sound.samples))


def _refused(message: str, param: str) -> RefusedError:
    return RefusedError(message, status=400, code="unsupported_value", param=param)
