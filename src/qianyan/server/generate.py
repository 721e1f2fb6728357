"""One question, one or more answers: what both dialects do between their own words."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qianyan.engine.options import ChatOptions
from qianyan.engine.request import Completion, Finished, TokenText
from qianyan.server.extraction import find_picture
from qianyan.server.ocr_answer import OcrAnswer
from qianyan.server.searching import AskedSearch, SearchingAnswer
from qianyan.server.thinking import settle_thinking
from qianyan.server.told import Telling, TellingAnswer
from qianyan.server.worker import Answer, Event, Worker

AnyAnswer = Answer | SearchingAnswer | TellingAnswer | OcrAnswer
CANNOT_READ = "bundled"
"""The model that sees but was never taught to read: its texts are the offline reader's work."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of the engine, and how often; with a search there is one answer."""

    messages: list[dict[str, Any]]
    options: ChatOptions = field(default_factory=ChatOptions)
    num_choices: int = 1
    reasoning_effort: str | None = None
    search: AskedSearch | None = None
    telling: Telling = field(default_factory=Telling)


async def begin(worker: Worker, question: Question) -> Sequence[AnyAnswer]:
    """Let all answers run; whoever gets them must `leave` each.

    A seed stands for the first answer; the others have the following ones. Texts are extracted by
    the offline reader where the model does not read.
    """
    telling, engine = question.telling, worker.engine
    reads = engine.processor.pictures is not None and engine.name != CANNOT_READ
    if telling.extraction is not None and not reads:
        picture = find_picture(await asyncio.to_thread(worker.attach, question.messages))
        return [OcrAnswer(*await worker.ocr.extract(picture, telling.extraction), telling)]
    await worker.ready(question.messages)
    answers = await _begin(worker, question)
    if not telling:
        return answers
    return [TellingAnswer(one, telling, engine.architecture) for one in answers]


async def _begin(worker: Worker, question: Question) -> Sequence[Answer | SearchingAnswer]:
    asked = settle_thinking(
        question.options,
        question.reasoning_effort,
        worker.engine.processor.template,
        default_budget=worker.limits.thinking_budget,
    )
    if question.search is not None:
        return [await question.search.begin(worker, question.messages, asked)]
    choices: list[ChatOptions] = []
    for index in range(question.num_choices):
        options = asked.copy()
        seed = options.get("seed")
        if seed is not None:
            options["seed"] = seed + index
        choices.append(options)
    return await worker.begin_choices(question.messages, choices)


async def merge(answers: Sequence[AnyAnswer]) -> AsyncIterator[tuple[int, Event]]:
    """Follow several answers at once; each event comes with the index of its answer."""
    readers = [aiter(answer) for answer in answers]
    waiting = {asyncio.ensure_future(_next(one)): index for index, one in enumerate(readers)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in sorted(done, key=waiting.__getitem__):
                index, event = waiting.pop(future), future.result()
                yield index, event
                if not isinstance(event, Finished):
                    waiting[asyncio.ensure_future(_next(readers[index]))] = index
    finally:
        for future in waiting:
            future.cancel()


async def _next(reader: AsyncIterator[Event]) -> Event:
    return await anext(reader)


def follow(answers: Sequence[AnyAnswer]) -> AsyncIterator[tuple[int, Event]]:
    """Follow one answer without the cost of merging, or several."""
    return merge(answers) if len(answers) > 1 else _alone(answers[0])


async def _alone(answer: AnyAnswer) -> AsyncIterator[tuple[int, Event]]:
    async for event in answer:
        yield 0, event


async def collect(
    worker: Worker, question: Question
) -> tuple[list[Completion], list[list[TokenText]]]:
    """Give all answers to a question, whole, and the tokens of each."""
    answers = await begin(worker, question)
    tokens: list[list[TokenText]] = [[] for _ in answers]
    completions: dict[int, Completion] = {}
    try:
        async for index, event in follow(answers):
            if isinstance(event, Finished):
                completions[index] = event.completion
            else:
                tokens[index].append(event)
    finally:
        leave_all(answers)
    return [completions[index] for index in range(len(answers))], tokens


def leave_all(answers: Sequence[AnyAnswer]) -> None:
    """End those answers that have not ended."""
    for answer in answers:
        answer.leave()
