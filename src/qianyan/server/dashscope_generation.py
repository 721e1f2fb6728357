"""POST text-generation and multimodal-generation, as DashScope's clients call them.

Both paths take whatever the model reads; they differ in how the answer is written. A stream is
asked for by a header and has DashScope's own framing: numbered events, each with a status in a
comment, and no mark at the end. Another header asks for a task instead: an answer that is fetched
later, always whole.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from qianyan.engine.request import Finished
from qianyan.errors import QianyanError
from qianyan.server.dashscope_errors import PREFIX, dashscope_body
from qianyan.server.dashscope_reply import Choice, DashScopeReply, ReplyFormat
from qianyan.server.dashscope_request import GenerationRequest
from qianyan.server.dashscope_speech import SpokenPackets
from qianyan.server.dashscope_tasks import submit_task
from qianyan.server.dashscope_upstream import PassedOn, UpstreamPackets
from qianyan.server.errors import Failure, RefusedError, to_failure
from qianyan.server.generate import AnyAnswer, Question, begin, collect, follow, leave_all
from qianyan.server.openai_reply import TokenWords
from qianyan.server.openai_request import ChatRequest
from qianyan.server.serving import Served, Serving
from qianyan.server.spoken_answer import take_speech
from qianyan.server.stream import EventStream, to_json, unless_gone
from qianyan.server.task_rows import Task
from qianyan.server.worker import Worker

router = APIRouter(prefix=f"{PREFIX}services/aigc", tags=["dashscope"])


@router.post("/text-generation/generation")
async def generate_text(request: Request, body: GenerationRequest, serving: Served) -> Response:
    """Answer a prompt or a conversation, with text for its content."""
    return await _generate(request, body, serving, has_parts=False)


@router.post("/multimodal-generation/generation")
async def generate_parts(request: Request, body: GenerationRequest, serving: Served) -> Response:
    """Answer a conversation that may hold pictures and videos, with a list for its content."""
    return await _generate(request, body, serving, has_parts=True)


async def _generate(
    request: Request, body: GenerationRequest, serving: Serving, *, has_parts: bool
) -> Response:
    request_id = request.state.request_id
    asked = _read(body, serving, request_id=request_id, has_parts=has_parts)
    headers = {"x-ignored-fields": ", ".join(asked.ignored)} if asked.ignored else {}
    if _wants_task(request):
        kept = {"body": body.model_dump(exclude_none=True), "has_parts": has_parts}
        given = await submit_task(request, asked.model, kept)
        return Response(to_json(given), headers=headers, media_type="application/json")
    if not _wants_stream(request):
        whole = await unless_gone(request, asked.answering.whole())
        return Response(to_json(whole), headers=headers, media_type="application/json")
    packets, leave = await unless_gone(request, asked.answering.begin())
    return EventStream(
        write_events(packets, request_id=request_id),
        leave=leave,
        headers=headers,
    )


async def answer_task(serving: Serving, task: Task) -> dict[str, Any]:
    """Answer what a task asks for: what the reply to the same request at once would hold."""
    body = GenerationRequest.model_validate(task.request["body"])
    has_parts = task.request["has_parts"]
    asked = _read(body, serving, request_id=task.id, has_parts=has_parts)
    return await asked.answering.whole()


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A question and who writes the answer to it, which is text."""

    worker: Worker
    question: Question
    reply: DashScopeReply

    async def whole(self) -> dict[str, Any]:
        return self.reply.whole(*await collect(self.worker, self.question))

    async def begin(self) -> tuple[AsyncIterator[dict[str, Any]], Callable[[], None]]:
        answers = await begin(self.worker, self.question)
        return _packets(answers, self.reply), partial(leave_all, answers)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A request, read: who answers it, and which of its fields mean nothing."""

    model: str
    answering: _Written | SpokenPackets | PassedOn
    ignored: tuple[str, ...] = ()


def _read(body: GenerationRequest, serving: Serving, *, request_id: str, has_parts: bool) -> _Asked:
    chat = body.to_chat()
    upstream = serving.upstreams.find(chat.model)
    processor = serving.worker.engine.processor
    if upstream is not None:
        serving.upstreams.check(chat)
        form = _choose_format(body, chat, bool(chat.thinking), has_parts=has_parts)
        packets = UpstreamPackets(DashScopeReply(request_id, form, processor), form)
        passed_on = PassedOn(
            models=serving.upstreams, upstream=upstream, chat=chat, packets=packets
        )
        return _Asked(model=chat.model, answering=passed_on)
    serving.check_model(chat.model)
    worker = serving.worker
    ignored = tuple(chat.ignored_fields())
    chat, speech = take_speech(chat, worker)
    question = chat.to_question(processor.pictures, serving.settings.limits, serving.web)
    is_thinking = processor.template.is_thinking
    reply = DashScopeReply(
        request_id,
        _choose_format(body, chat, is_thinking, has_parts=has_parts),
        processor,
        words=None
        if chat.num_logprobs is None
        else TokenWords(tokenizer=processor.tokenizer, num_top=chat.num_logprobs),
        search=question.search,
    )
    answering = (
        _Written(worker=worker, question=question, reply=reply)
        if speech is None
        else SpokenPackets(worker=worker, question=question, asked=speech, reply=reply)
    )
    return _Asked(model=chat.model, answering=answering, ignored=ignored)


async def _packets(
    answers: Sequence[AnyAnswer], reply: DashScopeReply
) -> AsyncIterator[dict[str, Any]]:
    """Follow answers, packet by packet."""
    choices = [Choice(index, answer) for index, answer in enumerate(answers)]
    async for index, event in follow(answers):
        if (sources := reply.search_packet()) is not None:
            yield sources
        if isinstance(event, Finished):
            yield reply.last_packet(choices[index], event.completion)
        elif (written := reply.packet(choices[index], event)) is not None:
            yield written


async def write_events(
    packets: AsyncIterator[dict[str, Any]], *, request_id: str
) -> AsyncIterator[str]:
    """Write a stream of packets; what ends an answer early becomes an event with the error."""
    number = 0
    try:
        async for packet in packets:
            number += 1
            yield _event(number, packet)
    except QianyanError as error:
        yield _error_event(number + 1, to_failure(error), request_id)


def _event(number: int, packet: dict[str, Any]) -> str:
    return f"id:{number}\nevent:result\n:HTTP_STATUS/200\ndata:{to_json(packet)}\n\n"


def _error_event(number: int, failure: Failure, request_id: str) -> str:
    """Write an error; Bailian's SDK knows its status by a field that no other client reads."""
    data = to_json(dashscope_body(failure, request_id))
    status = f"status:{failure.status}\n:HTTP_STATUS/{failure.status}"
    return f"id:{number}\nevent:error\n{status}\ndata:{data}\n\n"


