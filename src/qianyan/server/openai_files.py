"""/files in OpenAI's words: upload, list, retrieve, content, delete.

An upload may be larger than other bodies and is refused the moment it is longer than any purpose
takes; the file then goes from the parser's spool to the store in a thread.
"""

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile

from qianyan.errors import InputError, quote
from qianyan.server.auth import owner_of
from qianyan.server.document_shelf import DocumentShelf, State, wait_for
from qianyan.server.files import FileLimits, FilePurpose, FileQuery, StoredFile
from qianyan.server.forms import FORM_BYTES, open_form
from qianyan.server.keeping import Keeping, Kept
from qianyan.server.owned import PageQuery
from qianyan.server.store import read_chunks

router = APIRouter(tags=["files"])
MAX_UPLOAD_BYTES = FileLimits().max_batch_bytes + FORM_BYTES
"""What is read of an upload; each purpose has a limit of its own below."""
SAME_PURPOSES = dict.fromkeys(("user_data", "assistants"), FilePurpose.FILE_EXTRACT.value)
"""What OpenAI's clients call documents; they are kept as those that Bailian's send."""
READING_WAIT_S = 2.0
"""How long the answer to an upload waits for the document to have been read."""
UPLOAD_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string"},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer"},
                    },
                }
            }
        },
    }
}


class FileObject(BaseModel):
    """A file as OpenAI shows it; times are whole seconds since 1970."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: State
    status_details: str | None = None


class FileList(BaseModel):
    """Some files, in order."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """What is said of a file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def content_of(kept: Keeping, file: StoredFile) -> FileResponse:
    """Give a file's content, never as anything that a browser would run."""
    return FileResponse(
        kept.files.store.path(file.id),
        media_type="application/octet-stream",
        filename=file.filename,
        headers={"x-content-type-options": "nosniff"},
    )


def to_object(request: Request, file: StoredFile) -> FileObject:
    """Show a file as OpenAI does; documents are `uploaded` until they have been read."""
    shelf: DocumentShelf = request.app.state.shelf
    state, details = shelf.state(file)
    return FileObject(
        id=file.id,
        bytes=file.size_bytes,
        created_at=int(file.created_at.timestamp()),
        expires_at=None if file.expires_at is None else int(file.expires_at.timestamp()),
        filename=file.filename,
        purpose=file.purpose.value,
        status=state,
        status_details=details,
    )


@router.post("/files", openapi_extra=UPLOAD_FORM, max_body_size=MAX_UPLOAD_BYTES)
async def create_file(request: Request, kept: Kept) -> FileObject:
    """Keep a file for its owner."""
    room = await asyncio.to_thread(kept.files.room, owner_of(request))
    async with open_form(request, room=room) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise InputError("file is missing; expected a form with a file in the field 'file'.")
        stated = str(form.get("purpose") or "")
        purpose = SAME_PURPOSES.get(stated, stated)
        stored = await asyncio.to_thread(
            kept.files.upload,
            owner_of(request),
            file.filename or "",
            purpose,
            read_chunks(file.file),
            keep_s=_read_keep_s(form),
        )
    await _begin_to_read(request, stored)
    return to_object(request, stored)


@router.get("/files")
async def list_files(
    request: Request,
    kept: Kept,
    purpose: FilePurpose | None = None,
    after: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    order: Literal["asc", "desc"] = "desc",
) -> FileList:
    """List an owner's files."""
    part = PageQuery(limit=limit, after=after or None, is_oldest_first=order == "asc")
    query = FileQuery(purpose=purpose)
    page = await asyncio.to_thread(kept.files.list_page, owner_of(request), query, part)
    data = [to_object(request, file) for file in page.items]
    return FileList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    )


@router.get("/files/{file_id}")
async def retrieve_file(request: Request, kept: Kept, file_id: str) -> FileObject:
    """Show a file; one that has not been read since the server started begins to be."""
    file = await asyncio.to_thread(kept.files.find, owner_of(request), file_id)
    shelf: DocumentShelf = request.app.state.shelf
    if shelf.state(file)[0] == "uploaded":
        await _begin_to_read(request, file)
    return to_object(request, file)


@router.get("/files/{file_id}/content", response_class=FileResponse)
async def read_file(request: Request, kept: Kept, file_id: str) -> FileResponse:
    """Give a file's content."""
    return content_of(kept, await asyncio.to_thread(kept.files.find, owner_of(request), file_id))


@router.delete("/files/{file_id}")
async def delete_file(request: Request, kept: Kept, file_id: str) -> FileDeleted:
    """Delete a file."""
    await asyncio.to_thread(kept.files.delete, owner_of(request), file_id)
    shelf: DocumentShelf = request.app.state.shelf
    shelf.forget(file_id)
    return FileDeleted(id=file_id)


async def _begin_to_read(request: Request, file: StoredFile) -> None:
    """Have a document read; one that is read at once is shown as that."""
    if file.purpose is FilePurpose.FILE_EXTRACT:
        shelf: DocumentShelf = request.app.state.shelf
        await wait_for([shelf.begin(file)], READING_WAIT_S)


def _read_keep_s(form: FormData) -> int | None:
    seconds = form.get("expires_after[seconds]")
    if seconds is None:
        return None
    text = str(seconds)
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise InputError(f"expires_after[seconds] is {quote(text)}; expected whole seconds.")
    return int(text)
