"""Batches: a file of requests in, files of answers and of errors out, within a window of days.

A batch is checked line by line; each good line then becomes a task behind all tasks that somebody
waits for, so that an answer is kept the moment it is there and none is asked for twice after the
process was killed. `advance` takes every batch as far as it can go; what it changes, it changes
in one transaction, so that two servers on one database do not meet. States and forms are OpenAI's.
"""

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from qianyan.errors import InputError, quote
from qianyan.server.batch_lines import (
    ENDPOINTS,
    BatchLimits,
    Line,
    LineError,
    read_body,
    read_lines,
)
from qianyan.server.batch_rows import (
    CALLBACK,
    NAME,
    OVER,
    UNFINISHED,
    BatchQuery,
    BatchRow,
    BatchState,
)
from qianyan.server.database import (
    ConflictError,
    Database,
    NotFoundError,
    QuotaError,
    utc_now,
)
from qianyan.server.files import FilePurpose, Files, WrittenFile
from qianyan.server.owned import (
    Page,
    PageQuery,
    created_within,
    find_owned,
    list_owned,
)
from qianyan.server.task_rows import LATER, Task, TaskRow, TaskState, new_row

LINE_KIND = "batch_line"
CALLBACK_KIND = "batch_callback"
WINDOW = re.compile(r"(\d{1,4})([hd])")
SECONDS = {"h": 3600, "d": 86_400}

Answer = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Answers one request of an owner: from its body to the response's body."""
LEFT_OUT = {
    BatchState.CANCELLED: ("batch_cancelled", "The batch was cancelled before this request."),
    BatchState.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
}


