"""Telling that a batch is over: a POST of the batch to the URL that its metadata names.

It is a task like others, put in line in the transaction that ends the batch, so that the end is
told though the process is killed, tried again as often as tasks are, and keeps nobody waiting. The
URL is a stranger's: it is opened by the one opener of URLs, under the same gate as pictures.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from qianyan.errors import EndpointError, MediaError
from qianyan.inputs.fetch import FetchLimits, post
from qianyan.server.batch_rows import CALLBACK, BatchRow
from qianyan.server.batches import Batches
from qianyan.server.task_rows import Task
from qianyan.server.task_runner import Work

logger = logging.getLogger(__name__)
TIMEOUT_S = 10.0
_MAY_PASS = frozenset({"connection_failed", "name_not_resolved", "timeout"})


def tell_end(
    batches: Batches, show: Callable[[BatchRow], dict[str, Any]], limits: FetchLimits
) -> Work:
    """Make the work of tasks of CALLBACK_KIND; `show` writes a batch as its dialect does."""
    limits = replace(limits, timeout_s=TIMEOUT_S)

    async def tell(task: Task) -> dict[str, Any]:
        row = await asyncio.to_thread(batches.find, task.owner_id, task.request["batch_id"])
        body = json.dumps(show(row)).encode()
        try:
            status = await asyncio.to_thread(post, (row.note or {})[CALLBACK], body, limits=limits)
        except MediaError as error:
            if error.code in _MAY_PASS:
                raise EndpointError(str(error)) from error
            logger.warning("the end of a batch cannot be told batch_id=%s: %s", row.id, error.code)
            raise
        if not 200 <= status < 300:
            raise EndpointError(f"The callback answered {status}; expected 200.")
        return {"status": status}

    return tell
