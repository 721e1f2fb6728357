"""Answers in DashScope's words: whole, or packet by packet.

Until an answer ends, its finish_reason is the text "null". A packet holds what is new, or with
`incremental_output` false all there is so far; the count of tokens always stands for all of them.
On the multimodal path content is a list of parts, empty where there is no text. Only the first
piece of a call has its id and name, because clients join what is repeated.
"""

import uuid
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from qianyan.engine.request import Completion, TokenText
from qianyan.inputs.processor import Processor
from qianyan.server.dashscope_usage import OutputCount, to_usage
from qianyan.server.generate import AnyAnswer
from qianyan.server.openai_reply import TokenWords
from qianyan.server.prompt_count import PromptCount
from qianyan.server.searching import AskedSearch
from qianyan.server.spoken_answer import SpokenAnswer
from qianyan.server.told import beside, image_sizes, inside

NOT_FINISHED = "null"


@dataclass(frozen=True, kw_only=True)
class ReplyFormat:
    """How an answer is written.

    `has_parts` makes content a list, `is_text` puts the text of the one answer in the place of its
    message, and `shows_image_hw` tells the height and width in which each picture was seen.
    """

    has_parts: bool = False
    is_text: bool = False
    is_incremental: bool = False
    shows_image_hw: bool = False


@dataclass(kw_only=True)
class Written:
    """What was read of an answer: all of it, or what a packet is about."""

    text: str = ""
    reasoning: str = ""
    has_reasoned: bool = False
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class Choice:
    """One answer of a stream, with all that was read of it."""

    def __init__(self, index: int, answer: AnyAnswer | SpokenAnswer) -> None:
        self.index = index
        self.answer = answer
        self.num_tokens = 0
        self._all = Written()

    def take(
        self, token: TokenText, words: TokenWords | None, *, is_incremental: bool
    ) -> Written | None:
        """Add a token; give what its packet shows, None where it shows nothing new."""
        self.num_tokens += 1
        fresh, total = Written(calls=self._take_calls(token)), self._all
        if token.is_reasoning:
            fresh.reasoning = token.text
        else:
            fresh.text = token.text
        if words is not None:
            fresh.logprobs = words.entries([token])
        total.has_reasoned |= token.is_reasoning
        fresh.has_reasoned = total.has_reasoned
        total.text += fresh.text
        total.reasoning += fresh.reasoning
        total.logprobs += fresh.logprobs
        if not (fresh.text or fresh.reasoning or fresh.calls or fresh.logprobs):
            return None
        return fresh if is_incremental else total

    def rest(self, *, is_incremental: bool) -> Written:
        """Give what the last packet shows: nothing new, or all there is."""
        return Written(has_reasoned=self._all.has_reasoned) if is_incremental else self._all

    def _take_calls(self, token: TokenText) -> list[dict[str, Any]]:
        """Add pieces of calls; give them as a packet has them, only each first one with a name."""
        fresh = []
        for piece in token.calls:
            if piece.name is not None:
                call = _call(piece.index, piece.name, piece.arguments)
                self._all.calls.append(call)
                fresh.append(deepcopy(call))
            else:
                self._all.calls[piece.index]["function"]["arguments"] += piece.arguments
                rest = {"arguments": piece.arguments}
                fresh.append({"index": piece.index, "id": "", "type": "function", "function": rest})
        return fresh


