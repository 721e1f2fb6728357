"""Forms with files, as every upload is one: read, or refused in a sentence.

What is read lies on the disk of temporary files until it is kept: so a form that is larger than its
sender's room is refused by what it says of its length, or else as soon as it has grown too long.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from qianyan.errors import InputError
from qianyan.server.database import QuotaError

FORM_BYTES = 1 << 20
"""What a form may have beside its files: boundaries, headers, other fields."""
MAX_FIELDS = 32


@asynccontextmanager
async def open_form(request: Request, *, room: int, max_files: int = 1) -> AsyncIterator[FormData]:
    """Read a form, whose files are on disk until the context is left.

    `room` is how many bytes its sender may still keep.

    Raises:
        InputError: the body is no form, or one with too many files or fields.
        QuotaError: its files are larger than the room.
    """
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > room + FORM_BYTES:
        raise _too_large(room)
    form = await _read_form(Request(request.scope, _within(room, request.receive)), max_files)
    try:
        yield form
    finally:
        await form.close()


def _within(room: int, receive: Receive) -> Receive:
    """Receive a body whose length nobody has stated, as far as there is room for it."""
    num_received = 0

    async def receive_counted() -> Message:
        nonlocal num_received
        message = await receive()
        num_received += len(message.get("body", b""))
        if num_received > room + FORM_BYTES:
            raise _too_large(room)
        return message

    return receive_counted


def _too_large(room: int) -> QuotaError:
    return QuotaError(
        f"The files are larger than the {room} bytes that this key may still keep. Send smaller "
        "ones, or delete some first."
    )


async def _read_form(request: Request, max_files: int) -> FormData:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise InputError("The body is no form; expected multipart/form-data.")
    try:
        return await request.form(max_files=max_files, max_fields=MAX_FIELDS)
    except HTTPException as error:
        if error.status_code != 400:
            raise
        files = "one file" if max_files == 1 else f"at most {max_files} files"
        raise InputError(
            f"The form cannot be read; expected multipart/form-data with its boundary, {files} "
            f"and at most {MAX_FIELDS} other fields."
        ) from error
