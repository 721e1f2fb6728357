"""/files in DashScope's words: upload several at once, list, show, read, delete.

They are the same files as at /v1/files. The SDK does not send the purpose that it is told, so a
file without one is a document. Missing files are a fault of the request there, not a missing page.
"""

import asyncio
import base64
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.datastructures import UploadFile

from qianyan.errors import InputError, quote
from qianyan.server.auth import owner_of
from qianyan.server.dashscope_errors import PREFIX, to_code
from qianyan.server.dashscope_pages import PageParams
from qianyan.server.dashscope_times import to_second
from qianyan.server.database import NotFoundError
from qianyan.server.document_shelf import DocumentShelf
from qianyan.server.errors import RefusedError, to_failure
from qianyan.server.files import FilePurpose, FileQuery, StoredFile, parse_purpose, shown_name
from qianyan.server.forms import open_form
from qianyan.server.keeping import Keeping, Kept
from qianyan.server.openai_files import MAX_UPLOAD_BYTES, content_of
from qianyan.server.store import read_chunks

router = APIRouter(prefix=f"{PREFIX}files", tags=["dashscope"])
MAX_FILES = 10
"""Files of one form."""
LONGEST_DESCRIPTION = 1_000
UPLOAD_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "descriptions": {"type": "array", "items": {"type": "string"}},
                        "purpose": {"type": "string"},
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=UPLOAD_FORM, max_body_size=MAX_UPLOAD_BYTES)
async def upload_files(request: Request, kept: Kept) -> dict[str, Any]:
    """Keep files for their owner; those that cannot be kept are named beside the others."""
    uploaded, failed = [], []
    room = await asyncio.to_thread(kept.files.room, owner_of(request))
    async with open_form(request, room=room, max_files=MAX_FILES) as form:
        files = [one for one in form.getlist("files") if isinstance(one, UploadFile)]
        if not files:
            raise InputError("files is missing; expected a form with files in the field 'files'.")
        purpose = parse_purpose(str(form.get("purpose") or FilePurpose.FILE_EXTRACT))
        descriptions = [str(one)[:LONGEST_DESCRIPTION] for one in form.getlist("descriptions")]
        for at, file in enumerate(files):
            name = shown_name(file.filename or "")
            description = descriptions[at] if at < len(descriptions) else ""
            try:
                stored = await asyncio.to_thread(
                    _keep, kept, owner_of(request), purpose, file, description
                )
            except (InputError, RefusedError) as error:
                failure = to_failure(error)
                code = to_code(failure)
                failed.append({"name": name, "code": code, "message": failure.message})
                continue
            uploaded.append({"name": name, "file_id": stored.id})
            if purpose is FilePurpose.FILE_EXTRACT:
                shelf: DocumentShelf = request.app.state.shelf
                shelf.begin(stored)
    data = {"uploaded_files": uploaded, "failed_uploads": failed}
    return {"data": data, "request_id": request.state.request_id}


@router.get("")
async def list_files(
    request: Request, kept: Kept, asked: Annotated[PageParams, Query()]
) -> dict[str, Any]:
    """List an owner's files, newest first."""
    page = await asyncio.to_thread(kept.files.list_page, owner_of(request), FileQuery(), asked.page)
    data = {
        "total": page.total,
        "page_no": asked.page_no,
        "page_size": asked.page_size,
        "files": [_shown(request, file) for file in page.items],
    }
    return {"data": data, "request_id": request.state.request_id}


@router.get("/{file_id}")
async def show_file(request: Request, kept: Kept, file_id: str) -> dict[str, Any]:
    """Show a file."""
    file = await asyncio.to_thread(_find, kept, owner_of(request), file_id)
    return {"data": _shown(request, file), "request_id": request.state.request_id}


@router.get("/{file_id}/content", response_class=FileResponse)
async def read_file(request: Request, kept: Kept, file_id: str) -> FileResponse:
    """Give a file's content, as its `url` names it."""
    return content_of(kept, await asyncio.to_thread(_find, kept, owner_of(request), file_id))


@router.delete("/{file_id}")
async def delete_file(request: Request, kept: Kept, file_id: str) -> dict[str, Any]:
    """Delete a file."""
    await asyncio.to_thread(_delete, kept, owner_of(request), file_id)
    shelf: DocumentShelf = request.app.state.shelf
    shelf.forget(file_id)
    return {"request_id": request.state.request_id}


def _keep(
    kept: Keeping, owner_id: str, purpose: FilePurpose, file: UploadFile, description: str
) -> StoredFile:
    written = kept.files.write(purpose, read_chunks(file.file))
    return kept.files.add(written, owner_id, file.filename or "", description=description)


def _find(kept: Keeping, owner_id: str, file_id: str) -> StoredFile:
    try:
        return kept.files.find(owner_id, file_id)
    except NotFoundError as error:
        raise _missing(file_id) from error


def _delete(kept: Keeping, owner_id: str, file_id: str) -> None:
    try:
        kept.files.delete(owner_id, file_id)
    except NotFoundError as error:
        raise _missing(file_id) from error


def _missing(file_id: str) -> InputError:
    """Say it with the words that Bailian's SDK looks for."""
    return InputError(f"File not found: this key has no file {quote(file_id)}.")


def _shown(request: Request, file: StoredFile) -> dict[str, Any]:
    content = request.url.replace(path=f"{PREFIX}files/{file.id}/content", query="")
    md5 = "" if file.md5 is None else base64.b64encode(bytes.fromhex(file.md5)).decode()
    return {
        "file_id": file.id,
        "name": file.filename,
        "description": file.description or "",
        "purpose": file.purpose,
        "size": file.size_bytes,
        "md5": md5,
        "gmt_create": to_second(file.created_at),
        "url": str(content),
    }
