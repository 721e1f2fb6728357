"""Embeddings, in both dialects: of upstream models, for no model that is loaded here makes any.

Qwen's chat models predict words: a vector taken out of one would look like an embedding and find
the wrong things. So their names are refused here, with a sentence.
"""

import array
import base64
import json
import math
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from qianyan.errors import quote
from qianyan.server.asking import asked_now
from qianyan.server.dashscope_errors import PREFIX
from qianyan.server.errors import RefusedError
from qianyan.server.serving import Served, Serving
from qianyan.server.stream import to_json, unless_gone
from qianyan.server.upstream import Upstream

openai_router = APIRouter(tags=["embeddings"])
dashscope_router = APIRouter(prefix=f"{PREFIX}services/embeddings", tags=["dashscope"])
PATH = "/embeddings"
MOST_INPUTS = 2048
Format = Literal["float", "base64"]
Texts = Annotated[list[str], Field(min_length=1, max_length=MOST_INPUTS)]
TokenIds = Annotated[list[int], Field(min_length=1)]


class EmbeddingRequest(BaseModel):
    """A request in OpenAI's form; other fields are passed on."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    input: (
        str
        | Texts
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_INPUTS)]
    )
    dimensions: Annotated[int | None, Field(ge=1)] = None
    encoding_format: Format | None = None

    @property
    def num_inputs(self) -> int:
        """How many embeddings are asked for."""
        is_one = isinstance(self.input, str) or isinstance(self.input[0], int)
        return 1 if is_one else len(self.input)


class TextInput(BaseModel):
    """The texts of a request in DashScope's form."""

    model_config = ConfigDict(strict=True)

    texts: str | Texts


class TextParameters(BaseModel):
    """How texts are to be embedded; other parameters are passed on."""

    model_config = ConfigDict(extra="allow", strict=True)

    dimension: Annotated[int | None, Field(ge=1)] = None
    output_type: Literal["dense"] | None = None


class TextEmbeddingRequest(BaseModel):
    """A request in DashScope's form."""

    model_config = ConfigDict(strict=True)

    model: str
    input: TextInput
    parameters: TextParameters | None = None

    def to_openai(self) -> EmbeddingRequest:
        """Write it in OpenAI's form."""
        asked = self.parameters or TextParameters()
        extra = {"dimensions": asked.dimension, **(asked.model_extra or {})}
        stated = {name: value for name, value in extra.items() if value is not None}
        own = {"model": self.model, "input": self.input.texts}
        return EmbeddingRequest.model_validate({**stated, **own})


@openai_router.post("/embeddings")
async def create(request: Request, body: EmbeddingRequest, serving: Served) -> Response:
    """Embed texts, in OpenAI's form."""
    upstream = _find(serving, body.model)
    vectors, usage = await unless_gone(request, _embed(upstream, body))
    is_packed = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": at, "embedding": _pack(one) if is_packed else one}
        for at, one in enumerate(vectors)
    ]
    counts = {name: usage[name] for name in ("prompt_tokens", "total_tokens")}
    whole = {"object": "list", "data": data, "model": body.model, "usage": counts}
    return Response(to_json(whole), media_type="application/json")


@dashscope_router.post("/text-embedding/text-embedding")
async def create_text(request: Request, body: TextEmbeddingRequest, serving: Served) -> Response:
    """Embed texts, in DashScope's form."""
    upstream = _find(serving, body.model)
    vectors, usage = await unless_gone(request, _embed(upstream, body.to_openai()))
    found = [{"text_index": at, "embedding": one} for at, one in enumerate(vectors)]
    whole = {
        "output": {"embeddings": found},
        "usage": {"total_tokens": usage["total_tokens"]},
        "request_id": request.state.request_id,
    }
    return Response(to_json(whole), media_type="application/json")


def _find(serving: Serving, name: str) -> Upstream:
    """Find who embeds; raises RefusedError for a model that does not."""
    upstream = serving.upstreams.find(name)
    if upstream is not None:
        return upstream
    serving.check_model(name)
    raise RefusedError(
        f"The model {quote(name)} answers conversations and makes no embeddings; expected an "
        "embedding model at another server, which whoever runs this one can name with --upstream.",
        status=400,
        code="unsupported_model",
        param="model",
    )


async def _embed(
    upstream: Upstream, asked: EmbeddingRequest
) -> tuple[list[list[float]], dict[str, Any]]:
    """Ask for vectors, one for each input in their order, and for the count of tokens."""
    body = {name: getattr(asked, name) for name in asked.model_fields_set}
    # Numbers, whatever was asked for: not every server knows the packed form.
    body |= {"model": upstream.settings.model, "encoding_format": "float"}
    stated = {name: value for name, value in body.items() if value is not None}
    reply = await upstream.ask(PATH, json.dumps(stated).encode())
    given = reply.get("data")
    vectors = [_vector(one) for one in given] if isinstance(given, list) else []
    if len(vectors) != asked.num_inputs or None in vectors:
        raise upstream.failed("answers without one embedding for each input.")
    count = reply["usage"].get("prompt_tokens") if isinstance(reply.get("usage"), dict) else 0
    num_tokens = count if isinstance(count, int) and count > 0 else 0
    usage = {"prompt_tokens": num_tokens, "completion_tokens": 0, "total_tokens": num_tokens}
    upstream.count(asked_now(), usage)
    return [one for one in vectors if one is not None], usage


def _vector(given: Any) -> list[float] | None:
    """Read an embedding; None where it is no list of numbers."""
    numbers = given.get("embedding") if isinstance(given, dict) else None
    if not isinstance(numbers, list) or not numbers:
        return None
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in numbers):
        return None
    return numbers


def _pack(vector: Sequence[float]) -> str:
    """Write numbers as little-endian float32 in base64."""
    packed = array.array("f", vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode("ascii")
