"""Many conversations, one model: plan, run, sample, settle.

All calls are synchronous and may come from several threads; whoever waits for an answer advances
every running request. Nothing is global: two engines in one process share nothing.
"""

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import torch

from qianyan.engine.ahead import Ahead
from qianyan.engine.beginning import count_settled
from qianyan.engine.checkpoint import find_checkpoint
from qianyan.engine.embedding import EmbeddingOptions, Embeddings, Input, open_embedder
from qianyan.engine.faults import is_out_of_memory, no_memory_for_pass
from qianyan.engine.free_memory import fit_cache, to_lengths
from qianyan.engine.grammar import Grammar, LazyGrammars
from qianyan.engine.graphs import choose_decoding
from qianyan.engine.options import (
    ChatOptions,
    check_names,
    prompt_room,
    read_generation_defaults,
    to_sampling,
)
from qianyan.engine.plan import Plan
from qianyan.engine.reply import Reply, find_reply_form
from qianyan.engine.request import Completion, Finished, Request, TokenText
from qianyan.engine.runner import Prompt, Runner
from qianyan.engine.sampler import Sampler
from qianyan.engine.scheduler import EngineConfig, Scheduler
from qianyan.engine.speech import LazySpeech
from qianyan.engine.stops import settle_stops
from qianyan.engine.tools import ToolUse, read_tool_use
from qianyan.errors import ConfigError, InputError, QianyanError, quote
from qianyan.inputs.processor import ModelInputs, Processor
from qianyan.models.registry import Model, find_architecture, load_model, read_config_json

Messages = Sequence[dict[str, Any]]
"""OpenAI chat messages; pictures as http, data: or file references, or as Pillow images."""


