"""/batches in OpenAI's words: create, list, retrieve, cancel; and how a line is answered."""

import asyncio
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qianyan.errors import InputError, quote
from qianyan.server.auth import owner_of
from qianyan.server.batch_rows import BatchQuery, BatchRow, BatchState
from qianyan.server.dashscope_times import parse_time
from qianyan.server.errors import field_error
from qianyan.server.keeping import Kept
from qianyan.server.openai_chat import answer_whole
from qianyan.server.openai_request import ChatRequest
from qianyan.server.owned import PageQuery
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


class BatchParams(BaseModel):
    """The query of a list: OpenAI's, and Bailian's choice of batches."""

    after: Annotated[str | None, Field(max_length=200)] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    ds_name: Annotated[str | None, Field(max_length=100)] = None
    input_file_ids: Annotated[str | None, Field(max_length=2_000)] = None
    status: Annotated[str | None, Field(max_length=200)] = None
    create_after: str | None = None
    create_before: str | None = None

    @property
    def page(self) -> PageQuery:
        """The page that is asked for."""
        return PageQuery(limit=self.limit, after=self.after or None)

    @property
    def query(self) -> BatchQuery:
        """Which batches are asked for; InputError for a state or a time that is none."""
        return BatchQuery(
            states=tuple(map(_parse_state, _split(self.status))),
            input_file_ids=_split(self.input_file_ids),
            name=self.ds_name or None,
            created_from=parse_time(self.create_after, "create_after"),
            created_until=parse_time(self.create_before, "create_before"),
        )


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


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in (text or "").split(","))))


def _parse_state(text: str) -> BatchState:
    try:
        return BatchState(text)
    except ValueError as error:
        known = ", ".join(BatchState)
        raise InputError(f"status is {quote(text)}; expected some of {known}.") from error


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
    request: Request, kept: Kept, asked: Annotated[BatchParams, Query()]
) -> BatchList:
    """List an owner's batches."""
    page = await asyncio.to_thread(
        kept.batches.list_page, owner_of(request), asked.query, asked.page
    )
    data = [to_object(row) for row in page.items]
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


async def answer_chat(serving: Serving, body: dict[str, Any]) -> dict[str, Any]:
    """Answer the body of a line as chat/completions would, whole."""
    try:
        asked = ChatRequest.model_validate(body)
    except ValidationError as error:
        raise field_error(error.errors(include_url=False, include_input=False)[0]) from error
    upstream = serving.upstreams.find(asked.model)
    if upstream is not None:
        return await serving.upstreams.ask(upstream, asked)
    serving.check_model(asked.model)
    return await answer_whole(serving, asked)
