"""POST tokenizer: what a prompt, or a conversation as the model reads it, is made of."""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from qianyan.errors import InputError
from qianyan.inputs.processor import Processor
from qianyan.server.dashscope_errors import PREFIX
from qianyan.server.dashscope_request import Conversation, GenerationRequest
from qianyan.server.errors import RefusedError
from qianyan.server.serving import Served
from qianyan.server.stream import to_json

router = APIRouter(tags=["dashscope"])
MAX_CHARACTERS = 1_000_000
"""Longest text that is taken apart."""


@router.post(f"{PREFIX}tokenizer")
async def count_tokens(request: Request, body: GenerationRequest, serving: Served) -> Response:
    """Take a text apart; a prompt alone stays bare, messages stand in the model's own frame."""
    serving.check_model(body.named_model())
    asked = body.input or Conversation()
    processor, request_id = serving.worker.engine.processor, request.state.request_id
    whole = await asyncio.to_thread(_write, processor, asked, request_id)
    return Response(whole, media_type="application/json")


def _write(processor: Processor, asked: Conversation, request_id: str) -> str:
    """Write the reply, which may tell of a million tokens."""
    token_ids = _encode(processor, asked)
    tokens = [processor.tokenizer.token_text(one) for one in token_ids]
    return to_json(
        {
            "output": {"token_ids": token_ids, "tokens": tokens},
            "usage": {"input_tokens": len(token_ids)},
            "request_id": request_id,
        }
    )


def _encode(processor: Processor, asked: Conversation) -> list[int]:
    messages = asked.to_messages()
    texts = [_text(message, at) for at, message in enumerate(messages)]
    length = sum(map(len, texts))
    if length > MAX_CHARACTERS:
        raise RefusedError(
            f"The text has {length} characters; expected at most {MAX_CHARACTERS}.",
            status=413,
            code="request_too_large",
        )
    if asked.prompt and not asked.history:
        return processor.tokenizer.encode(asked.prompt)
    plain = [
        {"role": message.get("role"), "content": text}
        for message, text in zip(messages, texts, strict=True)
    ]
    return processor(plain, allow_files=False).prompt_token_ids


def _text(message: Mapping[str, Any], at: int) -> str:
    """Give the text of a message; InputError where it holds anything else."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if all(isinstance(text, str) for text in texts):
        return "".join(map(str, texts))
    raise InputError(
        f"messages[{at}] holds more than text; expected text, which alone is taken apart here."
    )