class DashScopeReply:
    """Writes one reply, whole or as a stream."""

    def __init__(
        self,
        request_id: str,
        form: ReplyFormat,
        processor: Processor,
        *,
        words: TokenWords | None = None,
        search: AskedSearch | None = None,
    ) -> None:
        """Take what all its packets have in common.

        `words` None writes no probabilities; `search` is None where no search was asked for.
        """
        self._request_id = request_id
        self._form = form
        self._processor = processor
        self._words = words
        self._search = search
        self._prompt: PromptCount | None = None
        self._outputs: dict[int, OutputCount] = {}

    def whole(
        self, completions: Sequence[Completion], tokens: Sequence[Sequence[TokenText]]
    ) -> dict[str, Any]:
        """Write all choices."""
        choices = []
        for index, completion in enumerate(completions):
            written = Written(
                text=completion.text,
                reasoning=completion.reasoning or "",
                has_reasoned=completion.reasoning is not None,
                calls=[
                    _call(at, call.name, call.arguments)
                    for at, call in enumerate(completion.tool_calls)
                ],
                logprobs=[] if self._words is None else self._words.entries(tokens[index]),
            )
            reason = _finish_reason(completion)
            choices.append(self.choice(index, written, reason, completion))
        first = completions[0]
        prompt = self._count(first.prompt_token_ids, len(first.images))
        whole = self._counted(choices, prompt, OutputCount.of(completions), is_whole=True)
        whole["output"] |= beside(first)
        return whole

    def search_packet(self) -> dict[str, Any] | None:
        """Write the sources alone, where that was asked for and there are more than before."""
        search = self._search
        if search is None or not search.options.prepend_search_result:
            return None
        info = search.fresh_info()
        if info is None or not search.options.enable_source:
            return None
        output = {**self.output([self.choice(0, Written())]), "search_info": info}
        return self.envelope(output, {})

    def packet(self, choice: Choice, token: TokenText) -> dict[str, Any] | None:
        """Write one more token; None where it shows nothing."""
        written = choice.take(token, self._words, is_incremental=self._form.is_incremental)
        if written is None:
            return None
        request = choice.answer.request
        prompt = self._count(request.prompt_token_ids, len(request.seen.images))
        output = self._count_all(choice, OutputCount.so_far(request, choice.num_tokens))
        return self._counted([self.choice(choice.index, written)], prompt, output)

    def quiet_packet(self, choice: Choice) -> dict[str, Any]:
        """Write a packet in which no text is new, for what else there is to tell."""
        request = choice.answer.request
        written = choice.rest(is_incremental=self._form.is_incremental)
        prompt = self._count(request.prompt_token_ids, len(request.seen.images))
        output = self._count_all(choice, OutputCount.so_far(request, choice.num_tokens))
        return self._counted([self.choice(choice.index, written)], prompt, output)

    def last_packet(self, choice: Choice, completion: Completion) -> dict[str, Any]:
        """Write why an answer ended."""
        written = choice.rest(is_incremental=self._form.is_incremental)
        prompt = self._count(completion.prompt_token_ids, len(completion.images))
        last = self.choice(choice.index, written, _finish_reason(completion), completion)
        output = self._count_all(choice, OutputCount.of([completion]))
        packet = self._counted([last], prompt, output)
        packet["output"] |= beside(completion)
        return packet

    def _count_all(self, choice: Choice, output: OutputCount) -> OutputCount:
        """Count the tokens of all choices, of which one has come further."""
        self._outputs[choice.index] = output
        return OutputCount.total(list(self._outputs.values()))

    def _count(self, prompt_token_ids: list[int], num_images: int) -> PromptCount:
        """Count the prompt's tokens, once for all packets as long as none are added."""
        if self._prompt is None or self._prompt.num_tokens != len(prompt_token_ids):
            self._prompt = PromptCount.of(prompt_token_ids, self._processor, num_images)
        return self._prompt

    def _counted(
        self,
        choices: list[dict[str, Any]],
        prompt: PromptCount,
        output: OutputCount,
        *,
        is_whole: bool = False,
    ) -> dict[str, Any]:
        info = self._search_info(is_whole=is_whole)
        plugins = None if self._search is None else self._search.plugins
        return self.envelope(
            self.output(choices) | ({} if info is None else {"search_info": info}),
            to_usage(prompt, output, has_details=self._form.has_parts, plugins=plugins),
        )

    def envelope(self, output: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
        """Write what all packets have in common around what they say."""
        return {"output": output, "usage": usage, "request_id": self._request_id}

    def output(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Put choices where the format has them."""
        return choices[0] if self._form.is_text else {"choices": choices}

    def _search_info(self, *, is_whole: bool) -> dict[str, Any] | None:
        """Say what was found: the sources where they were asked for.

        In a stream of pieces sources come once; in the packets that follow the list is empty.
        """
        search = self._search
        if search is None or search.search_info is None:
            return None
        info = search.search_info
        if self._form.is_incremental and not is_whole and search.fresh_info() is None:
            info = {"search_results": []}
        if search.options.enable_source:
            return info
        told = any(info.get(name) for name in ("extra_tool_info", "errors"))
        return {**info, "search_results": []} if told else None

    def choice(
        self,
        index: int,
        written: Written,
        finish_reason: str = NOT_FINISHED,
        completion: Completion | None = None,
    ) -> dict[str, Any]:
        """Write a choice, as it is so far or as it ended."""
        reasoning = {"reasoning_content": written.reasoning} if written.has_reasoned else {}
        told = {} if completion is None or self._form.has_parts else inside(completion)
        if self._form.is_text:
            return {"finish_reason": finish_reason, "text": written.text, **reasoning, **told}
        content = self._content(written, completion)
        message = {"role": "assistant", "content": content, **reasoning, **told}
        if written.calls:
            message["tool_calls"] = written.calls
        choice = {"finish_reason": finish_reason, "index": index, "message": message}
        if self._words is not None:
            choice["logprobs"] = {"content": written.logprobs}
        return choice

    def _content(
        self, written: Written, completion: Completion | None
    ) -> str | list[dict[str, Any]]:
        if not self._form.has_parts:
            return written.text
        told = {} if completion is None else inside(completion)
        text = {"text": written.text} if written.text or told else {}
        content: list[dict[str, Any]] = [{**told, **text}] if text else []
        if self._form.shows_image_hw and completion is not None:
            content += image_sizes(completion)
        return content


def _finish_reason(completion: Completion) -> str:
    return "tool_calls" if completion.tool_calls else completion.finish_reason


def _call(index: int, name: str, arguments: str) -> dict[str, Any]:
    return {
        "index": index,
        "id": f"call_{uuid.uuid4().hex}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
