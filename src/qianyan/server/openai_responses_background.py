"""Responses that are made while nobody waits: the work of their tasks.

What is wrong with the request becomes the response's error; what is wrong with the server is left
to the runner, which tries again. While a response is made, its row is looked at now and then, and
the work ends when somebody has cancelled or deleted it.
"""

import asyncio
from typing import Any

from qianyan.errors import CapacityError, InputError
from qianyan.server.errors import RefusedError, to_failure
from qianyan.server.openai_responses_events import ResponseWriter
from qianyan.server.openai_responses_kept import ResponseRow
from qianyan.server.openai_responses_request import ResponseRequest
from qianyan.server.openai_responses_store import Responses
from qianyan.server.openai_responses_turn import AskedTurn, answer_whole
from qianyan.server.serving import Serving
from qianyan.server.task_rows import Task

LOOK_S = 0.5
"""Time between two looks at whether a response is still wanted."""


async def answer_later(serving: Serving, responses: Responses, task: Task) -> dict[str, Any]:
    """Make the response that a task stands for; its row keeps it."""
    row = await asyncio.to_thread(responses.begin, task.request["response_id"])
    if row is None:
        return {}
    request = ResponseRequest.model_validate(task.request["body"])
    answering = asyncio.ensure_future(_answer(serving, responses, row, request))
    watching = asyncio.ensure_future(_until_unwanted(responses, row))
    try:
        await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            await asyncio.to_thread(responses.finish, answering.result())
    finally:
        answering.cancel()
        watching.cancel()
        await asyncio.gather(answering, watching, return_exceptions=True)
    return {}


async def _answer(
    serving: Serving, responses: Responses, row: ResponseRow, request: ResponseRequest
) -> dict[str, Any]:
    try:
        turn = await asyncio.to_thread(_read, responses, row, request)
        return await answer_whole(turn, serving)
    except (InputError, CapacityError, RefusedError) as error:
        failure = to_failure(error)
        if failure.status >= 500 or failure.status == 429:
            raise
        writer = ResponseWriter(row.response)
        for _ in writer.fail(failure):
            pass
        return writer.response


def _read(responses: Responses, row: ResponseRow, request: ResponseRequest) -> AskedTurn:
    return AskedTurn(
        request=request,
        items=row.input_items,
        chain=responses.before(row),
        response=row.response,
    )


async def _until_unwanted(responses: Responses, row: ResponseRow) -> None:
    while await asyncio.to_thread(responses.is_wanted, row.id):  # noqa: ASYNC110  (rows have no event)
        await asyncio.sleep(LOOK_S)
