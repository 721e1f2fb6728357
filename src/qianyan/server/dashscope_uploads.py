"""GET uploads?action=getPolicy, and where the policy lets a file be sent: files for requests.

The second is called without an API key: the policy in its address, signed by this server, stands
for one, and is checked before anything of the file is read.
"""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from qianyan.errors import InputError
from qianyan.server.auth import UPLOAD_SINK, owner_of
from qianyan.server.batch_lines import LONGEST_MODEL
from qianyan.server.dashscope_errors import PREFIX
from qianyan.server.files import FileLimits
from qianyan.server.forms import FORM_BYTES, open_form
from qianyan.server.keeping import Kept
from qianyan.server.serving import Served
from qianyan.server.store import read_chunks

router = APIRouter(tags=["dashscope"])
MEGABYTE = 1_000_000
LONGEST_POLICY = 4_000


class PolicyParams(BaseModel):
    """What is asked for: there is one action."""

    action: Literal["getPolicy"]
    model: Annotated[str, Field(max_length=LONGEST_MODEL)]


@router.get(f"{PREFIX}uploads")
async def permit_upload(
    request: Request, kept: Kept, serving: Served, asked: Annotated[PolicyParams, Query()]
) -> dict[str, Any]:
    """Say where and how a file may be sent that requests will name."""
    if asked.model not in serving.settings.all_names:
        serving.check_model(asked.model)
    policy = kept.uploads.permit(owner_of(request))
    sink = request.url.replace(path=UPLOAD_SINK, query="", fragment="")
    address = sink.include_query_params(policy=policy.text, signature=policy.signature)
    data = {
        "policy": policy.text,
        "signature": policy.signature,
        "upload_dir": policy.folder,
        "upload_host": str(address),
        "expire_in_seconds": kept.uploads.limits.policy_s,
        "max_file_size_mb": kept.uploads.max_bytes // MEGABYTE,
        "capacity_limit_mb": kept.files.limits.max_total_bytes // MEGABYTE,
        "oss_access_key_id": "qianyan",
        "x_oss_object_acl": "private",
        "x_oss_forbid_overwrite": "true",
    }
    return {"data": data, "request_id": request.state.request_id}


@router.post(UPLOAD_SINK, max_body_size=FileLimits().max_request_bytes + FORM_BYTES)
async def keep_upload(
    request: Request,
    kept: Kept,
    policy: Annotated[str, Query(max_length=LONGEST_POLICY)],
    signature: Annotated[str, Query(max_length=LONGEST_POLICY)],
) -> Response:
    """Keep a file for the key that the policy was given to."""
    owner_id, folder = kept.uploads.check(policy, signature)
    room = await asyncio.to_thread(kept.files.room, owner_id)
    async with open_form(request, room=room) as form:
        file, key = form.get("file"), form.get("key")
        if not isinstance(file, UploadFile) or not isinstance(key, str):
            raise InputError("key or file is missing; expected a form with both.")
        await asyncio.to_thread(kept.uploads.keep, owner_id, key, folder, read_chunks(file.file))
    return Response()
