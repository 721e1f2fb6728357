"""Responses that can be asked for again, each with its input items and the one it goes on from.

A conversation is a chain of responses: each keeps its own turn alone, and `chain` puts the turns
together. Whoever goes on with a chain lengthens the life of all of it; what has expired, and the
oldest of an owner who has too many, is deleted. A response that is made in the background has a
task in line, and its state is that of its row.
"""

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from qianyan.errors import quote
from qianyan.server.database import (
    ConflictError,
    Database,
    NotFoundError,
    QuotaError,
    utc_now,
)
from qianyan.server.errors import RefusedError
from qianyan.server.openai_responses_kept import (
    ANSWERED,
    ITEM_ID,
    RESPONSE_ID,
    RESPONSE_KIND,
    UNFINISHED,
    Chain,
    ItemPage,
    ResponseLimits,
    ResponseRow,
    ResponseStatus,
    Turn,
)
from qianyan.server.task_rows import TaskRow, TaskState, new_row


class Responses:
    """The responses of all owners; every call may wait for the disk."""

    def __init__(self, database: Database, limits: ResponseLimits | None = None) -> None:
        self.limits = limits or ResponseLimits()
        self._database = database

    def add(self, owner_id: str, turn: Turn) -> None:
        """Keep a response that is over."""
        with self._database.writing() as session:
            session.add(self._row(session, owner_id, turn))

    def submit(self, owner_id: str, turn: Turn, request: dict[str, Any]) -> None:
        """Put a response in line; `request` is its task's.

        Raises RefusedError when the owner has too many in line.
        """
        size_bytes = len(json.dumps(request))
        with self._database.writing() as session:
            self._check_line(session, owner_id)
            model = turn.response["model"]
            task = new_row(owner_id, RESPONSE_KIND, model, request, size_bytes=size_bytes)
            row = self._row(session, owner_id, turn)
            row.task_id = task.id
            session.add_all([task, row])

    def find(self, owner_id: str, response_id: str) -> dict[str, Any]:
        """Find an owner's response; NotFoundError when it has none of this id, or none any more."""
        with self._database.reading() as session:
            row = _find_row(session, owner_id, response_id)
            if row.status not in UNFINISHED:
                return row.response
            task = session.get(TaskRow, row.task_id)
            if task is not None and task.state in (TaskState.PENDING, TaskState.RUNNING):
                return row.response
            message = task and task.error_message
        return self._give_up(row, message or "The server lost the task of this response.")

    def input_page(
        self, owner_id: str, response_id: str, *, after: str | None, limit: int, order: str
    ) -> ItemPage:
        """List what was sent with an owner's response; NotFoundError as `find`, and for `after`."""
        with self._database.reading() as session:
            items = _find_row(session, owner_id, response_id).input_items
        ordered = items if order == "asc" else items[::-1]
        if after is not None:
            places = [at for at, item in enumerate(ordered) if item["id"] == after]
            if not places:
                raise NotFoundError(f"The response has no input item {quote(after)}.")
            ordered = ordered[places[0] + 1 :]
        return ItemPage(items=ordered[:limit], has_more=len(ordered) > limit)

    def find_item(self, owner_id: str, item_id: str) -> dict[str, Any] | None:
        """Find an item of an owner's responses by its id."""
        named = ITEM_ID.fullmatch(item_id)
        if named is None:
            return None
        with self._database.reading() as session:
            row = _row_of(session, owner_id, f"resp_{named[1]}")
        items = [] if row is None else [*row.input_items, *row.response["output"]]
        return next((item for item in items if item["id"] == item_id), None)

    def chain(self, owner_id: str, response_id: str) -> Chain:
        """Put together the conversation up to a response, which is to go on.

        Raises RefusedError when one of its responses is not there (404) or has no answer, and when
        the chain has become too long.
        """
        with self._database.reading() as session:
            last = _find_previous(session, owner_id, response_id)
            if last.status not in ANSWERED:
                raise ConflictError(
                    f"The response {quote(response_id)} is {last.status}; expected one that is "
                    "completed or incomplete in previous_response_id."
                )
            self._check_chain(last)
            rows = [last]
            while rows[-1].previous_id is not None:
                rows.append(_find_previous(session, owner_id, rows[-1].previous_id))
        rows.reverse()
        return Chain(
            response_ids=tuple(row.id for row in rows),
            items=tuple(
                item for row in rows for item in (*row.input_items, *row.response["output"])
            ),
            size_bytes=last.chain_bytes,
        )

    def before(self, row: ResponseRow) -> Chain:
        """Put together what a response in the background goes on from; raises as `chain`."""
        return Chain() if row.previous_id is None else self.chain(row.owner_id, row.previous_id)

    def is_wanted(self, response_id: str) -> bool:
        """Whether a response in the background is neither over nor cancelled nor deleted."""
        wanted = select(ResponseRow.status).where(ResponseRow.id == response_id)
        with self._database.reading() as session:
            return session.scalar(wanted) in UNFINISHED

    def delete(self, owner_id: str, response_id: str) -> None:
        """Delete an owner's response, and take it out of the line; NotFoundError as `find`."""
        with self._database.writing() as session:
            row = _find_row(session, owner_id, response_id)
            _drop_task(session, row)
            session.delete(row)

    def cancel(self, owner_id: str, response_id: str) -> dict[str, Any]:
        """End a response that is made in the background; one that is over stays as it is.

        Raises:
            NotFoundError: as `find`.
            ConflictError: the response was not made in the background.
        """
        with self._database.writing() as session:
            row = _find_row(session, owner_id, response_id)
            if row.task_id is None:
                raise ConflictError(
                    f"The response {quote(response_id)} was not made in the background; expected "
                    "one that was created with background true."
                )
            if row.status in UNFINISHED:
                _drop_task(session, row)
                _settle(row, {**row.response, "status": ResponseStatus.CANCELLED.value})
        return row.response

    def begin(self, response_id: str) -> ResponseRow | None:
        """Begin to make a response in the background; None when nobody wants it any longer."""
        with self._database.writing() as session:
            row = session.get(ResponseRow, response_id)
            if row is None or row.status not in UNFINISHED:
                return None
            _settle(row, {**row.response, "status": ResponseStatus.IN_PROGRESS.value})
        return row

    def finish(self, response: dict[str, Any]) -> None:
        """Keep what a response in the background has become, unless it was cancelled meanwhile."""
        with self._database.writing() as session:
            row = session.get(ResponseRow, response["id"])
            if row is None or row.status not in UNFINISHED:
                return
            added = _size(response["output"])
            row.size_bytes += added
            row.chain_bytes += added
            _settle(row, response)

    def sweep(self) -> int:
        """Delete the responses that have expired; return how many."""
        with self._database.writing() as session:
            old = delete(ResponseRow).where(ResponseRow.expires_at <= utc_now())
            return len(session.scalars(old.returning(ResponseRow.id)).all())

    def _row(self, session: Session, owner_id: str, turn: Turn) -> ResponseRow:
        """Make a response's row and room for it; what it goes on from lives as long as it does."""
        response, chain = turn.response, turn.chain
        size_bytes = _size(turn.input_items) + _size(response["output"])
        expires_at = utc_now() + timedelta(seconds=self.limits.keep_s)
        if chain.response_ids:
            before = ResponseRow.id.in_(chain.response_ids)
            session.execute(update(ResponseRow).where(before).values(expires_at=expires_at))
        self._make_room(session, owner_id, size_bytes)
        return ResponseRow(
            id=response["id"],
            owner_id=owner_id,
            previous_id=chain.response_ids[-1] if chain.response_ids else None,
            status=response["status"],
            input_items=list(turn.input_items),
            response=response,
            depth=len(chain.response_ids) + 1,
            size_bytes=size_bytes,
            chain_bytes=chain.size_bytes + size_bytes,
            created_at=utc_now(),
            expires_at=expires_at,
        )

    def _make_room(self, session: Session, owner_id: str, size_bytes: int) -> None:
        """Delete an owner's oldest responses until one more fits."""
        mine = ResponseRow.owner_id == owner_id
        kept = select(func.count(), func.coalesce(func.sum(ResponseRow.size_bytes), 0)).where(mine)
        number, total = session.execute(kept).one()
        number, total = number + 1 - self.limits.max_kept, total + size_bytes
        if number <= 0 and total <= self.limits.max_kept_bytes:
            return
        over = select(ResponseRow.id, ResponseRow.size_bytes).where(
            mine, ResponseRow.status.not_in(UNFINISHED)
        )
        dropped = []
        for row in session.execute(over.order_by(ResponseRow.expires_at, ResponseRow.created_at)):
            if number <= 0 and total <= self.limits.max_kept_bytes:
                break
            dropped.append(row.id)
            number, total = number - 1, total - row.size_bytes
        session.execute(delete(ResponseRow).where(ResponseRow.id.in_(dropped)))

    def _check_line(self, session: Session, owner_id: str) -> None:
        line = select(func.count()).where(
            ResponseRow.owner_id == owner_id, ResponseRow.status.in_(UNFINISHED)
        )
        number = session.scalar(line) or 0
        if number >= self.limits.max_background:
            raise RefusedError(
                f"This key has {number} responses in line in the background, the most that may "
                "be. Wait for some to finish or cancel them.",
                status=429,
                code="limit_requests",
                param="background",
                retry_after_s=5,
            )

    def _check_chain(self, last: ResponseRow) -> None:
        limits = self.limits
        if last.depth >= limits.max_chain or last.chain_bytes > limits.max_chain_bytes:
            raise QuotaError(
                f"The conversation has {last.depth} responses with {last.chain_bytes} bytes; "
                f"expected fewer than {limits.max_chain} with at most {limits.max_chain_bytes}. "
                "Begin a new one without previous_response_id.",
                code="conversation_too_long",
            )

    def _give_up(self, lost: ResponseRow, message: str) -> dict[str, Any]:
        """Say of a response that its task has failed."""
        error = {"code": "server_error", "message": message}
        failed = {**lost.response, "status": ResponseStatus.FAILED.value, "error": error}
        self.finish(failed)
        return failed


