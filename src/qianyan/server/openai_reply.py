"""Answers in OpenAI's words: whole, or chunk by chunk with every key that Bailian's chunks have.

A tool call comes in pieces as it grows: id and name once, then the arguments without them, because
clients join what is repeated ("call_1call_1").
"""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qianyan.engine.calls import CallPiece
from qianyan.engine.request import Completion, Logprobs, TokenText
from qianyan.inputs.processor import Processor
from qianyan.inputs.tokenizer import Tokenizer
from qianyan.server.prompt_count import PromptCount
from qianyan.server.searching import AskedSearch
from qianyan.server.told import beside, inside

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON has no number for."""


@dataclass(frozen=True, kw_only=True)
class TokenWords:
    """Writes the probabilities of an answer's tokens, with `num_top` alternatives each."""

    tokenizer: Tokenizer
    num_top: int

    def entries(self, tokens: Sequence[TokenText]) -> list[dict[str, Any]]:
        """Write those of the answer itself: neither the reasoning's nor the end mark's."""
        return [
            self._entry(token.token_id, token.logprobs)
            for token in tokens
            if token.logprobs is not None
            and not token.is_reasoning
            and token.token_id not in self.tokenizer.special_ids
        ]

    def _entry(self, token_id: int, logprobs: Logprobs) -> dict[str, Any]:
        likeliest = sorted(logprobs.items(), key=lambda one: -one[1])[: self.num_top]
        top = [self._named(one, logprob) for one, logprob in likeliest]
        return {**self._named(token_id, logprobs[token_id]), "top_logprobs": top}

    def _named(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self.tokenizer.token_text(token_id),
            "logprob": max(logprob, LEAST_LOGPROB),
            "bytes": list(self.tokenizer.token_bytes(token_id)),
        }


