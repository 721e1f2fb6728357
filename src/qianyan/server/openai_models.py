"""GET models: the names that requests may give, of the model here and of those elsewhere."""

import time
from typing import Any

from fastapi import APIRouter

from qianyan.server.serving import Served, Serving

router = APIRouter(tags=["models"])
STARTED_AT = int(time.time())


@router.get("/models")
async def list_models(serving: Served) -> dict[str, Any]:
    """List the names that requests may give."""
    names = serving.settings.all_names
    return {"object": "list", "data": [_model(name, serving) for name in names]}


@router.get("/models/{name:path}")
async def retrieve_model(name: str, serving: Served) -> dict[str, Any]:
    """Describe one name; 404 where it is none."""
    if name not in serving.upstreams.by_name:
        serving.check_model(name)
    return _model(name, serving)


def _model(name: str, serving: Serving) -> dict[str, Any]:
    """Say who has a model; where an upstream server is, is not told."""
    owner = "upstream" if name in serving.upstreams.by_name else "qianyan"
    return {"id": name, "object": "model", "created": STARTED_AT, "owned_by": owner}
