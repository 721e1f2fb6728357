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
from qianyan.server.openai_speech import SpokenReply, write_speech
from qianyan.server.serving import Served, Serving
from qianyan.server.spoken_answer import AskedSpeech, begin_spoken, collect_spoken, take_speech
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
    ignored = body.ignored_fields()
    headers = {"x-ignored-fields": ", ".join(ignored)} if ignored else {}
    if not body.stream:
        whole = await unless_gone(request, answer_whole(serving, body))
        return Response(to_json(whole), headers=headers, media_type="application/json")
    question, reply, speech = _read(serving, body)
    worker, request_id = serving.worker, request.state.request_id
    includes_usage = body.includes_usage
    if speech is not None:
        spoken = SpokenReply(reply=reply, asked=speech)
        answer = await unless_gone(request, begin_spoken(worker, question, speech))
        events = write_speech(answer, spoken, request_id, includes_usage=includes_usage)
        return EventStream(events, leave=answer.leave, headers=headers)
    answers = await unless_gone(request, begin(worker, question))
    events = write_events(answers, reply, request_id=request_id, includes_usage=includes_usage)
    return EventStream(events, leave=partial(leave_all, answers), headers=headers)


async def answer_whole(serving: Serving, body: ChatRequest) -> dict[str, Any]:
    """Answer a conversation with a chat.completion, spoken where that is asked for."""
    question, reply, speech = _read(serving, body)
    if speech is None:
        return reply.whole(*await collect(serving.worker, question))
    spoken = SpokenReply(reply=reply, asked=speech)
    return spoken.whole(await collect_spoken(serving.worker, question, speech))


def _read(serving: Serving, body: ChatRequest) -> tuple[Question, OpenAIReply, AskedSpeech | None]:
    processor = serving.worker.engine.processor
    body, speech = take_speech(body, serving.worker)
    question = body.to_question(processor.pictures, serving.settings.limits, serving.web)
    return question, _begin_reply(body, question, processor), speech


def _begin_reply(body: ChatRequest, question: Question, processor: Processor) -> OpenAIReply:
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