def check_device(device: str) -> None:
    """Raise ConfigError when PyTorch cannot compute on a device here."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device is {quote(device)}; expected one that this PyTorch can use here, "
            "such as cpu, cuda or mps."
        ) from error


class Engine:
    """A loaded model that answers conversations.

    Example:
        engine = Engine("path/to/checkpoint", dtype="float32")
        print(engine.chat([{"role": "user", "content": "Hello"}], max_tokens=64).text)

    `allow_files` says whether messages may name pictures, videos and documents by a local path;
    whoever answers strangers turns it off.
    """

    allow_files = True

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        quantize: str | None = None,
        max_pixels: int | None = None,
        config: EngineConfig | None = None,
    ) -> None:
        """Load a checkpoint folder, or a Hub repository by its name.

        Args:
            model: the folder or name.
            dtype: "auto" keeps the checkpoint's; or "float32", "bfloat16", "float16".
            device: where the model runs, in PyTorch's words.
            quantize: "int8" or "int4" keeps the matrices of a plain checkpoint as such codes;
                "w8a8" or "w4a8" also multiplies prompts and pictures in 8 bits.
            max_pixels: largest size at which a picture is looked at, instead of the checkpoint's.
            config: limits; by default the cache takes a part of what memory is free.

        Raises ConfigError and CheckpointError, and CapacityError where the weights leave too
        little memory for one useful question.
        """
        check_device(device)
        folder = find_checkpoint(model)
        self.name = folder.resolve().name if Path(model).is_dir() else str(model)
        self.architecture = find_architecture(read_config_json(folder)).name
        self.processor = Processor.from_folder(folder, max_pixels=max_pixels)
        tokenizer = self.processor.tokenizer
        self._defaults = read_generation_defaults(
            folder,
            eos_token_id=tokenizer.eos_token_id,
            extra_stop_ids=self.processor.extra_stop_ids,
            is_thinking=self.processor.template.is_thinking,
        )
        self._model = load_model(folder, dtype=dtype, device=device, quantize=quantize)
        self._device = torch.device(device)
        limits = (config or EngineConfig()).on(self._device.type)
        self.speech = LazySpeech(folder, self._model, look=self._look, is_wanted=limits.use_speech)
        self.config = fit_cache(
            limits, self._model, self._device, speech_bytes=self.speech.num_bytes
        )
        self._lengths = to_lengths(self.config, self._model)
        self.embedder = open_embedder(
            folder,
            self._model,
            tokenizer,
            max_length=self._lengths.max_model_len,
            max_batch_tokens=self.config.max_batch_tokens,
        )
        self._scheduler = Scheduler(self.config)
        self._runner = Runner(
            self._model,
            device=self._device,
            max_encode_patches=self.config.max_encode_patches,
            num_blocks=self._scheduler.pool.num_blocks,
            decoding=choose_decoding(self._model, self._device, use_graphs=self.config.use_graphs),
        )
        self._sampler = Sampler(tokenizer.vocab_size)
        self._grammars = LazyGrammars(tokenizer, self._defaults.stop_token_ids)
        self._request_ids = itertools.count()
        self._lock = threading.Lock()

    @property
    def model(self) -> Model:
        """The loaded model, to be watched or counted; passes are the engine's alone."""
        return self._model

    def chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Completion:
        """Answer one conversation.

        Options are those of `ChatOptions`; what is not given comes from the checkpoint's
        generation_config.json, then from greedy decoding. Raises InputError for messages or
        options that cannot be used, CapacityError for a prompt or answer that is too long.
        """
        return self.chat_many([messages], **options)[0]

    @overload
    def chat_many(
        self, conversations: Sequence[Messages], **options: Unpack[ChatOptions]
    ) -> list[Completion]: ...

    @overload
    def chat_many(
        self,
        conversations: Sequence[Messages],
        *,
        return_errors: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> list[Completion | QianyanError]: ...

    def chat_many(
        self,
        conversations: Sequence[Messages],
        *,
        return_errors: bool = False,
        **options: Unpack[ChatOptions],
    ) -> Sequence[Completion | QianyanError]:
        """Answer several conversations as one batch; answers come in the order of the questions.

        Conversations beyond `max_num_requests` join as others finish; the next ones are prepared on
        threads while the model runs. The first one that cannot be answered raises its error and
        ends the batch; with `return_errors` its error stands in its place, and the others go on.
        """
        check_names(options)
        asked: list[Request | QianyanError] = []
        running: list[Request] = []

        def prepare(messages: Messages) -> tuple[Request, Prompt] | QianyanError:
            try:
                return self.prepare(messages, options)
            except QianyanError as error:
                if not return_errors:
                    raise
                return error

        with Ahead(prepare, conversations) as prepared:
            try:
                while True:
                    running = self._unfinished(running)
                    room = self.config.max_num_requests - len(running)
                    for one in prepared.take(room, is_idle=not running):
                        if isinstance(one, QianyanError):
                            asked.append(one)
                            continue
                        self.submit(*one)
                        asked.append(one[0])
                        running.append(one[0])
                    if not return_errors:
                        _raise_first(asked)
                    if not running:
                        return [_outcome(one) for one in asked]
                    self.step()
            finally:
                self.forget(running)

    def stream(
        self, messages: Messages, **options: Unpack[ChatOptions]
    ) -> Iterator[TokenText | Finished]:
        """Answer one conversation token by token, ending with Finished.

        The texts of all events make up the completion's text. Closing the iterator ends the
        request. What is wrong with messages or options is raised here, not at the first event.
        """
        check_names(options)
        return self.follow(*self.prepare(messages, options))

    def prefill(self, messages: Messages, **options: Unpack[ChatOptions]) -> int:
        """Compute the beginning of a conversation that is still being said, and answer nothing.

        What is computed is known to a conversation that begins alike, as far as the cache keeps it;
        of a last part that is no text the part may go on (`inputs/turn.py`). Gives way to all
        answers. Returns how many tokens were computed; raises what `chat` raises for messages.
        """
        check_names(options)
        request, prompt = self.prepare_prefill(messages, options)
        try:
            self.submit(request, prompt)
            while self._unfinished([request]):
                self.step()
        finally:
            self.forget([request])
        _raise_first([request])
        return request.num_tokens - request.num_cached_tokens

    def embed(
        self,
        inputs: Sequence[Input],
        *,
        dimensions: int | None = None,
        kind: str | None = None,
        instruction: str | None = None,
    ) -> Embeddings:
        """Turn texts into vectors; the options are those of `EmbeddingOptions`.

        Raises InputError for what cannot be embedded and of a model that was made to answer,
        CapacityError for a text that is too long.
        """
        if self.embedder is None:
            raise InputError(
                "This model answers conversations and makes no embeddings; expected a model such "
                "as Qwen3-Embedding."
            )
        options = EmbeddingOptions(dimensions=dimensions, kind=kind, instruction=instruction)
        with self._lock:
            return self.embedder.embed(inputs, options)

    def step(self) -> list[Request]:
        """Advance every running request by one forward pass; return those that finished.

        What fails inside one request ends that request alone. A pass that finds no memory is
        repeated in halves; the request that finds none by itself ends with CapacityError.
        """
        with self._lock, torch.inference_mode():
            plan = self._scheduler.plan()
            if not plan:
                return []
            self._runner.look(plan)
            plan = self._run(plan.without_failed())
            finished = self._scheduler.settle(plan)
            self._runner.release(request.request_id for request in finished)
            return finished

    def _run(self, plan: Plan) -> Plan:
        """Compute a pass and draw from it; give what was computed: all or, without memory, none."""
        if not plan:
            return plan
        try:
            logits = self._runner.forward(plan)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not self._scheduler.halve(plan):
                plan.chunks[0].request.error = no_memory_for_pass(plan, self._device)
            return Plan()
        draws = plan.draws
        while draws:
            # A selection is a copy: there is none where every row is drawn from.
            rows = logits if len(draws) == len(logits) else logits[[draw.row for draw in draws]]
            samples = self._sampler(rows, [draw.chunk.request for draw in draws])
            draws = self._scheduler.take(draws, samples)
        return plan

    def prepare(self, messages: Messages, options: ChatOptions) -> tuple[Request, Prompt]:
        """Parse what was sent, once, before anything runs; any number of threads may."""
        return self.prepare_choices(messages, [options])[0]

    def prepare_choices(
        self, messages: Messages, options: Sequence[ChatOptions]
    ) -> list[tuple[Request, Prompt]]:
        """Parse what was sent, once, for several answers to it.

        Their options may differ in what they say about sampling only.
        """
        first = options[0]
        use = self._read_tools(first)
        grammars = [self._grammars.begin(first.get("response_format"), use) for _ in options]
        thinking = self._wants_thinking(first, has_form=grammars[0][0] is not None)
        inputs = self._process(messages, first, use, thinking)
        prompt = self._runner.to_prompt(inputs)
        ask = partial(
            self._to_request, inputs, prompt, has_tools=use is not None, thinking=thinking
        )
        return [
            (ask(options=one, grammars=both), replace(prompt))
            for one, both in zip(options, grammars, strict=True)
        ]

    def prepare_prefill(self, messages: Messages, options: ChatOptions) -> tuple[Request, Prompt]:
        """Parse the beginning of a conversation that is not to be answered yet, as `prepare`."""
        thinking = self._wants_thinking(options, has_form=False)
        inputs = self._process(
            messages, options, self._read_tools(options), thinking, is_answered=False
        )
        prompt = self._runner.to_prompt(inputs)
        sampling = to_sampling(
            {"max_tokens": 1}, self._defaults, prompt=prompt.size, lengths=self._lengths
        )
        token_ids = inputs.prompt_token_ids[: count_settled(messages, prompt)]
        reply = Reply(self.processor.tokenizer.stream())
        request = Request(next(self._request_ids), token_ids, sampling, reply)
        request.name_block = prompt.name_block
        request.begin_only()
        return request, prompt

    def _read_tools(self, options: ChatOptions) -> ToolUse | None:
        if self.embedder is not None:
            raise InputError("This model makes embeddings and answers no conversations.")
        return read_tool_use(
            options.get("tools"), options.get("tool_choice"), options.get("parallel_tool_calls")
        )

    def _process(
        self,
        messages: Messages,
        options: ChatOptions,
        use: ToolUse | None,
        thinking: bool | None,
        *,
        is_answered: bool = True,
    ) -> ModelInputs:
        return self.processor(
            messages,
            tools=None if use is None else use.tools,
            add_generation_prompt=is_answered,
            enable_thinking=thinking,
            max_prompt_tokens=prompt_room(options, self._lengths),
            allow_files=self.allow_files,
        )

    def _to_request(
        self,
        inputs: ModelInputs,
        prompt: Prompt,
        *,
        options: ChatOptions,
        grammars: tuple[Grammar | None, Grammar | None],
        has_tools: bool,
        thinking: bool | None,
    ) -> Request:
        """Make one answer of a prompt to be run."""
        grammar, calls_grammar = grammars
        if inputs.begun is not None:
            thinking = False
            if grammar is not None and not grammar.enter(inputs.begun):
                raise InputError(
                    f"The answer's beginning {quote(inputs.begun)} does not fit its format; "
                    "expected the beginning of an answer that does."
                )
        # With a grammar, a model told to think is free until it has said </think>.
        is_thinking = inputs.is_thinking or (grammar is not None and thinking is True)
        form = find_reply_form(
            self.processor.tokenizer,
            inputs.prompt_token_ids,
            is_thinking=is_thinking,
            has_tools=has_tools,
        )
        thinks = inputs.is_thinking or (
            self.processor.template.is_thinking and thinking is not False
        )
        options, defaults = settle_stops(options, self._defaults, self.processor.tokenizer)
        sampling = to_sampling(
            options,
            defaults,
            prompt=prompt.size,
            lengths=self._lengths,
            closing_tokens=len(form.closing) if thinks and form.think_end is not None else None,
            vocab_size=self.processor.tokenizer.vocab_size,
        )
        request = Request(
            next(self._request_ids),
            inputs.prompt_token_ids,
            sampling,
            Reply(self.processor.tokenizer.stream(), sampling.stop, form),
            grammar or calls_grammar,
            inputs.seen,
        )
        request.holds_calls_only = grammar is None
        request.append_forced()
        request.name_block = prompt.name_block
        return request

    def _wants_thinking(self, options: ChatOptions, *, has_form: bool) -> bool | None:
        """Say whether the model is told to think: True, False, or None for its own way."""
        thinking = options.get("enable_thinking")
        if not self.processor.template.takes_thinking:
            return thinking
        if options.get("thinking_budget") == 0:
            return False
        # Where a form was asked for, it was no train of thought before it.
        return False if thinking is None and has_form else thinking

    def submit(self, request: Request, prompt: Prompt) -> None:
        """Let a prepared request run in the coming steps."""
        if request.is_finished:  # the grammar left no choice from beginning to end
            return
        with self._lock:
            if self._scheduler.add(request):
                self._runner.add(request.request_id, prompt)

    def follow(self, request: Request, prompt: Prompt) -> Iterator[TokenText | Finished]:
        """Let a prepared request run and follow it as `stream` does."""
        try:
            self.submit(request, prompt)
            while True:
                is_open = bool(self._unfinished([request]))
                while request.events:
                    yield request.events.popleft()
                if not is_open:
                    yield Finished(completion=request.completion())
                    return
                self.step()
        finally:
            self.forget([request])

    def _unfinished(self, requests: list[Request]) -> list[Request]:
        """Pick the requests to wait for; never between two changes by another thread's step."""
        with self._lock:
            return [request for request in requests if not request.is_finished]

    def _look(self, prompt: Prompt) -> None:
        with self._lock:
            self._runner.look_again(prompt)

    @property
    def num_blocks(self) -> int:
        """Count the blocks of the cache."""
        return self._scheduler.pool.num_blocks

    @property
    def num_used_blocks(self) -> int:
        """Count the blocks that running requests hold."""
        return self.num_blocks - self._scheduler.pool.num_available

    def cut(self, request: Request) -> None:
        """End an answer that has taken too long at what there is of it."""
        with self._lock:
            if not request.is_finished:
                self._scheduler.drop([request])
                self._runner.release([request.request_id])
                request.cut()

    def forget(self, requests: list[Request]) -> None:
        """Let go of requests whose caller no longer waits; finished ones are gone already."""
        with self._lock:
            left = [request for request in requests if not request.is_finished]
            self._scheduler.drop(left)
            self._runner.release(request.request_id for request in left)


def _outcome(asked: Request | QianyanError) -> Completion | QianyanError:
    """Give the answer, or what stands in its place."""
    if isinstance(asked, QianyanError):
        return asked
    return asked.error or asked.completion()


def _raise_first(asked: Sequence[Request | QianyanError]) -> None:
    """Raise the first error of what was asked, if there is one."""
    for one in asked:
        if isinstance(one, Request) and one.error is not None:
            raise one.error
