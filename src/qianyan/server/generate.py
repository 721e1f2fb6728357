"""One question, one or more answers: what both dialects do between their own words."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from qianyan.engine.options import ChatOptions
from qianyan.engine.request import Completion, Finished, TokenText
from qianyan.server.worker import Answer, Event, Worker


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of the engine, and how often."""

    messages: list[dict[str, Any]]
    options: ChatOptions = field(default_factory=ChatOptions)
    num_choices: int = 1


async def begin(worker: Worker, question: Question) -> list[Answer]:
    """Let all answers run; whoever gets them must `leave` each.

    The first one's prompt is computed before the others begin, so that they find it in the cache.
    A seed stands for the first answer; the others have the following ones.
    """
    with ExitStack() as begun:
        answers: list[Answer] = []
        for index in range(question.num_choices):
            options = question.options.copy()
            seed = options.get("seed")
            if seed is not None:
                options["seed"] = seed + index
            answer = await worker.begin(question.messages, options)
            begun.callback(answer.leave)
            answers.append(answer)
            if index == 0 and question.num_choices > 1:
                await answer.begun()
        begun.pop_all()
        return answers


async def merge(answers: Sequence[Answer]) -> AsyncIterator[tuple[int, Event]]:
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


def follow(answers: Sequence[Answer]) -> AsyncIterator[tuple[int, Event]]:
    """Follow one answer without the cost of merging, or several."""
    return merge(answers) if len(answers) > 1 else _alone(answers[0])


async def _alone(answer: Answer) -> AsyncIterator[tuple[int, Event]]:
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


def leave_all(answers: Sequence[Answer]) -> None:
    """End those answers that have not ended."""
    for answer in answers:
        answer.leave()
