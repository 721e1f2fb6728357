"""Embeddings, in both dialects: of the model here where it was made for them, or of upstream ones.

Qwen's chat models predict words: a vector taken out of one would look like an embedding and find
the wrong things. So their names are refused here, with a sentence.
"""

import array
import asyncio
import base64
import json
import math
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qianyan.engine.embedding import EmbeddingOptions, Input
from qianyan.server.asking import asked_now
from qianyan.server.dashscope_errors import PREFIX
from qianyan.server.serving import Served, Serving
from qianyan.server.stream import to_json, unless_gone
from qianyan.server.upstream import Upstream

openai_router = APIRouter(tags=["embeddings"])
dashscope_router = APIRouter(prefix=f"{PREFIX}services/embeddings", tags=["dashscope"])
PATH = "/embeddings"
MOST_INPUTS = 2048
MOST_INSTRUCTION = 8192
"""Characters of an instruction."""
Format = Literal["float", "base64"]
Texts = Annotated[list[str], Field(min_length=1, max_length=MOST_INPUTS)]
TokenIds = Annotated[list[int], Field(min_length=1)]


class EmbeddingRequest(BaseModel):
    """A request in OpenAI's form; other fields are passed on to upstream models.

    `text_type` and `instruct` are DashScope's: whether texts are questions or what answers them,
    and in words, to what end questions are asked.
    """

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
    text_type: Literal["query", "document"] | None = None
    instruct: Annotated[str | None, Field(max_length=MOST_INSTRUCTION)] = None

    @property
    def inputs(self) -> Sequence[Input]:
        """What is to be embedded, one for each vector."""
        if isinstance(self.input, str):
            return [self.input]
        # A list of numbers is one text.
        return [self.input] if isinstance(self.input[0], int) else self.input

    def options(self) -> EmbeddingOptions:
        """Say how; instructions are for questions, as at Bailian."""
        is_document = self.text_type == "document"
        return EmbeddingOptions(
            dimensions=self.dimensions,
            kind=self.text_type,
            instruction=None if is_document else self.instruct,
        )


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
        try:
            return EmbeddingRequest.model_validate({**stated, **own})
        except ValidationError as error:
            places = [{**one, "loc": ("parameters", *one["loc"])} for one in error.errors()]
            raise RequestValidationError(places) from error


@openai_router.post("/embeddings")
async def create(request: Request, body: EmbeddingRequest, serving: Served) -> Response:
    """Embed texts, in OpenAI's form."""
    vectors, num_tokens = await unless_gone(request, _embed(serving, body))

    def write() -> str:
        is_packed = body.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": at, "embedding": _pack(one) if is_packed else one}
            for at, one in enumerate(vectors)
        ]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return to_json({"object": "list", "data": data, "model": body.model, "usage": usage})

    return Response(await asyncio.to_thread(write), media_type="application/json")


@dashscope_router.post("/text-embedding/text-embedding")
async def create_text(request: Request, body: TextEmbeddingRequest, serving: Served) -> Response:
    """Embed texts, in DashScope's form."""
    vectors, num_tokens = await unless_gone(request, _embed(serving, body.to_openai()))
    found = [{"text_index": at, "embedding": one} for at, one in enumerate(vectors)]
    whole = {
        "output": {"embeddings": found},
        "usage": {"total_tokens": num_tokens},
        "request_id": request.state.request_id,
    }
    return Response(await asyncio.to_thread(to_json, whole), media_type="application/json")


async def _embed(serving: Serving, asked: EmbeddingRequest) -> tuple[list[list[float]], int]:
    """Give vectors, one for each input in their order, and the count of tokens."""
    upstream = serving.upstreams.find(asked.model)
    if upstream is not None:
        return await _ask(upstream, asked)
    serving.check_model(asked.model)
    found = await serving.worker.embed(asked.inputs, asked.options())
    return await asyncio.to_thread(found.vectors.tolist), found.num_tokens


async def _ask(upstream: Upstream, asked: EmbeddingRequest) -> tuple[list[list[float]], int]:
    """Ask an upstream model."""
    content = await asyncio.to_thread(_write, asked, upstream.settings.model)
    reply = await upstream.ask(PATH, content)
    vectors = await asyncio.to_thread(_read, reply)
    if vectors is None or len(vectors) != len(asked.inputs):
        raise upstream.failed("answers without one embedding for each input.")
    count = reply["usage"].get("prompt_tokens") if isinstance(reply.get("usage"), dict) else 0
    num_tokens = count if isinstance(count, int) and count > 0 else 0
    upstream.count(asked_now(), {"prompt_tokens": num_tokens, "completion_tokens": 0})
    return vectors, num_tokens


def _write(asked: EmbeddingRequest, model: str) -> bytes:
    """Write the body that is sent."""
    body = {name: getattr(asked, name) for name in asked.model_fields_set}
    # Numbers, whatever was asked for: not every server knows the packed form.
    body |= {"model": model, "encoding_format": "float"}
    return json.dumps({name: one for name, one in body.items() if one is not None}).encode()


def _read(reply: dict[str, Any]) -> list[list[float]] | None:
    """Read all embeddings in the order of their inputs; None where one is none."""
    given = reply.get("data")
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        return None
    by_place = {str(one.get("index", at)): one for at, one in enumerate(given)}
    places = [str(at) for at in range(len(given))]
    if set(by_place) != set(places):
        return None
    found = [_vector(by_place[at]) for at in places]
    vectors = [one for one in found if one is not None]
    return vectors if len(vectors) == len(given) else None


def _vector(given: dict[str, Any]) -> list[float] | None:
    """Read an embedding; None where it is no list of numbers."""
    numbers = given.get("embedding")
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