class Batches:
    """The batches of all owners; every call may wait for the disk."""

    def __init__(self, database: Database, files: Files, limits: BatchLimits | None = None) -> None:
        self.limits = limits or BatchLimits()
        self._database = database
        self._files = files

    def create(
        self,
        owner_id: str,
        input_file_id: str,
        endpoint: str,
        *,
        completion_window: str = "24h",
        metadata: dict[str, str] | None = None,
    ) -> BatchRow:
        """Accept a batch; its input is kept until it is over, though the file be deleted.

        Raises:
            InputError: a field is none that is taken.
            NotFoundError: the owner has no such file.
            QuotaError: the owner has too many batches that are not over.
        """
        if endpoint not in ENDPOINTS:
            raise InputError(
                f"endpoint is {quote(endpoint)}; expected one of {', '.join(ENDPOINTS)}."
            )
        window_s = self._parse_window(completion_window)
        self._check_metadata(metadata or {})
        file = self._files.find(owner_id, input_file_id)
        if file.purpose != FilePurpose.BATCH:
            raise InputError(
                f"The file {quote(file.id)} has the purpose {file.purpose}; expected batch."
            )
        now = utc_now()
        row = BatchRow(
            id=f"batch_{secrets.token_hex(16)}",
            owner_id=owner_id,
            endpoint=endpoint,
            input_file_id=file.id,
            completion_window=completion_window,
            note=metadata,
            state=BatchState.VALIDATING.value,
            total=0,
            completed=0,
            failed=0,
            created_at=now,
            expires_at=now + timedelta(seconds=window_s),
        )
        self._files.store.link(file.id, row.id)
        is_kept = False
        try:
            with self._database.writing() as session:
                self._check_room(session, owner_id)
                session.add(row)
            is_kept = True
        finally:
            if not is_kept:
                self._files.store.delete(row.id)
        return row

    def find(self, owner_id: str, batch_id: str) -> BatchRow:
        """Find an owner's batch, its counts as they are now; NotFoundError when there is none."""
        with self._database.reading() as session:
            row = _find_row(session, owner_id, batch_id)
            session.expunge(row)
            _count(session, row)
        return row

    def list_page(self, owner_id: str, query: BatchQuery, page: PageQuery) -> Page[BatchRow]:
        """List an owner's batches, their counts as they are now; the rows are only to be read.

        Raises NotFoundError when the page's `after` is none of them.
        """
        chosen = created_within(BatchRow, query.created_from, query.created_until)
        if query.states:
            chosen.append(BatchRow.state.in_([one.value for one in query.states]))
        if query.input_file_ids:
            chosen.append(BatchRow.input_file_id.in_(query.input_file_ids))
        if query.name:
            chosen.append(BatchRow.note[NAME].as_string() == query.name)
        with self._database.reading() as session:
            listed = list_owned(session, BatchRow, owner_id, chosen, page)
            for row in listed.items:
                session.expunge(row)
                _count(session, row)
        return listed

    def cancel(self, owner_id: str, batch_id: str) -> BatchRow:
        """Ask for no more lines; what is done is kept and comes as of a batch that is over.

        Raises:
            NotFoundError: the owner has no such batch.
            ConflictError: the batch is over, or writes its files already.
        """
        with self._database.writing() as session:
            row = _find_row(session, owner_id, batch_id)
            if row.state not in (BatchState.VALIDATING, BatchState.IN_PROGRESS):
                raise ConflictError(
                    f"The batch {quote(batch_id)} is {row.state}; expected validating or "
                    "in_progress."
                )
            row.state, row.cancelling_at = BatchState.CANCELLING.value, utc_now()
            _drop_waiting(session, row.id)
        return self.find(owner_id, batch_id)

    def work(self, answer: Answer) -> Callable[[Task], Awaitable[dict[str, Any]]]:
        """Make the work of tasks of LINE_KIND: read the line, have it answered."""

        async def answer_line(task: Task) -> dict[str, Any]:
            body = await asyncio.to_thread(self._read_body, **task.request)
            return await answer(task.owner_id, body)

        return answer_line

    def _read_body(
        self, *, batch_id: str, offset_bytes: int, size_bytes: int, **_: Any
    ) -> dict[str, Any]:
        with self._files.store.open(batch_id) as file:
            return read_body(file, offset_bytes, size_bytes)

    def advance(self) -> bool:
        """Take every batch as far as it can go now; say whether lines were put in line."""
        unfinished = select(BatchRow).where(BatchRow.state.in_([one.value for one in UNFINISHED]))
        with self._database.reading() as session:
            rows = session.scalars(unfinished.order_by(BatchRow.created_at)).all()
        has_new = False
        for row in rows:
            if row.state == BatchState.VALIDATING:
                has_new |= self._validate(row)
            else:
                self._finish_when_done(row)
        return has_new

    def ids(self) -> set[str]:
        """The ids under which the store keeps inputs of batches that are not over."""
        unfinished = BatchRow.state.in_([one.value for one in UNFINISHED])
        with self._database.reading() as session:
            return set(session.scalars(select(BatchRow.id).where(unfinished)))

    def _validate(self, row: BatchRow) -> bool:
        try:
            with self._files.store.open(row.id) as file:
                lines, errors = read_lines(file, row.endpoint, self.limits)
        except NotFoundError:  # of a state folder that somebody has put together again
            gone = "The input file is gone; expected to find it in the state folder. Send it again."
            lines, errors = [], [LineError("input_file_gone", gone)]
        if errors:
            self._move(row, BatchState.FAILED, errors=[error.as_record() for error in errors])
            self._files.store.delete(row.id)
            return False
        with self._database.writing() as session:
            is_mine = _move_in(
                session,
                row,
                BatchState.IN_PROGRESS,
                total=len(lines),
                model=lines[0].model,
            )
            if is_mine:
                session.execute(insert(TaskRow), [_line_task(row, line) for line in lines])
        return is_mine

    def _finish_when_done(self, row: BatchRow) -> None:
        """Write the files when no line is in line or being answered any more."""
        with self._database.writing() as session:
            is_late = row.state == BatchState.IN_PROGRESS and row.expires_at <= utc_now()
            if is_late:
                _drop_waiting(session, row.id)
            left = select(func.count()).where(
                TaskRow.batch_id == row.id,
                TaskRow.state.in_([TaskState.PENDING.value, TaskState.RUNNING.value]),
            )
            if session.scalar(left):
                return
            if row.state == BatchState.IN_PROGRESS:
                if not _move_in(session, row, BatchState.FINALIZING):
                    return
                row.state = BatchState.FINALIZING.value
            dropped = select(func.count()).where(
                TaskRow.batch_id == row.id, TaskRow.state == TaskState.CANCELED.value
            )
            has_dropped = bool(session.scalar(dropped))
        if row.state == BatchState.CANCELLING:
            self._finish(row, BatchState.CANCELLED)
        else:
            self._finish(row, BatchState.EXPIRED if has_dropped else BatchState.COMPLETED)

    def _finish(self, row: BatchRow, state: BatchState) -> None:
        """Write answers and errors to files, and give them, the counts and the state at once."""
        good = self._write(row, state, is_good=True)
        bad = self._write(row, state, is_good=False)
        is_mine = False
        try:
            with self._database.writing() as session:
                done = _counted(session, row.id)
                is_mine = _move_in(
                    session,
                    row,
                    state,
                    completed=done.get(TaskState.SUCCEEDED, 0),
                    failed=done.get(TaskState.FAILED, 0),
                    output_file_id=good and good.id,
                    error_file_id=bad and bad.id,
                )
                if is_mine:
                    for written, kind in ((good, "output"), (bad, "errors")):
                        if written:
                            name = f"{row.id}_{kind}.jsonl"
                            self._files.add_row(session, written, row.owner_id, name)
                    session.execute(delete(TaskRow).where(TaskRow.batch_id == row.id))
        finally:
            if not is_mine:
                for written in (good, bad):
                    if written:
                        self._files.store.delete(written.id)
        if is_mine:
            self._files.store.delete(row.id)

    def _write(self, row: BatchRow, state: BatchState, *, is_good: bool) -> WrittenFile | None:
        records = self._records(row.id, state, is_good=is_good)
        first = next(records, None)
        if first is None:
            return None

        def chunks() -> Iterator[bytes]:
            yield first
            yield from records

        return self._files.write(FilePurpose.BATCH_OUTPUT, chunks())

    def _records(self, batch_id: str, state: BatchState, *, is_good: bool) -> Iterator[bytes]:
        """Yield the lines of an output in the input's order, a page of tasks in memory."""
        succeeded = TaskRow.state == TaskState.SUCCEEDED.value
        chosen = select(TaskRow).where(
            TaskRow.batch_id == batch_id, succeeded if is_good else ~succeeded
        )
        last = 0
        while True:
            with self._database.reading() as session:
                page = chosen.where(TaskRow.line > last).order_by(TaskRow.line).limit(PAGE)
                rows = session.scalars(page).all()
            for row in rows:
                yield _to_bytes(_record(row, state))
                last = row.line or 0
            if len(rows) < PAGE:
                return

    def _move(self, row: BatchRow, state: BatchState, **values: Any) -> bool:
        with self._database.writing() as session:
            return _move_in(session, row, state, **values)

    def _parse_window(self, window: str) -> int:
        found = WINDOW.fullmatch(window)
        seconds = int(found[1]) * SECONDS[found[2]] if found else -1
        if not self.limits.min_window_s <= seconds <= self.limits.max_window_s:
            raise InputError(
                f"completion_window is {quote(window)}; expected "
                f"{self.limits.min_window_s // 3600}h to {self.limits.max_window_s // 3600}h."
            )
        return seconds

    def _check_metadata(self, metadata: dict[str, str]) -> None:
        limits = self.limits
        if len(metadata) > limits.max_metadata or any(
            len(key) > limits.max_metadata_key or len(value) > limits.max_metadata_value
            for key, value in metadata.items()
        ):
            raise InputError(
                f"metadata is too large; expected at most {limits.max_metadata} entries, keys of "
                f"{limits.max_metadata_key} and values of {limits.max_metadata_value} characters."
            )
        callback = metadata.get(CALLBACK)
        if callback is not None and not re.match(r"https?://", callback, re.IGNORECASE):
            raise InputError(f"{CALLBACK} is {quote(callback)}; expected an http or https URL.")

    def _check_room(self, session: Session, owner_id: str) -> None:
        unfinished = select(func.count()).where(
            BatchRow.owner_id == owner_id, BatchRow.state.in_([one.value for one in UNFINISHED])
        )
        if (session.scalar(unfinished) or 0) >= self.limits.max_unfinished:
            raise QuotaError(
                f"This key has {self.limits.max_unfinished} batches that are not over; "
                "wait for one or cancel one."
            )


