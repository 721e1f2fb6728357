"""POST chat/completions: one answer or a stream of chunks, as OpenAI and Bailian send them."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from qianyan.engine.request import Completion, Finished
from qianyan.errors import QianyanError
from qianyan.inputs.processor import Processor
from qianyan.server.errors import openai_body, to_failure
from qianyan.server.generate import AnyAnswer, Question, begin, collect, follow, leave_all
from qianyan.server.openai_reply import OpenAIReply, TokenWords
from qianyan.server.openai_request import ChatRequest
from qianyan.server.openai_speech import SpokenReply, answer_spoken, read_speech
from qianyan.server.serving import Served
from qianyan.server.stream import EventStream, to_json, unless_gone
from qianyan.server.upstream_chat import pass_on

router = APIRouter(tags=["chat"])
DONE = "data: [DONE]\n\n"


@router.post("/chat/completions")
async def create(request: Request, body: ChatRequest, serving: Served) -> Response:
    """Answer a conversation."""
    upstream = serving.upstreams.find(body.model)
    if upstream is not None:
        return await pass_on(request, body, serving.upstreams, upstream)
    serving.check_model(body.model)
    worker = serving.worker
    processor = worker.engine.processor
    speech = read_speech(body, worker)
    if speech is not None:
        body = body.model_copy(update={"modalities": None, "audio": None})
    question = body.to_question(processor.pictures, serving.settings.limits, serving.web)
    reply = begin_reply(body, question, processor)
    ignored = body.ignored_fields()
    headers = {"x-ignored-fields": ", ".join(ignored)} if ignored else {}
    if speech is not None:
        spoken = SpokenReply(reply=reply, asked=speech)
        return await answer_spoken(request, worker, question, spoken, body)
    if not body.stream:
        whole = reply.whole(*await unless_gone(request, collect(worker, question)))
        return Response(to_json(whole), headers=headers, media_type="application/json")
    answers = await unless_gone(request, begin(worker, question))
    return EventStream(
        write_events(
            answers,
            reply,
            request_id=request.state.request_id,
            includes_usage=body.includes_usage,
        ),
        leave=partial(leave_all, answers),
        headers=headers,
    )


def begin_reply(body: ChatRequest, question: Question, processor: Processor) -> OpenAIReply:
    """Make what writes the answer to a request."""
    return OpenAIReply(
        model=body.model,
        words=None
        if body.num_logprobs is None
        else TokenWords(tokenizer=processor.tokenizer, num_top=body.num_logprobs),
        search=question.search,
        processor=processor,
    )


async def write_events(
    answers: Sequence[AnyAnswer], reply: OpenAIReply, *, request_id: str, includes_usage: bool
) -> AsyncIterator[str]:
    """Write a stream of chunks; what ends an answer early becomes an event with the error."""
    completions: list[Completion] = []
    for index in range(len(answers)):
        yield _event(reply.first_chunk(index))
    if (sources := reply.search_chunk()) is not None:
        yield _event(sources)
    try:
        async for index, event in follow(answers):
            if (sources := reply.search_chunk()) is not None:
                yield _event(sources)
            if isinstance(event, Finished):
                completions.append(event.completion)
                yield _event(reply.last_chunk(index, event.completion))
            else:
                for chunk in reply.token_chunks(index, event):
                    yield _event(chunk)
    except QianyanError as error:
        yield _event(openai_body(to_failure(error), request_id))
        return
    if includes_usage:
        yield _event(reply.usage_chunk(completions))
    yield DONE


def _event(data: dict[str, Any]) -> str:
    return f"data: {to_json(data)}\n\n"
