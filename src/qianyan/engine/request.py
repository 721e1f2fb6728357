"""One request: its tokens, its text so far, and what the caller gets back.

Knows no torch. The scheduler owns requests and is the only one that changes them, through
`append_sampled` and `append_forced`; sampler and runner read them.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from qianyan.engine.blocks import BLOCK_SIZE
from qianyan.engine.calls import CallPiece
from qianyan.engine.drafts import Drafts
from qianyan.engine.grammar import Grammar
from qianyan.engine.loops import Loop, LoopDetector
from qianyan.engine.options import Sampling
from qianyan.engine.reply import Reply, ToolCall
from qianyan.errors import QianyanError
from qianyan.inputs.media import Seen, SeenImage
from qianyan.inputs.sound import HeardAudio
from qianyan.inputs.video import SeenVideo

FinishReason = Literal["stop", "length"]
Logprobs = dict[int, float]
NameBlock = Callable[[int, list[int], bytes], bytes]
"""From a block's first place, its tokens and the key before it to its key."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Token counts.

    Of the completion's tokens `reasoning_tokens` were thought; marks, and the words that end a
    reasoning at its budget, are none of them. `forwarded_tokens` took a forward pass of their own;
    the others were forced, or guessed rightly in another's pass. `cached_tokens` of the prompt were
    known from earlier requests. The last two depend on what else was asked, so they do not count
    when completions are compared.
    """

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0
    forwarded_tokens: int = field(compare=False)
    cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished answer.

    `token_ids` includes the stop token that ended it, if one was drawn; `text` holds neither stop
    token nor stop string, nor reasoning, nor calls. `reasoning` is what stood between <think> and
    </think>, None for a model that did not think; `tool_calls` are looked for where `tools` were
    given, and `cut_call` is one that the answer's length cut, from its <tool_call> on. `loop` is
    the endless repetition that ended the answer, with the `finish_reason` "length", which one that
    `is_cut_by_time` has as well. `images` and `videos` tell what was seen of each, in order,
    `audios` what was heard, and `notes` what documents left out and what was done about the answer.
    `logprobs[i]` maps token ids to natural-log probabilities of the model itself at step i, before
    grammar, penalties, temperature and filters: the likeliest ones and the chosen one. A token that
    was forced took no step: its entry is {token_id: 0.0}.
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    logprobs: list[Logprobs] | None
    finish_reason: FinishReason
    usage: Usage
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    cut_call: str | None = None
    loop: Loop | None = None
    is_cut_by_time: bool = False
    images: tuple[SeenImage, ...] = ()
    videos: tuple[SeenVideo, ...] = ()
    audios: tuple[HeardAudio, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TokenText:
    """One more token, and the text that became certain with it (often empty, see `Reply`).

    The text belongs to the reasoning where `is_reasoning`, else to the answer. `calls` are the
    pieces of calls that became certain; of all tokens together they make up the completion's.
    """

    text: str
    token_id: int
    logprobs: Logprobs | None = None
    is_reasoning: bool = False
    calls: tuple[CallPiece, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last event of a stream."""

    completion: Completion


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What the sampler drew for one request."""

    token_id: int
    logprobs: Logprobs | None = None


class Request:
    """A conversation being answered.

    `num_computed_tokens` of the prompt and the output have their keys and values in the cache, in
    the blocks of `block_table`; the others are still to be run. `name_block` says what a full
    block's contents depend on; without it nothing of the request is shared. Requests of smaller
    `rank` go first. A grammar that `holds_calls_only` leaves the answer free up to its first call.
    An answer is finished when `finish_reason` or `error` is set. A request that `is_answered` not
    is finished when its prompt, of whole blocks, is computed.
    """

    def __init__(
        self,
        request_id: int,
        prompt_token_ids: list[int],
        sampling: Sampling,
        reply: Reply,
        grammar: Grammar | None = None,
        seen: Seen | None = None,
    ) -> None:
        self.request_id = request_id
        self.rank = (0, request_id)
        self.prompt_token_ids = prompt_token_ids
        self.sampling = sampling
        self.grammar = grammar
        self.holds_calls_only = False
        self.is_answered = True
        self.seen = seen or Seen()
        self.name_block: NameBlock | None = None
        self.block_table: list[int] = []
        self.num_cached_tokens = 0
        self._keys: list[bytes] = []
        self._num_registered = 0
        self._num_seated_tokens = 0
        self._drafts: Drafts | None = None
        self.output_token_ids: list[int] = []
        self.num_computed_tokens = 0
        self.num_forwarded_tokens = 0
        self.num_reasoning_tokens = 0
        self._num_answer_tokens = 0
        self._is_closing = False
        self._is_cut = False
        self._loop: Loop | None = None
        # What cannot become so long needs no watching.
        watches = 0 < sampling.loop_tokens <= sampling.max_output_tokens
        self._loops = LoopDetector(sampling.loop_tokens) if watches else None
        self._notes: tuple[str, ...] = () if grammar is None else grammar.notes
        self.seen_token_ids = set(prompt_token_ids)
        self.random = np.random.default_rng(sampling.seed)
        self.reply = reply
        self.events: deque[TokenText] = deque()
        self.finish_reason: FinishReason | None = None
        self.error: QianyanError | None = None
        self._logprobs: list[Logprobs] = []

    @property
    def num_tokens(self) -> int:
        """Count the tokens known so far, prompt and output."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def max_num_tokens(self) -> int:
        """Count the tokens this request can ever hold."""
        return len(self.prompt_token_ids) + self.sampling.max_output_tokens

    @property
    def is_finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.finish_reason is not None or self.error is not None

    def block_keys(self, count: int) -> list[bytes]:
        """Give the keys of the first `count` blocks, all of them full of known tokens."""
        if self.name_block is None:
            return []
        for index in range(len(self._keys), count):
            start = index * BLOCK_SIZE
            tokens = self.token_ids(start, start + BLOCK_SIZE)
            before = self._keys[-1] if self._keys else b""
            self._keys.append(self.name_block(start, tokens, before))
        return self._keys[:count]

    def begin_only(self) -> None:
        """Ask for the prompt to be computed and for no answer; the block keys are made at once."""
        self.is_answered = False
        self.block_keys(len(self.prompt_token_ids) // BLOCK_SIZE)
        if not self.prompt_token_ids:
            self.finish_reason = "stop"

    def know_all(self) -> None:
        """Finish a request that is not to be answered, as all of its prompt is known."""
        self.num_cached_tokens = self.num_tokens
        self.finish_reason = "stop"

    def sit(self, known: list[int], fresh: list[int]) -> None:
        """Take blocks; what the known ones hold need not be computed."""
        self.block_table = known + fresh
        self._num_registered = len(known)
        self.num_computed_tokens = len(known) * BLOCK_SIZE
        if not self._num_seated_tokens:  # later the known blocks are its own
            self.num_cached_tokens = self.num_computed_tokens
        self._num_seated_tokens = self.num_tokens

    def leave(self) -> None:
        """Give up the blocks, and what was computed with them; tokens and grammar stay."""
        self.block_table = []
        self.num_computed_tokens = 0

    @property
    def is_catching_up(self) -> bool:
        """Whether tokens that were known when it was seated are still to be computed."""
        return self.num_computed_tokens < self._num_seated_tokens

    def new_full_blocks(self) -> list[tuple[int, bytes]]:
        """Give the blocks that have become full since the last call, with their keys."""
        count = self.num_computed_tokens // BLOCK_SIZE
        keys = self.block_keys(count)
        fresh = range(self._num_registered, len(keys))
        self._num_registered = len(keys)
        return [(self.block_table[index], keys[index]) for index in fresh]

    @property
    def is_constrained(self) -> bool:
        """Whether the grammar has a say about the next token: reasoning is free."""
        return self.grammar is not None and not (self.reply.is_reasoning or self.holds_calls_only)

    def token_ids(self, start: int, stop: int) -> list[int]:
        """Return tokens start to stop of prompt and output taken together."""
        num_prompt = len(self.prompt_token_ids)
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : stop - num_prompt]
        head = self.prompt_token_ids[start:stop]
        return head + self.output_token_ids[: max(0, stop - num_prompt)]

    def propose(self, most: int, *, limit: int) -> tuple[int, ...]:
        """Guess the next tokens, at most `most` now and `limit` ever."""
        if self._drafts is None:
            self._drafts = Drafts(limit)
        self._drafts.extend(self.token_ids(self._drafts.num_known, self.num_tokens))
        return self._drafts.propose(most)

    def note_drafts(self, num_drafts: int, num_agreed: int) -> None:
        """Learn how many of a pass's guesses came true."""
        if self._drafts is not None:
            self._drafts.note(num_drafts, num_agreed)

    def append_sampled(self, sampled: Sampled, *, has_own_pass: bool = True) -> None:
        """Take a drawn token, then every token that is left no choice about."""
        self.num_forwarded_tokens += has_own_pass
        was_reasoning = self.reply.is_reasoning
        self._append(sampled.token_id, sampled.logprobs)
        if was_reasoning and self.is_constrained:
            # The grammar knows no blank line, but the model answers after one.
            self._append_known(self.reply.form.gap, is_free=True)
        self.append_forced()

    def append_forced(self) -> None:
        """Take the tokens that a spent budget or the grammar forces next: known without a pass."""
        self._end_spent_reasoning()
        if self.grammar is None or not self.is_constrained or self.is_finished:
            return
        self._append_known(self.grammar.forced())

    def _end_spent_reasoning(self) -> None:
        """Go over to the answer where the reasoning has reached its budget."""
        budget = self.sampling.thinking_budget
        if budget is None or self.is_finished or not self.reply.is_reasoning:
            return
        if self.num_reasoning_tokens >= budget:
            form = self.reply.form
            self._is_closing = True
            self._append_known(form.closing if budget else form.empty_closing, is_free=True)
            self._is_closing = False
            self.reply.end_reasoning()
            if budget:
                self._notes += (f"the reasoning was ended at its budget of {budget} tokens",)

    def _append_known(self, token_ids: Iterable[int], *, is_free: bool = False) -> None:
        wants_logprobs = self.sampling.logprobs is not None
        for token_id in token_ids:
            if self.is_finished:
                return
            self._append(token_id, {token_id: 0.0} if wants_logprobs else None, is_free=is_free)

    def cut(self) -> None:
        """End an answer whose time is over; what was held back comes with a last event."""
        self.finish_reason = "length"
        self._is_cut = True
        self._notes += ("the answer was ended at its time limit",)
        is_reasoning = self.reply.is_reasoning
        text = self.reply.finish(is_cut=True)
        if text or self.reply.call_pieces:
            last = (self.output_token_ids or self.prompt_token_ids)[-1]
            calls = tuple(self.reply.call_pieces)
            self.reply.call_pieces.clear()
            self.events.append(
                TokenText(text=text, token_id=last, is_reasoning=is_reasoning, calls=calls)
            )

    def completion(self) -> Completion:
        """Return the finished answer, or raise what ended it."""
        if self.error is not None:
            raise self.error
        assert self.finish_reason is not None
        return Completion(
            text=self.reply.text,
            token_ids=self.output_token_ids,
            prompt_token_ids=self.prompt_token_ids,
            logprobs=None if self.sampling.logprobs is None else self._logprobs,
            finish_reason=self.finish_reason,
            usage=Usage(
                prompt_tokens=len(self.prompt_token_ids),
                completion_tokens=len(self.output_token_ids),
                reasoning_tokens=self.num_reasoning_tokens,
                forwarded_tokens=self.num_forwarded_tokens,
                # Forced tokens of the answer can stand in a known block.
                cached_tokens=min(self.num_cached_tokens, len(self.prompt_token_ids)),
            ),
            reasoning=self.reply.reasoning if self.reply.has_reasoned else None,
            tool_calls=self.reply.tool_calls,
            cut_call=self.reply.cut_call,
            loop=self._loop,
            is_cut_by_time=self._is_cut,
            images=self.seen.images,
            videos=self.seen.videos,
            audios=self.seen.audios,
            notes=self.seen.notes + self._notes,
        )

    def _append(self, token_id: int, logprobs: Logprobs | None, *, is_free: bool = False) -> None:
        """Take one token; `is_free` ones are none of the grammar's."""
        self.output_token_ids.append(token_id)
        self.seen_token_ids.add(token_id)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        was_reasoning = self.reply.is_reasoning
        was_constrained = self.is_constrained and not is_free
        was_calling = self.reply.is_calling
        text = ""
        if token_id in self.sampling.stop_token_ids:
            self.finish_reason = "stop"
        else:
            text = "" if self._is_closing else self.reply.push(token_id)
            self._watch(token_id)
            if not is_free:
                self._count(token_id, was_reasoning=was_reasoning)
            self.finish_reason = self._reason_to_finish(token_id if was_constrained else None)
        if self.reply.is_calling and not was_calling:
            self._begin_calls()
        if self.is_finished:
            text += self.reply.finish(is_cut=self.finish_reason == "length")
        self.events.append(
            TokenText(
                text=text,
                token_id=token_id,
                logprobs=logprobs,
                is_reasoning=was_reasoning or self.reply.is_reasoning,
                calls=tuple(self.reply.call_pieces),
            )
        )
        self.reply.call_pieces.clear()

    def _begin_calls(self) -> None:
        """Hold a call that has begun to its grammar, and read it while it grows."""
        if self.grammar is None:
            return
        if self.holds_calls_only:
            # A token can hold the mark's end and more, where the mark is no token of its own.
            if not self.grammar.enter(self.reply.begun_call):
                return
            self.holds_calls_only = False
        self.reply.read_calls()

    def _reason_to_finish(self, constrained_id: int | None) -> FinishReason | None:
        """Step the grammar over its token, if it was one of its own, and see whether to end."""
        if self.grammar is not None and constrained_id is not None:
            self.grammar.consume(constrained_id)
            if self.grammar.is_complete:
                return "stop"
        if self.reply.is_stopped:
            return "stop"
        if self._num_answer_tokens >= self.sampling.max_tokens or self._loop is not None:
            return "length"
        is_full = len(self.output_token_ids) >= self.sampling.max_output_tokens
        return "length" if is_full else None

    def _watch(self, token_id: int) -> None:
        """See whether the answer has begun to repeat itself without end."""
        if self._loops is not None:
            self._loop = self._loops.push(token_id)
            if self._loop is not None:
                self._notes += (
                    f"the answer ran in a loop and was ended: {self._loop.period} tokens came "
                    f"{self._loop.repeats} times",
                )

    def _count(self, token_id: int, *, was_reasoning: bool) -> None:
        """Count a token where it belongs; <think> and </think> belong nowhere."""
        if was_reasoning != self.reply.is_reasoning:
            return
        if not was_reasoning:
            self._num_answer_tokens += 1
        elif token_id != self.reply.form.think_start or self.num_reasoning_tokens:
            self.num_reasoning_tokens += 1