@dataclass(frozen=True, kw_only=True)
class OpenAIReply:
    """One reply: its id, time and model are the same in every chunk.

    `words` is None where no probabilities were asked for, `search` where no search was; without
    `processor` the counts do not tell pictures from text.
    """

    model: str
    words: TokenWords | None = None
    search: AskedSearch | None = None
    processor: Processor | None = None
    reply_id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4()}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(
        self, completions: Sequence[Completion], tokens: Sequence[Sequence[TokenText]]
    ) -> dict[str, Any]:
        """Write a chat.completion of all choices."""
        choices = [
            {
                "index": index,
                "message": self._message(completion),
                "logprobs": self._logprobs(tokens[index]),
                "finish_reason": self._finish_reason(completion),
                **cut_words(completion),
            }
            for index, completion in enumerate(completions)
        ]
        info = None if self.search is None else self.search.search_info
        whole = self.envelope("chat.completion", choices, self._usage(completions))
        found = {} if info is None else {"search_info": info}
        return {**whole, **found, **beside(completions[0])}

    def first_chunk(self, index: int) -> dict[str, Any]:
        """Write the chunk that opens a choice."""
        return self.chunk(index, {"content": "", "role": "assistant"})

    def token_chunks(self, index: int, token: TokenText) -> Iterator[dict[str, Any]]:
        """Write what one more token shows: its text, and pieces of tool calls."""
        logprobs = self._logprobs([token])
        if token.is_reasoning:
            if token.text:
                yield self.chunk(index, {"content": None, "reasoning_content": token.text})
        elif token.text or (logprobs and logprobs["content"]):
            yield self.chunk(index, {"content": token.text}, logprobs=logprobs)
        for piece in token.calls:
            yield self.chunk(index, {"tool_calls": [_call_piece(piece)]})

    def last_chunk(self, index: int, completion: Completion) -> dict[str, Any]:
        """Write what closes a choice: why it ended."""
        reason = self._finish_reason(completion)
        delta = {"content": "", **inside(completion)}
        chunk = self.chunk(index, delta, finish_reason=reason, extra=cut_words(completion))
        return {**chunk, **beside(completion)}

    def usage_chunk(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Write the token counts as the chunk without choices that ends a stream."""
        return self.envelope("chat.completion.chunk", [], self._usage(completions))

    def search_chunk(self) -> dict[str, Any] | None:
        """Write the sources where there are more than in the chunk before, alone in theirs."""
        info = None if self.search is None else self.search.fresh_info()
        return None if info is None else {**self.chunk(0, {"content": ""}), "search_info": info}

    def _usage(self, completions: Sequence[Completion]) -> dict[str, Any]:
        usage = to_usage(completions, self.processor)
        plugins = None if self.search is None else self.search.plugins
        return usage if plugins is None else {**usage, "plugins": plugins}

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write a chunk of one choice, with every key that it may have."""
        empty = {"content": None, "function_call": None, "refusal": None, "role": None}
        choice = {
            "delta": {**empty, "tool_calls": None, **delta},
            "finish_reason": finish_reason,
            "index": index,
            "logprobs": logprobs,
            **(extra or {}),
        }
        return self.envelope("chat.completion.chunk", [choice], None)

    def envelope(
        self, kind: str, choices: list[dict[str, Any]], usage: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Write what all chunks and the whole reply have in common."""
        return {
            "id": self.reply_id,
            "choices": choices,
            "created": self.created,
            "model": self.model,
            "object": kind,
            "service_tier": None,
            "system_fingerprint": None,
            "usage": usage,
        }

    def _message(self, completion: Completion) -> dict[str, Any]:
        calls = [
            {
                "id": new_call_id(),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in completion.tool_calls
        ]
        thought = (
            {} if completion.reasoning is None else {"reasoning_content": completion.reasoning}
        )
        return {
            "role": "assistant",
            "content": completion.text or (None if calls else ""),
            **thought,
            "refusal": None,
            "function_call": None,
            "tool_calls": calls or None,
            **inside(completion),
        }

    def _finish_reason(self, completion: Completion) -> str:
        return "tool_calls" if completion.tool_calls else completion.finish_reason

    def _logprobs(self, tokens: Sequence[TokenText]) -> dict[str, Any] | None:
        if self.words is None:
            return None
        return {"content": self.words.entries(tokens), "refusal": None}


def to_usage(
    completions: Sequence[Completion], processor: Processor | None = None
) -> dict[str, Any]:
    """Count the tokens of all choices; the prompt they share counts once.

    With a `processor` the tokens of media are told from those of text, if there are.
    """
    prompt = completions[0].usage
    num_completion = sum(one.usage.completion_tokens for one in completions)
    num_reasoning = sum(one.usage.reasoning_tokens for one in completions)
    seen = _details(completions[0], processor)
    told = {"text_tokens": num_completion - num_reasoning} if seen else {}
    return {
        "completion_tokens": num_completion,
        "prompt_tokens": prompt.prompt_tokens,
        "total_tokens": prompt.prompt_tokens + num_completion,
        "completion_tokens_details": {
            "audio_tokens": None,
            "reasoning_tokens": num_reasoning,
            **told,
        },
        "prompt_tokens_details": {
            "audio_tokens": None,
            "cached_tokens": prompt.cached_tokens,
            **seen,
        },
    }


def _details(first: Completion, processor: Processor | None) -> dict[str, int]:
    """Tell what a prompt's tokens stand for, where it is more than text."""
    if processor is None or not (first.images or first.videos or first.audios):
        return {}
    return PromptCount.of(first.prompt_token_ids, processor, len(first.images)).details


def _call_piece(piece: CallPiece) -> dict[str, Any]:
    """Write a piece of a call; the first one of each has the id and the name."""
    if piece.name is None:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": new_call_id(), "type": "function", "function": function}


def cut_words(completion: Completion) -> dict[str, Any]:
    """Say beside "length" that an endless repetition was cut, or that the time was over."""
    if completion.is_cut_by_time:
        return {"stop_reason": "time_limit"}
    return {} if completion.loop is None else {"stop_reason": "repetition_detected"}


def new_call_id() -> str:
    """Make an id for a call."""
    return f"call_{uuid.uuid4().hex}"
