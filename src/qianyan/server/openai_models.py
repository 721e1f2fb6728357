"""GET models: the names under which the model is served."""

import time
from typing import Any

from fastapi import APIRouter

from qianyan.server.serving import Served

router = APIRouter(tags=["models"])
STARTED_AT = int(time.time())


@router.get("/models")
async def list_models(serving: Served) -> dict[str, Any]:
    """List the names that requests may give."""
    return {"object": "list", "data": [_model(name) for name in serving.settings.model_names]}


@router.get("/models/{name:path}")
async def retrieve_model(name: str, serving: Served) -> dict[str, Any]:
    """Describe one name; 404 where it is none."""
    serving.check_model(name)
    return _model(name)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": STARTED_AT, "owned_by": "qianyan"}