def _wants_stream(request: Request) -> bool:
    if request.headers.get("x-dashscope-sse", "").lower() == "enable":
        return True
    return "text/event-stream" in request.headers.get("accept", "").lower()


def _wants_task(request: Request) -> bool:
    return request.headers.get("x-dashscope-async", "").lower() == "enable"


def _choose_format(
    body: GenerationRequest, chat: ChatRequest, is_thinking: bool, *, has_parts: bool
) -> ReplyFormat:
    """Take the format that was asked for, else the one that Bailian has for such models.

    There models that think answer with messages and in pieces of their own accord.
    """
    stated = body.stated
    is_told_not_to = chat.thinking is False or chat.reasoning_effort == "none"
    thinks = is_thinking and not is_told_not_to
    needs_message = has_parts or bool(chat.tools) or (chat.n or 1) > 1 or bool(chat.logprobs)
    if stated.result_format == "text" and needs_message and not has_parts:
        raise RefusedError(
            "result_format is text, which holds one answer and neither calls nor probabilities; "
            "expected message.",
            status=400,
            code="unsupported_value",
            param="parameters.result_format",
        )
    is_text = stated.result_format == "text" or (stated.result_format is None and not thinks)
    return ReplyFormat(
        has_parts=has_parts,
        is_text=is_text and not needs_message,
        is_incremental=thinks if stated.incremental_output is None else stated.incremental_output,
        shows_image_hw=has_parts and bool(stated.vl_enable_image_hw_output),
    )
