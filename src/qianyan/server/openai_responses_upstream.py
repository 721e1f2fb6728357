"""An upstream model's answer, followed token by token like one of the model here.

Its chunks have OpenAI's one form by then (`upstream_reply.py`); each becomes what a token would
show, and all together the completion. Token ids are not known, so no probabilities are told.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from qianyan.engine.calls import CallPiece
from qianyan.engine.reply import ToolCall
from qianyan.engine.request import Completion, Finished, TokenText, Usage
from qianyan.server.answer import Event
from qianyan.server.errors import RefusedError
from qianyan.server.openai_request import ChatRequest
from qianyan.server.upstream import Upstream, UpstreamStream
from qianyan.server.upstream_chat import UpstreamModels, chunks_of
from qianyan.server.upstream_reply import UpstreamReply

NO_TOKEN = -1


class UpstreamAnswer:
    """One answer on its way: iterate over its events once, the last of which is Finished.

    Iterating raises the error that ended it. `leave` must be called when nobody reads any longer.
    """

    def __init__(self, stream: UpstreamStream, reply: UpstreamReply) -> None:
        self._stream = stream
        self._reply = reply
        self._text: list[str] = []
        self._thought: list[str] = []
        self._calls: list[tuple[str, list[str]]] = []

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._read()

    def leave(self) -> None:
        """End the answer unless it has ended."""
        self._stream.leave()

    async def _read(self) -> AsyncIterator[Event]:
        reason, is_late = "stop", False
        async for chunk in chunks_of(self._stream, self._reply):
            (choice,) = chunk["choices"]
            for token in self._tokens(choice["delta"]):
                yield token
            reason = choice["finish_reason"] or reason
            is_late = is_late or choice.get("stop_reason") == "time_limit"
        if reason == "content_filter":
            raise RefusedError(
                "The server of this model has cut the answer for what it says.",
                status=502,
                code="content_filter",
            )
        yield Finished(completion=self._completion(is_cut=reason == "length", is_late=is_late))

    def _tokens(self, delta: Mapping[str, Any]) -> Iterator[TokenText]:
        thought = delta.get("reasoning_content")
        if thought:
            self._thought.append(thought)
            yield TokenText(text=thought, token_id=NO_TOKEN, is_reasoning=True)
        text = delta.get("content") or delta.get("refusal")
        if text:
            self._text.append(text)
            yield TokenText(text=text, token_id=NO_TOKEN)
        for call in delta.get("tool_calls") or ():
            yield TokenText(text="", token_id=NO_TOKEN, calls=tuple(self._pieces(call)))

    def _pieces(self, call: Mapping[str, Any]) -> Iterator[CallPiece]:
        function = call["function"]
        if function.get("name"):
            self._calls.append((function["name"], []))
            yield CallPiece(index=call["index"], name=function["name"])
        if function.get("arguments"):
            self._calls[-1][1].append(function["arguments"])
            yield CallPiece(index=call["index"], arguments=function["arguments"])

    def _completion(self, *, is_cut: bool, is_late: bool) -> Completion:
        calls = tuple(
            ToolCall(name=name, arguments="".join(arguments)) for name, arguments in self._calls
        )
        return Completion(
            text="".join(self._text),
            token_ids=[],
            prompt_token_ids=[],
            logprobs=None,
            finish_reason="length" if is_cut else "stop",
            usage=_usage(self._reply.usage or {}),
            reasoning="".join(self._thought) or None,
            tool_calls=calls[:-1] if is_cut else calls,  # the last one may be half
            is_cut_by_time=is_late,
        )


def _usage(given: Mapping[str, Any]) -> Usage:
    prompt = given.get("prompt_tokens_details") or {}
    completion = given.get("completion_tokens_details") or {}
    return Usage(
        prompt_tokens=given.get("prompt_tokens", 0),
        completion_tokens=given.get("completion_tokens", 0),
        reasoning_tokens=completion.get("reasoning_tokens") or 0,
        cached_tokens=prompt.get("cached_tokens") or 0,
        forwarded_tokens=0,
    )


def refuse_what_stays_here(chat: ChatRequest) -> None:
    """Raise RefusedError for what a response of an upstream model cannot have."""
    if chat.enable_search:
        raise _refused(
            "tools has web_search, which is this server's own and not for models at other "
            "servers; expected tools of type function.",
            "tools",
        )
    if chat.logprobs:
        raise _refused(
            "top_logprobs is not told of models at other servers; expected it left out, and "
            "include without message.output_text.logprobs.",
            "top_logprobs",
        )


async def begin_upstream(
    models: UpstreamModels, upstream: Upstream, chat: ChatRequest
) -> UpstreamAnswer:
    """Let an upstream model answer; whoever gets the answer must `leave` it."""
    stream, reply = await models.begin(upstream, chat)
    return UpstreamAnswer(stream, reply)


def _refused(message: str, param: str) -> RefusedError:
    return RefusedError(message, status=400, code="unsupported_value", param=param)
