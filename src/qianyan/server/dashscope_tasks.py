"""GET and POST tasks: what was asked for with `X-DashScope-Async`, fetched, listed and cancelled.

An id that nobody has, or that is another key's, is answered with 200 and UNKNOWN, which DashScope's
clients take for an end. Times are Bailian's: Beijing's, without a zone.
"""

import asyncio
import math
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field

from qianyan.server.auth import owner_of
from qianyan.server.batch_lines import LONGEST_MODEL
from qianyan.server.dashscope_errors import PREFIX, task_error_code
from qianyan.server.dashscope_pages import PageParams
from qianyan.server.dashscope_times import parse_time, to_milliseconds, to_time
from qianyan.server.database import ConflictError, NotFoundError
from qianyan.server.keeping import Kept, find_keeping
from qianyan.server.task_rows import Task, TaskState
from qianyan.server.tasks import NOT_PENDING, TaskQuery

router = APIRouter(prefix=f"{PREFIX}tasks", tags=["dashscope"])
TASK_KIND = "generation"


class TaskParams(PageParams):
    """The query of a list of tasks; an id of a key and a region mean nothing."""

    status: TaskState | None = None
    model_name: Annotated[str | None, Field(max_length=LONGEST_MODEL)] = None
    start_time: str | None = None
    end_time: str | None = None

    @property
    def query(self) -> TaskQuery:
        """Which tasks are asked for; InputError for a time that is none."""
        return TaskQuery(
            state=self.status,
            model=self.model_name or None,
            created_from=parse_time(self.start_time, "start_time"),
            created_until=parse_time(self.end_time, "end_time"),
        )


async def submit_task(request: Request, model: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Put what is asked, as its work reads it, in line; say under which id its answer will be."""
    kept = find_keeping(request)
    request_id = request.state.request_id
    task = await asyncio.to_thread(
        kept.tasks.submit,
        owner_of(request),
        TASK_KIND,
        model,
        asked,
        request_id=request_id,
    )
    kept.wake()
    output = {"task_id": task.id, "task_status": task.state}
    return {"output": output, "request_id": request_id}


@router.get("/{task_id}")
async def fetch_task(request: Request, kept: Kept, task_id: str) -> dict[str, Any]:
    """Show a task, with its result or its error once it is over."""
    request_id = request.state.request_id
    try:
        task = await asyncio.to_thread(kept.tasks.find, owner_of(request), task_id, kind=TASK_KIND)
    except NotFoundError:
        unknown = {"task_id": task_id, "task_status": TaskState.UNKNOWN}
        return {"request_id": request_id, "output": unknown}
    result = task.result or {}
    output = {**_shown(task), **result.get("output", {}), "task_metrics": _metrics(task)}
    usage = {"usage": result["usage"]} if "usage" in result else {}
    return {"request_id": request_id, "output": output, **usage}


@router.post("/{task_id}/cancel")
async def cancel_task(request: Request, kept: Kept, task_id: str) -> dict[str, Any]:
    """Take a task out of the line; one that has begun is not stopped."""
    try:
        await asyncio.to_thread(kept.tasks.cancel, owner_of(request), task_id, kind=TASK_KIND)
    except NotFoundError as error:
        raise ConflictError(NOT_PENDING) from error
    return {"request_id": request.state.request_id}


@router.get("")
async def list_tasks(
    request: Request, kept: Kept, asked: Annotated[TaskParams, Query()]
) -> dict[str, Any]:
    """List an owner's tasks, newest first; the results are to be fetched one by one."""
    page = await asyncio.to_thread(
        kept.tasks.list_page, owner_of(request), asked.query, asked.page, kind=TASK_KIND
    )
    return {
        "request_id": request.state.request_id,
        "total": page.total,
        "data": [_listed(task) for task in page.items],
        "tasks": [_shown(task) for task in page.items],
        "total_page": math.ceil(page.total / asked.page_size),
        "page_no": asked.page_no,
        "page_size": asked.page_size,
    }


def _shown(task: Task) -> dict[str, Any]:
    """Show a task without its result, as one that is fetched."""
    times = {
        "submit_time": task.created_at,
        "scheduled_time": task.started_at,
        "end_time": task.finished_at,
    }
    told = {name: to_time(at) for name, at in times.items() if at is not None}
    error = {}
    if task.state == TaskState.FAILED:
        error = {"code": task_error_code(task.error_code), "message": task.error_message}
    return {"task_id": task.id, "task_status": task.state, **told, **error}


def _metrics(task: Task) -> dict[str, int]:
    """Count what a task is made of: one answer."""
    done = (TaskState.SUCCEEDED, TaskState.FAILED)
    return {"TOTAL": 1, **{state.value: int(task.state == state) for state in done}}


def _listed(task: Task) -> dict[str, Any]:
    """Show a task as 1.x reads a list, its times in milliseconds since 1970."""
    return {
        "task_id": task.id,
        "status": task.state,
        "model_name": task.model,
        "request_id": task.request_id,
        "gmt_create": to_milliseconds(task.created_at),
        "start_time": to_milliseconds(task.started_at),
        "end_time": to_milliseconds(task.finished_at),
    }
