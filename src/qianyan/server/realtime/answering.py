"""Have the model answer a conversation, in text or in speech, until it is done or interrupted.

An answer is a task of its own: the client goes on speaking meanwhile, and who interrupts it has its
seat and its voice free again before the next pass. A conversation that does not fit the model loses
its oldest items until it does.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

from qianyan.engine.request import Completion, Finished, Request, TokenText
from qianyan.engine.speaking import Sound
from qianyan.errors import CapacityError, NoMemoryError, QianyanError
from qianyan.inputs.processor import Processor
from qianyan.server.answer import Answer
from qianyan.server.asking import Asked, asking
from qianyan.server.bodies import GONE
from qianyan.server.errors import to_failure
from qianyan.server.generate import Question
from qianyan.server.logs import log_request
from qianyan.server.metrics import Metrics
from qianyan.server.prompt_count import PromptCount
from qianyan.server.realtime.responses import Response
from qianyan.server.spoken_answer import AskedSpeech, SpokenAnswer, begin_spoken, to_pcm
from qianyan.server.worker import Worker

logger = logging.getLogger(__name__)
Reason = Literal["turn_detected", "client_cancelled"]
ROOM_CODES = 1500
"""What an answer has to have room for: half a minute of speech."""
METHOD = "response.create"
"""What log and counts call an answer, beside the socket's own line."""


@dataclass(frozen=True, kw_only=True)
class Asker:
    """On whose behalf answers are made: what counts, logs and limits go by."""

    worker: Worker
    metrics: Metrics
    owner_id: str
    model: str
    route: str

    def begin(self) -> Asked:
        """Begin the record of one answer; raises RefusedError where the key asks too often."""
        self.metrics.rates.pay_request(self.owner_id)
        return Asked(
            request_id=str(uuid.uuid4()),
            owner_id=self.owner_id,
            model=self.model,
            ends_at=time.monotonic() + self.worker.limits.max_answer_s,
        )

    def note(self, asked: Asked, status: int) -> None:
        """Count and log an answer that is over."""
        self.metrics.count_request(asked, route=self.route, status=status)
        log_request(asked, method=METHOD, route=self.route, status=status)


class Answering:
    """One answer on its way, as a task of the loop."""

    def __init__(self, asker: Asker, response: Response) -> None:
        """Begin it; raises RefusedError where the key asks too often."""
        self.response = response
        self._asker, self._asked = asker, asker.begin()
        self._worker = asker.worker
        self._reason: Reason | None = None
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._tell_fault)

    @property
    def is_over(self) -> bool:
        """Whether everything of it is told."""
        return self._task.done()

    async def interrupt(self, reason: Reason) -> None:
        """Stop it; what is told of it is over when this returns."""
        self._reason = reason
        self._task.cancel()
        await asyncio.wait({self._task})

    async def abandon(self) -> None:
        """Stop it, as nobody listens any longer."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def over(self) -> None:
        """Wait until it is over."""
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        status = 500
        with asking(self._asked):
            try:
                self.response.begin()
                await self._answer()
                status = 200
            except asyncio.CancelledError:
                status = GONE
                if self._reason is None:
                    raise
                self.response.end("cancelled", self._reason)
            except QianyanError as error:
                failure = to_failure(error)
                status = failure.status
                self.response.fail(failure)
            finally:
                self._asker.note(self._asked, status)

    def _tell_fault(self, task: asyncio.Task[None]) -> None:
        """End an answer with an error that nobody foresaw."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            logger.error("answer failed", exc_info=error)
            self.response.fail(to_failure(error))

    async def _answer(self) -> None:
        response = self.response
        answer = await self._begin()
        try:
            response.begin_item()
            async for event in _events(answer):
                if isinstance(event, Sound):
                    response.add_sound(to_pcm(event))
                elif isinstance(event, Finished):
                    completion = event.completion
                elif event.text and not event.is_reasoning:
                    response.add_text(event.text)
        finally:
            num_codes = answer.num_codes if isinstance(answer, SpokenAnswer) else 0
            processor = self._worker.engine.processor
            response.usage = to_usage(answer.request, num_codes, processor)
            answer.leave()
        self._end(completion)

    async def _begin(self) -> Answer | SpokenAnswer:
        """Begin with as much of the conversation as fits."""
        asked, conversation = self.response.asked, self.response.conversation
        while True:
            messages = conversation.messages(asked.settings.instructions, asked.items)
            try:
                if asked.settings.is_spoken:
                    return await self._begin_spoken(messages)
                return await self._worker.begin(messages, asked.settings.options)
            except CapacityError as error:
                if asked.items is not None or isinstance(error, NoMemoryError):
                    raise
                dropped = conversation.forget_oldest()
                if not dropped:
                    raise
                for item_id in dropped:
                    self.response.emit("conversation.item.deleted", item_id=item_id)

    async def _begin_spoken(self, messages: list[Any]) -> SpokenAnswer:
        """Begin where the voice, which has a length of its own, has room for some seconds."""
        settings = self.response.asked.settings
        question = Question(messages=messages, options=settings.options)
        speech = AskedSpeech(voice=settings.voice)
        answer = await begin_spoken(self._worker, question, speech)
        talker = self._worker.engine.speech.load().talker
        longest = talker.config.text.max_model_len
        num_tokens = len(answer.request.prompt_token_ids)
        if num_tokens + min(ROOM_CODES, longest // 4) > longest:
            answer.leave()
            raise CapacityError(
                f"The conversation has {num_tokens} tokens, which leaves no room for speech; "
                f"expected fewer than {longest} with what is said."
            )
        return answer

    def _end(self, completion: Completion) -> None:
        if completion.finish_reason == "length":
            self.response.end("incomplete", "max_output_tokens")
        else:
            self.response.end("completed")


async def _events(answer: Answer | SpokenAnswer) -> AsyncIterator[TokenText | Sound | Finished]:
    events = answer.events() if isinstance(answer, SpokenAnswer) else answer
    async for event in events:
        yield event


def to_usage(request: Request, num_codes: int, processor: Processor) -> dict[str, Any]:
    """Count the tokens of an answer, those of its speech among them: 50 a second.

    OpenAI and Bailian call the details by names that differ in one letter.
    """
    count = PromptCount.of(request.prompt_token_ids, processor, 0)
    num_text = len(request.output_token_ids)
    given = {
        "text_tokens": count.details["text_tokens"],
        "audio_tokens": count.num_audio_tokens,
        "image_tokens": count.num_image_tokens + count.num_video_tokens,
        "cached_tokens": min(request.num_cached_tokens, count.num_tokens),
    }
    made = {"text_tokens": num_text, "audio_tokens": num_codes}
    return {
        "total_tokens": count.num_tokens + num_text + num_codes,
        "input_tokens": count.num_tokens,
        "output_tokens": num_text + num_codes,
        "input_token_details": given,
        "output_token_details": made,
        "input_tokens_details": given,
        "output_tokens_details": made,
    }
