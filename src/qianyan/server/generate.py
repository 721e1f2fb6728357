"""One question, one or more answers: what both dialects do between their own words."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qianyan.engine.options import ChatOptions
from qianyan.engine.request import Completion, Finished, TokenText
from qianyan.server.answer import Answer, Event
from qianyan.server.extraction import ExtractionOptions, find_picture
from qianyan.server.ocr_answer import OcrAnswer
from qianyan.server.searching import AskedSearch, SearchingAnswer
from qianyan.server.thinking import settle_thinking
from qianyan.server.told import Telling, TellingAnswer
from qianyan.server.worker import Worker

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
    extraction, engine = question.telling.extraction, worker.engine
    if extraction is not None:
        if engine.processor.pictures is None or engine.name == CANNOT_READ:
            return [await _extract(worker, question, extraction)]
        if question.telling.turns:
            question = await _turn(worker, question)
    telling = question.telling
    await worker.ready(question.messages)
    answers = await _begin(worker, question)
    if not telling:
        return answers
    return [TellingAnswer(one, telling, engine.architecture) for one in answers]


async def _extract(worker: Worker, question: Question, extraction: ExtractionOptions) -> OcrAnswer:
    """Have the one picture of a question read by the offline reader."""
    telling = question.telling
    picture = find_picture(await asyncio.to_thread(worker.attach, question.messages))
    read = await worker.ocr.extract(picture, extraction, turns=telling.turns)
    return OcrAnswer(*read, telling)


async def _turn(worker: Worker, question: Question) -> Question:
    """Turn the one picture of a question so that its text stands upright."""
    messages = [dict(one) for one in await asyncio.to_thread(worker.attach, question.messages)]
    picture = find_picture(messages)
    image, turn = await worker.ocr.turn(picture)
    hints = {key: value for key, value in picture.items() if key.endswith("_pixels")}
    shown = {"type": "image", "image": image, **hints}
    messages[-1]["content"] = [
        shown if part is picture else part for part in messages[-1]["content"]
    ]
    return replace(question, messages=messages, telling=replace(question.telling, turn=turn))


def settle(worker: Worker, question: Question) -> ChatOptions:
    """Give a question's options with what it says of thinking; raises RefusedError."""
    return settle_thinking(
        question.options,
        question.reasoning_effort,
        worker.engine.processor.template,
        default_budget=worker.limits.thinking_budget,
    )


async def _begin(worker: Worker, question: Question) -> Sequence[Answer | SearchingAnswer]:
    asked = settle(worker, question)
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
