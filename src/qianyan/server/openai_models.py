"""GET models: the names that requests may give, of the model here and of those elsewhere.

Of the model here it is told what it reads and how it answers, in the words that OpenRouter's list
of models has for it; of the others only their servers know.
"""

import time
from typing import Any

from fastapi import APIRouter

from qianyan.engine.engine import Engine
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
    described = {"id": name, "object": "model", "created": STARTED_AT}
    if name in serving.upstreams.by_name:
        return {**described, "owned_by": "upstream"}
    return {**described, "owned_by": "qianyan", **_modalities(serving.worker.engine)}


def _modalities(engine: Engine) -> dict[str, list[str]]:
    """Say what the model here reads, and how it answers."""
    processor = engine.processor
    read = {"image": processor.pictures, "video": processor.videos, "audio": processor.sounds}
    answers = [] if engine.embedder is not None else ["text"]
    return {
        "input_modalities": ["text", *(name for name, how in read.items() if how is not None)],
        "output_modalities": [*answers, *(["audio"] if engine.speech.is_there else [])],
    }
