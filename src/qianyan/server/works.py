"""What is done in line: the work of each kind of task, for as long as an app runs."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI

from qianyan.server.batch_callbacks import tell_end
from qianyan.server.batch_rows import BatchRow
from qianyan.server.batches import CALLBACK_KIND, LINE_KIND
from qianyan.server.dashscope_generation import answer_task
from qianyan.server.dashscope_tasks import TASK_KIND
from qianyan.server.keeping import Keeping, keep
from qianyan.server.openai_batches import answer_chat, to_object
from qianyan.server.openai_responses_background import answer_later
from qianyan.server.openai_responses_kept import RESPONSE_KIND
from qianyan.server.serving import Serving
from qianyan.server.task_runner import Work


@asynccontextmanager
async def keep_and_work(app: FastAPI) -> AsyncIterator[None]:
    """Keep files, tasks and batches in the state folder, where there is one, and do the work."""
    serving: Serving = app.state.serving
    settings = serving.settings
    if settings.state_folder is None:
        yield
        return
    worker = serving.worker
    attach = worker.attach
    works = partial(make_works, serving)
    kept = keep(settings.state_folder, works, settings.keeping, settings.database_url)
    async with kept as keeping:
        app.state.keeping = keeping
        worker.attach = lambda messages: attach(keeping.uploads.attach(messages))
        serving.upstreams.attach = keeping.uploads.attach
        yield


def make_works(serving: Serving, keeping: Keeping) -> Mapping[str, Work]:
    """Say who does which kind of task."""

    async def answer(_owner_id: str, body: dict[str, Any]) -> dict[str, Any]:
        return await answer_chat(serving, body)

    def show(row: BatchRow) -> dict[str, Any]:
        return to_object(row).model_dump()

    fetching = serving.worker.engine.processor.limits.fetch
    return {
        CALLBACK_KIND: tell_end(keeping.batches, show, fetching),
        LINE_KIND: keeping.batches.work(answer),
        TASK_KIND: partial(answer_task, serving),
        RESPONSE_KIND: partial(answer_later, serving, keeping.responses),
    }