def _size(items: Sequence[dict[str, Any]]) -> int:
    return len(json.dumps(items, ensure_ascii=False).encode())


def _settle(row: ResponseRow, response: dict[str, Any]) -> None:
    row.response, row.status = response, response["status"]


def _drop_task(session: Session, row: ResponseRow) -> None:
    """Take a response's task out of the line; one that runs finds out when it is done."""
    waiting = (TaskRow.id == row.task_id, TaskRow.state == TaskState.PENDING.value)
    values = {"state": TaskState.CANCELED.value, "finished_at": utc_now()}
    session.execute(update(TaskRow).where(*waiting).values(**values))


def _row_of(session: Session, owner_id: str, response_id: str) -> ResponseRow | None:
    if not RESPONSE_ID.fullmatch(response_id):
        return None
    chosen = select(ResponseRow).where(
        ResponseRow.id == response_id,
        ResponseRow.owner_id == owner_id,
        ResponseRow.expires_at > utc_now(),
    )
    return session.scalar(chosen)


def _find_row(session: Session, owner_id: str, response_id: str) -> ResponseRow:
    row = _row_of(session, owner_id, response_id)
    if row is None:
        raise NotFoundError(
            f"There is no response {quote(response_id)}; expected the id of one that was stored."
        )
    return row


def _find_previous(session: Session, owner_id: str, response_id: str) -> ResponseRow:
    row = _row_of(session, owner_id, response_id)
    if row is None:
        raise RefusedError(
            f"The previous response {quote(response_id)} does not exist; expected the id of one "
            "that was stored and that is neither deleted nor expired.",
            status=404,
            code="previous_response_not_found",
            param="previous_response_id",
        )
    return row