PAGE = 100


def _line_task(row: BatchRow, line: Line) -> dict[str, Any]:
    asked = {
        "batch_id": row.id,
        "offset_bytes": line.offset_bytes,
        "size_bytes": line.size_bytes,
        "custom_id": line.custom_id,
    }
    task = new_row(row.owner_id, LINE_KIND, line.model, asked, size_bytes=0)
    values = {name: value for name, value in vars(task).items() if not name.startswith("_")}
    due_at = row.created_at + timedelta(microseconds=line.number)  # in the input's order
    return {
        **values,
        "priority": LATER,
        "due_at": due_at,
        "batch_id": row.id,
        "line": line.number,
    }


def _record(row: TaskRow, state: BatchState) -> dict[str, Any]:
    """Write a task as a line of an output file."""
    record: dict[str, Any] = {"id": row.id, "custom_id": row.request["custom_id"]}
    if row.state == TaskState.SUCCEEDED:
        response = {"status_code": 200, "request_id": row.id, "body": row.result}
        return {**record, "response": response, "error": None}
    code, message = row.error_code, row.error_message
    if row.state == TaskState.CANCELED:
        code, message = LEFT_OUT[state]
    return {**record, "response": None, "error": {"code": code, "message": message}}


def _to_bytes(record: dict[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold and UTF-8 cannot
        return json.dumps(record).encode() + b"\n"


def _move_in(session: Session, row: BatchRow, state: BatchState, **values: Any) -> bool:
    """Move a batch on when it still stands where `row` does; its end is to be told with that."""
    here = (BatchRow.id == row.id, BatchRow.state == row.state)
    moved = update(BatchRow).where(*here).values(state=state.value, **values)
    moved = moved.values({f"{state.value}_at": utc_now()}).returning(BatchRow.id)
    is_mine = len(session.scalars(moved).all()) == 1
    if is_mine and state in OVER and CALLBACK in (row.note or {}):
        asked = {"batch_id": row.id}
        session.add(new_row(row.owner_id, CALLBACK_KIND, row.model or "", asked, size_bytes=0))
    return is_mine


def _drop_waiting(session: Session, batch_id: str) -> None:
    waiting = (TaskRow.batch_id == batch_id, TaskRow.state == TaskState.PENDING.value)
    session.execute(
        update(TaskRow)
        .where(*waiting)
        .values(state=TaskState.CANCELED.value, finished_at=utc_now())
    )


def _counted(session: Session, batch_id: str) -> dict[str, int]:
    states = select(TaskRow.state, func.count().label("number"))
    found = session.execute(states.where(TaskRow.batch_id == batch_id).group_by(TaskRow.state))
    return {row.state: row.number for row in found}


def _count(session: Session, row: BatchRow) -> None:
    """Bring the counts of a detached row of a batch that is not over up to now."""
    if row.state in UNFINISHED:
        done = _counted(session, row.id)
        row.completed = done.get(TaskState.SUCCEEDED, 0)
        row.failed = done.get(TaskState.FAILED, 0)


def _find_row(session: Session, owner_id: str, batch_id: str) -> BatchRow:
    return find_owned(session, BatchRow, owner_id, batch_id, noun="batch")
