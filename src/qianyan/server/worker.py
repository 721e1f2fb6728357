"""One thread for the model, and many conversations on an event loop.

Whoever asks waits for a seat without holding up the loop; the question is prepared (pictures,
templates, grammars) on threads; one thread steps the engine for all who are seated as long as
anybody is, and hands what came out of each pass to the loop at once. `engine/desk.py` does the same
for callers that may block and want whole answers; here answers are followed token by token, and end
in the next pause between two passes when their reader goes away.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

from qianyan.engine.embedding import EmbeddingOptions, Embeddings, Input
from qianyan.engine.engine import Engine, Messages
from qianyan.engine.faults import is_out_of_memory
from qianyan.engine.options import ChatOptions, check_names
from qianyan.engine.request import Completion, Finished, Request, TokenText
from qianyan.engine.runner import Prompt
from qianyan.errors import NoMemoryError, QianyanError
from qianyan.server.answer import Answer, End, end_of
from qianyan.server.asking import Asked, asked_now
from qianyan.server.errors import ModelFailedError, RefusedError, stopping
from qianyan.server.line import Line
from qianyan.server.metrics import Metrics
from qianyan.server.ocr_desk import OcrDesk
from qianyan.server.preparing import Preparing
from qianyan.server.settings import ServerLimits

logger = logging.getLogger(__name__)

Made = TypeVar("Made")
News = tuple[Answer, list[TokenText], End | None]


class Worker:
    """Answers conversations for an event loop, in which it is made and closed."""

    def __init__(
        self, engine: Engine, limits: ServerLimits, metrics: Metrics | None = None
    ) -> None:
        self.engine = engine
        engine.allow_files = False  # the first generation reads paths out of any text
        self.failure: ModelFailedError | None = None
        self.ocr = OcrDesk(engine.processor.limits)
        self.attach: Callable[[Messages], Messages] = list
        """Makes the documents that messages name readable; set by whoever keeps them."""
        self.ready: Callable[[Messages], Awaitable[None]] = _at_once
        """Waits until they have been read, before anybody takes a seat for them."""
        self._limits = limits
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._preparing = Preparing(limits)
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._voice = ThreadPoolExecutor(1, thread_name_prefix="voice")
        self._line = Line(engine.config.max_num_requests, limits)
        self.voices = Line(engine.config.max_num_requests, limits)
        """Seats of answers that are spoken, which takes longer than to write them."""
        self._metrics = metrics or Metrics(limits)
        self._open: set[Answer] = set()
        self._answers: list[Answer] = []  # touched by the model's thread only, as is the next
        self._is_stepping = False

    @property
    def limits(self) -> ServerLimits:
        """What the server bears."""
        return self._limits

    @property
    def num_running(self) -> int:
        """Count the requests that have a seat: being prepared or being answered."""
        return self._line.num_seated

    @property
    def num_waiting(self) -> int:
        """Count the requests that wait for a seat."""
        return self._line.num_waiting

    async def ask(self, messages: Messages, options: ChatOptions) -> Completion:
        """Answer a conversation as a whole; raises what `begin` does and what ends the answer."""
        answer = await self.begin(messages, options)
        try:
            async for event in answer:
                if isinstance(event, Finished):
                    return event.completion
        finally:
            answer.leave()
        raise ModelFailedError("The answer has no end.")

    async def begin(self, messages: Messages, options: ChatOptions) -> Answer:
        """Prepare a conversation and let it run; whoever gets the answer must `leave` it.

        Raises InputError and CapacityError for what cannot be answered, RefusedError when too many
        wait, when the wait is too long, and when the model is broken.
        """
        (answer,) = await self.begin_choices(messages, [options])
        return answer

    async def begin_choices(
        self, messages: Messages, options: Sequence[ChatOptions]
    ) -> list[Answer]:
        """Prepare a conversation once and let several answers to it run, as `begin` does one.

        The first one's prompt is computed before the others begin, so that they find it in the
        cache.
        """
        for one in options:
            check_names(one)
        if self.engine.embedder is not None:
            raise _cannot("makes embeddings and answers no conversations; expected a chat model")
        self.refuse_unless_ready()
        asked = asked_now()
        with ExitStack() as begun:
            await self._line.sit(asked.owner_id)
            begun.callback(self._line.stand_up, asked.owner_id)
            prepared = await self._preparing.call(asked, partial(self._read, messages, options))
            self.refuse_unless_ready()
            begun.pop_all()
            answers = [self._start(asked, *prepared[0])]
        with ExitStack() as begun:
            begun.callback(answers[0].leave)
            for others in prepared[1:]:
                await answers[0].begun()
                await self._line.sit(asked.owner_id, is_new=False)
                answers.append(self._start(asked, *others))
                begun.callback(answers[-1].leave)
            begun.pop_all()
        return answers

    def _read(
        self, messages: Messages, options: Sequence[ChatOptions]
    ) -> list[tuple[Request, Prompt]]:
        """Read all that is sent, and what it names; on a thread, for whoever asks."""
        return self.engine.prepare_choices(self.attach(messages), options)

    async def prefill(self, messages: Messages, options: ChatOptions) -> int:
        """Compute the beginning of a conversation that is still being said; see `Engine.prefill`.

        It takes no seat, comes after all answers, and ends in the next pause between two passes
        when it is cancelled; what is computed by then stays known. Raises what `begin` does.
        """
        check_names(options)
        self.refuse_unless_ready()
        asked = asked_now()
        prepared = await self._preparing.call(
            asked, lambda: self.engine.prepare_prefill(self.attach(messages), options)
        )
        self.refuse_unless_ready()
        answer = self._start(asked, *prepared)
        try:
            async for _ in answer:
                pass
        finally:
            answer.leave()
        return answer.request.num_tokens - answer.request.num_cached_tokens

    async def embed(self, inputs: Sequence[Input], options: EmbeddingOptions) -> Embeddings:
        """Embed texts, a pass at a time, so that others' passes come in between.

        Raises what `begin` does, and RefusedError when the time is over before all are embedded.
        """
        embedder = self.engine.embedder
        if embedder is None:
            raise _cannot(
                "answers conversations and makes no embeddings; expected an embedding model, such "
                "as Qwen3-Embedding, here or at another server that --upstream names"
            )
        self.refuse_unless_ready()
        asked = asked_now()
        await self._line.sit(asked.owner_id)
        try:
            batch = await self._preparing.call(asked, partial(embedder.read, inputs, options))
            parts = []
            for places in batch.passes:
                self._refuse_too_late(asked)
                parts.append(await self._compute(partial(embedder.run, batch, places)))
        finally:
            self._line.stand_up(asked.owner_id)
        counts = {"prompt": batch.num_tokens, "cached": 0, "completion": 0}
        self._metrics.count_answer(asked, counts)
        return batch.gather(parts)

    async def _compute(self, work: Callable[[], Made]) -> Made:
        """Do something on the model's thread between two passes; raises what it does.

        An error that nobody foresaw breaks the model, as it does in a pass.
        """
        self.refuse_unless_ready()
        computing = asyncio.wrap_future(self._model.submit(work))
        await asyncio.wait({computing})
        error = computing.exception()
        if error is not None and not isinstance(error, QianyanError):
            self._break(error)
            raise ModelFailedError("The model failed while it was computing.") from error
        return computing.result()

    async def on_voice(self, work: Callable[[], Made]) -> Made:
        """Do a step of an answer's speech, on a thread of its own.

        Raises what the step does, and a QianyanError for what PyTorch could not do.
        """
        if self._is_closed:
            raise stopping()
        try:
            return await asyncio.wrap_future(self._voice.submit(work))
        except (RuntimeError, MemoryError) as error:
            raise _speech_failed(error) from error

    def count_speech(self, asked: Asked, num_codes: int) -> None:
        """Count the codes of an answer that was spoken, when it is left."""
        self._metrics.count_speech(asked, num_codes)

    def _refuse_too_late(self, asked: Asked) -> None:
        if asked.ends_at is not None and time.monotonic() > asked.ends_at:
            raise RefusedError(
                "The time for this request was over before all texts were embedded. Send fewer at "
                "once.",
                status=504,
                code="request_timeout",
            )

    def refuse_unless_ready(self) -> None:
        """Raise RefusedError when the model is broken or the server stops."""
        if self._is_closed:
            raise stopping()
        if self.failure is not None:
            raise RefusedError(
                f"{self.failure} The server has to be started again.",
                status=503,
                code=self.failure.code,
                retry_after_s=self._limits.retry_after_s,
            )

    def dismiss(self, answer: Answer) -> None:
        """End an answer that nobody reads any longer; see `Answer.leave`."""
        if answer.is_ended:
            return
        self._end(answer)
        self._model.submit(self._forget, [answer])

    async def close(self) -> None:
        """End all answers that still run, and the threads; a second time does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        answers = list(self._open)
        for answer in answers:
            answer.take([], stopping())
            self._end(answer)
        self._preparing.close()
        self._voice.shutdown(wait=False, cancel_futures=True)
        # After this has run no pass follows, so nothing is queued behind the shutdown.
        await asyncio.wrap_future(self._model.submit(self._forget, answers))
        await asyncio.to_thread(self._model.shutdown)

    def _start(self, asked: Asked, request: Request, prompt: Prompt) -> Answer:
        """Let a request that has a seat run."""
        answer = Answer(request, prompt, asked, leave=self.dismiss)
        self._open.add(answer)
        self._model.submit(self._seat, answer, prompt).add_done_callback(self._note)
        if asked.ends_at is not None:
            left_s = asked.ends_at - time.monotonic()
            answer.ends = self._loop.call_later(left_s, self._cut, answer)
        return answer

    def _cut(self, answer: Answer) -> None:
        """End an answer whose time is over; its end comes with the next pass."""
        if not (answer.is_ended or self._is_closed):
            self._model.submit(self.engine.cut, answer.request)

    def _end(self, answer: Answer) -> None:
        answer.is_ended = True
        if answer.ends is not None:
            answer.ends.cancel()
        self._open.discard(answer)
        request = answer.request
        if not request.is_answered:  # it had no seat
            return
        self._line.stand_up(answer.asked.owner_id)
        tokens = {
            "prompt": len(request.prompt_token_ids),
            "cached": min(request.num_cached_tokens, len(request.prompt_token_ids)),
            "completion": len(request.output_token_ids),
        }
        self._metrics.count_answer(answer.asked, tokens)

    def _deliver(self, news: list[News]) -> None:
        """Hand on what a pass brought; on the event loop."""
        for answer, events, end in news:
            if answer.is_ended:  # its reader has left meanwhile
                continue
            answer.take(events, end)
            if end is not None:
                self._end(answer)

    def _break(self, error: BaseException) -> None:
        """Take no more questions; on the event loop."""
        logger.error("the model failed; the server is no longer ready", exc_info=error)
        self.failure = ModelFailedError("The model failed while it was computing.")

    # What follows runs on the model's thread.

    def _seat(self, answer: Answer, prompt: Prompt) -> None:
        self._answers.append(answer)
        self.engine.submit(answer.request, prompt)
        if not self._is_stepping:
            self._step()

    def _forget(self, answers: list[Answer]) -> None:
        self.engine.forget([answer.request for answer in answers])
        self._answers = [one for one in self._answers if one not in answers]

    def _step(self) -> None:
        """Queue a pass, behind those who sit down or leave."""
        self._is_stepping = True
        self._model.submit(self._pass).add_done_callback(self._note)

    def _note(self, done: Future[None]) -> None:
        """Tell everybody when a piece of the model's work has failed."""
        if (error := done.exception()) is not None:
            self._fail(error)

    def _pass(self) -> None:
        """Take a pass, send off what it brought, and queue the next if anybody waits for it."""
        self.engine.step()
        news: list[News] = []
        for answer in self._answers:
            events = [answer.request.events.popleft() for _ in range(len(answer.request.events))]
            end = end_of(answer.request)
            if events or end is not None:
                news.append((answer, events, end))
        if news:
            self._loop.call_soon_threadsafe(self._deliver, news)
        self._answers = [one for one in self._answers if not one.request.is_finished]
        self._is_stepping = False
        if self._answers:
            self._step()

    def _fail(self, error: BaseException) -> None:
        failed, self._answers = self._answers, []
        self._is_stepping = False
        ended = ModelFailedError("The model failed while it was computing this answer.")
        self._loop.call_soon_threadsafe(self._break, error)
        news: list[News] = [(one, [], ended) for one in failed]
        self._loop.call_soon_threadsafe(self._deliver, news)
        self.engine.forget([one.request for one in failed])


def _speech_failed(error: BaseException) -> QianyanError:
    if is_out_of_memory(error):
        return NoMemoryError(
            "There is no memory to speak this answer. Ask fewer things at once, lower "
            "max_cache_tokens or close other programs."
        )
    logger.error("an answer could not be spoken", exc_info=error)
    return QianyanError("The model could not speak this answer; the cause is in the log.")


def _cannot(what: str) -> RefusedError:
    """Say what the model was not made for."""
    return RefusedError(f"This model {what}.", status=400, code="unsupported_model", param="model")


async def _at_once(messages: Messages) -> None:
    """Wait for nothing."""
