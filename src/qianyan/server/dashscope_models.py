"""GET models in DashScope's words: the names that requests may give, page by page."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field

from qianyan.server.batch_lines import LONGEST_MODEL
from qianyan.server.dashscope_errors import PREFIX
from qianyan.server.dashscope_pages import PageParams
from qianyan.server.serving import Served

router = APIRouter(tags=["dashscope"])


class ModelParams(PageParams):
    """The query of the list; `model` chooses one name."""

    model: Annotated[str | None, Field(max_length=LONGEST_MODEL)] = None


@router.get(f"{PREFIX}models")
async def list_models(
    request: Request, serving: Served, asked: Annotated[ModelParams, Query()]
) -> dict[str, Any]:
    """List the names, or the one that is asked for; a name that is none gives an empty list."""
    names = [name for name in serving.settings.all_names if asked.model in (None, "", name)]
    first = (asked.page_no - 1) * asked.page_size
    output = {
        "total": len(names),
        "page_no": asked.page_no,
        "page_size": asked.page_size,
        "models": [_shown(name) for name in names[first : first + asked.page_size]],
    }
    return {"output": output, "request_id": request.state.request_id}


def _shown(name: str) -> dict[str, Any]:
    return {"model": name, "name": name, "source": "qianyan", "provider": "qianyan"}
