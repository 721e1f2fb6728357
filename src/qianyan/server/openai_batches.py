"""/batches in OpenAI's words: create, list, retrieve, cancel; and how a line is answered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qianyan.errors import InputError
from qianyan.server.auth import owner_of
from qianyan.server.batches import BatchRow
from qianyan.server.generate import collect
from qianyan.server.keeping import Kept, keep
from qianyan.server.openai_reply import OpenAIReply, TokenWords
from qianyan.server.openai_request import ChatRequest
from qianyan.server.serving import Serving

router = APIRouter(tags=["batches"])
TIMES = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


class BatchRequest(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(extra="ignore")

    input_file_id: Annotated[str, Field(max_length=200)]
    endpoint: Annotated[str, Field(max_length=200)]
    completion_window: Annotated[str, Field(max_length=20)] = "24h"
    metadata: dict[str, str] | None = None


class BatchObject(BaseModel):
    """A batch as OpenAI shows it; times are whole seconds since 1970, None until they come."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: dict[str, Any] | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: dict[str, int]
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    """Some batches, newest first."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def to_object(row: BatchRow) -> BatchObject:
    """Show a batch as OpenAI does."""
    times: dict[str, datetime | None] = {name: getattr(row, name) for name in TIMES}
    seconds: dict[str, Any] = {
        name: None if time is None else int(time.timestamp()) for name, time in times.items()
    }
    return BatchObject(
        id=row.id,
        endpoint=row.endpoint,
        model=row.model,
        errors=None if row.errors is None else {"object": "list", "data": row.errors},
        input_file_id=row.input_file_id,
        completion_window=row.completion_window,
        status=row.state,
        output_file_id=row.output_file_id,
        error_file_id=row.error_file_id,
        created_at=int(row.created_at.timestamp()),
        expires_at=int(row.expires_at.timestamp()),
        **seconds,
        request_counts={"total": row.total, "completed": row.completed, "failed": row.failed},
        metadata=row.note,
    )


@router.post("/batches")
async def create_batch(request: Request, body: BatchRequest, kept: Kept) -> BatchObject:
    """Accept a batch."""
    row = await asyncio.to_thread(
        kept.batches.create,
        owner_of(request),
        body.input_file_id,
        body.endpoint,
        completion_window=body.completion_window,
        metadata=body.metadata,
    )
    return to_object(row)


@router.get("/batches")
async def list_batches(
    request: Request,
    kept: Kept,
    after: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> BatchList:
    """List an owner's batches."""
    page = await asyncio.to_thread(
        kept.batches.list_page, owner_of(request), after=after or None, limit=limit
    )
    data = [to_object(row) for row in page.batches]
    return BatchList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    )


@router.get("/batches/{batch_id}")
async def retrieve_batch(request: Request, kept: Kept, batch_id: str) -> BatchObject:
    """Show a batch."""
    return to_object(await asyncio.to_thread(kept.batches.find, owner_of(request), batch_id))


@router.post("/batches/{batch_id}/cancel")
async def cancel_batch(request: Request, kept: Kept, batch_id: str) -> BatchObject:
    """Ask for no more of a batch's lines."""
    return to_object(await asyncio.to_thread(kept.batches.cancel, owner_of(request), batch_id))


@asynccontextmanager
async def keep_batches(app: FastAPI) -> AsyncIterator[None]:
    """Keep files and batches under the state folder, where there is one, and work on them."""
    serving: Serving = app.state.serving
    if serving.settings.state_folder is None:
        yield
        return
    async with keep(serving.settings.state_folder, partial(answer_chat, serving)) as keeping:
        app.state.keeping = keeping
        yield


async def answer_chat(serving: Serving, body: dict[str, Any]) -> dict[str, Any]:
    """Answer the body of a line as chat/completions would, whole."""
    try:
        asked = ChatRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "The body"
        raise InputError(f"{place}: {first['msg']}.") from error
    serving.check_model(asked.model)
    processor = serving.worker.engine.processor
    words = None
    if asked.num_logprobs is not None:
        words = TokenWords(tokenizer=processor.tokenizer, num_top=asked.num_logprobs)
    reply = OpenAIReply(
        model=asked.model,
        words=words,
    )
    question = asked.to_question(processor.pictures, serving.settings.limits)
    return reply.whole(*await collect(serving.worker, question))
