"""/responses in OpenAI's words: create, retrieve, delete, cancel, and the items that were sent."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel

from qianyan.errors import QianyanError
from qianyan.server.auth import owner_of
from qianyan.server.database import ConflictError
from qianyan.server.errors import to_failure
from qianyan.server.keeping import Keeping, Kept, find_keeping
from qianyan.server.openai_chat import DONE
from qianyan.server.openai_responses_events import Event, ResponseWriter, replay
from qianyan.server.openai_responses_kept import UNFINISHED, ResponseStatus
from qianyan.server.openai_responses_request import ResponseRequest
from qianyan.server.openai_responses_turn import AnyAnswer, AskedTurn, answer_whole, read_turn, tell
from qianyan.server.serving import Served
from qianyan.server.stream import EventStream, to_json, unless_gone

router = APIRouter(tags=["responses"])


class ItemList(BaseModel):
    """Some items of a response's input, in order."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResponseDeleted(BaseModel):
    """What is said of a response that is gone."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


@router.post("/responses")
async def create_response(request: Request, body: ResponseRequest, serving: Served) -> Response:
    """Answer a conversation, of which the server may keep what went before."""
    if serving.upstreams.find(body.model) is None:
        serving.check_model(body.model)
    keeping = _keeping(request, body)
    responses = None if keeping is None else keeping.responses
    is_stored = responses is not None and body.store is not False
    owner_id = owner_of(request)
    turn = await asyncio.to_thread(read_turn, body, responses, owner_id, is_stored=is_stored)

    def keep() -> None:
        if responses is not None and is_stored:
            responses.add(owner_id, turn.kept)

    ignored = body.ignored_fields()
    headers = {"x-ignored-fields": ", ".join(ignored)} if ignored else {}
    if body.background:
        await turn.check(serving)
        queued = await _submit(turn, find_keeping(request), owner_id)
        return Response(to_json(queued), headers=headers, media_type="application/json")
    if not body.stream:
        response = await unless_gone(request, answer_whole(turn, serving))
        await asyncio.to_thread(keep)
        return Response(to_json(response), headers=headers, media_type="application/json")
    answer, writer = await unless_gone(request, turn.begin(serving))
    return EventStream(_stream(writer, answer, keep), leave=answer.leave, headers=headers)


@router.get("/responses/{response_id}")
async def retrieve_response(
    request: Request,
    kept: Kept,
    response_id: str,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """Show a response, or tell it once more as a stream of larger pieces."""
    response = await asyncio.to_thread(kept.responses.find, owner_of(request), response_id)
    if not stream:
        return Response(to_json(response), media_type="application/json")
    if response["status"] in UNFINISHED:
        raise ConflictError(
            f"The response is {response['status']}; expected one that is over to stream it. "
            "Retrieve it without stream until it is."
        )
    return EventStream(_again(replay(response, starting_after=starting_after)), leave=lambda: None)


@router.delete("/responses/{response_id}")
async def delete_response(request: Request, kept: Kept, response_id: str) -> ResponseDeleted:
    """Delete a response; conversations that went on from it end there."""
    await asyncio.to_thread(kept.responses.delete, owner_of(request), response_id)
    return ResponseDeleted(id=response_id)


@router.post("/responses/{response_id}/cancel")
async def cancel_response(request: Request, kept: Kept, response_id: str) -> Response:
    """End a response that is made in the background."""
    response = await asyncio.to_thread(kept.responses.cancel, owner_of(request), response_id)
    return Response(to_json(response), media_type="application/json")


@router.get("/responses/{response_id}/input_items")
async def list_input_items(
    request: Request,
    kept: Kept,
    response_id: str,
    after: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> ItemList:
    """List what was sent with a response; what went before it is its predecessors'."""
    page = await asyncio.to_thread(
        partial(kept.responses.input_page, after=after or None, limit=limit, order=order),
        owner_of(request),
        response_id,
    )
    return ItemList(
        data=page.items,
        first_id=page.items[0]["id"] if page.items else None,
        last_id=page.items[-1]["id"] if page.items else None,
        has_more=page.has_more,
    )


def _keeping(request: Request, body: ResponseRequest) -> Keeping | None:
    """Find what is kept; where nothing is, raise RefusedError if the request cannot do without."""
    needs = body.store or body.background or body.previous_response_id is not None
    if needs or getattr(request.app.state, "keeping", None) is not None:
        return find_keeping(request)
    return None


async def _submit(turn: AskedTurn, keeping: Keeping, owner_id: str) -> dict[str, Any]:
    turn.response["status"] = ResponseStatus.QUEUED.value
    body = turn.request.model_dump(exclude={"input"}, exclude_none=True)
    asked = {"response_id": turn.response["id"], "body": body}
    await asyncio.to_thread(keeping.responses.submit, owner_id, turn.kept, asked)
    keeping.wake()
    return turn.response


async def _stream(
    writer: ResponseWriter, answer: AnyAnswer, keep: Callable[[], None]
) -> AsyncIterator[str]:
    """Write the events of an answer; what ends it early becomes the response's error."""
    try:
        async for event in tell(writer, answer):
            yield _to_text(event)
        await asyncio.to_thread(keep)
    except QianyanError as error:
        for event in writer.fail(to_failure(error)):
            yield _to_text(event)
    yield _to_text(writer.end())
    yield DONE


async def _again(events: Iterable[Event]) -> AsyncIterator[str]:
    for event in events:
        yield _to_text(event)
    yield DONE


def _to_text(event: Event) -> str:
    return f"event: {event['type']}\ndata: {to_json(event)}\n\n"
