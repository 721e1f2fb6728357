"""Forms with files, as every upload is one: read, or refused in a sentence."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException

from qianyan.errors import InputError

FORM_BYTES = 1 << 20
"""What a form may have beside its files: boundaries, headers, other fields."""
MAX_FIELDS = 32


@asynccontextmanager
async def open_form(request: Request, *, max_files: int = 1) -> AsyncIterator[FormData]:
    """Read a form, whose files are on disk until the context is left.

    Raises InputError when the body is no form, or one with too many files or fields.
    """
    form = await _read_form(request, max_files)
    try:
        yield form
    finally:
        await form.close()


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
