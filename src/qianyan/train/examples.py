"""From one conversation to what a model learns from it: ids, places, pixels, sounds, what counts.

Which tokens are learned follows from the prompt's structure: ChatML opens every turn with a token
that no text can spell unnoticed, so the answers are the turns that begin with it and the
assistant's header. Counting them against the messages finds texts that forge a turn.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qianyan.errors import CapacityError, ConfigError, InputError
from qianyan.inputs.processor import ModelInputs, Processor
from qianyan.models.language_model import LanguageModel
from qianyan.models.omni.thinker import Thinker
from qianyan.train.recipe import Loss

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample as a model reads it.

    `learned` are the indices of the tokens that are learned, each from those before it;
    `position_ids` is (axes, tokens). Pixels, grids and mel frames are as in `ModelInputs`.
    """

    source: str
    inputs: ModelInputs
    position_ids: Tensor
    learned: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.inputs.prompt_token_ids)


class ExampleMaker:
    """Makes examples for one model: the template's prompt, and the tokens that count in it."""

    def __init__(
        self, model: LanguageModel, processor: Processor, *, loss: Loss, max_tokens: int
    ) -> None:
        """Raise ConfigError where the checkpoint's prompts have no turns to tell answers by."""
        self._model, self._processor = model, processor
        self._loss, self._max_tokens = loss, max_tokens
        tokenizer = processor.tokenizer
        marks = [tokenizer.token_id(mark) for mark in (TURN_START, TURN_END)]
        self._start, self._end = (-1 if mark is None else mark for mark in marks)
        self._header = tokenizer.encode("assistant\n")
        if loss == "answers" and None in marks:
            raise ConfigError(
                "The checkpoint's prompts have no turns, so answers cannot be told apart; "
                'expected loss = "text" for a base model.'
            )

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        source: str,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Example:
        """Make an example of a conversation.

        Raises InputError for messages that cannot be used or teach nothing, MediaError for their
        pictures, videos and sounds, CapacityError for more than max_tokens.
        """
        inputs = self._processor(messages, tools=tools, add_generation_prompt=False)
        ids = inputs.prompt_token_ids
        self.require_room(len(ids), source)
        learned = self._text(ids) if self._loss == "text" else self._answers(ids, messages, source)
        if not learned:
            raise InputError(f"{source} has nothing to learn; expected an assistant's answer.")
        return Example(
            source=source,
            inputs=inputs,
            position_ids=self._model.place(ids, inputs.grid_thw, inputs.second_per_grid_ts).prompt,
            learned=learned,
        )

    def require_room(self, num_tokens: int, source: str) -> None:
        """Raise CapacityError for what is longer than a sequence."""
        if num_tokens > self._max_tokens:
            raise CapacityError(
                f"{source} is {num_tokens} tokens long; expected at most {self._max_tokens}. Allow "
                "longer sequences, smaller pictures or shorter sounds."
            )

    def _text(self, ids: list[int]) -> tuple[int, ...]:
        """Take every token but the first and those that pictures and sounds fill."""
        input_ids = torch.tensor(ids)
        filled = set(self._model.vision_rows(input_ids).tolist())
        if isinstance(self._model, Thinker):
            filled |= set(self._model.audio_rows(input_ids).tolist())
        return tuple(index for index in range(1, len(ids)) if index not in filled)

    def _answers(
        self, ids: list[int], messages: Sequence[Mapping[str, Any]], source: str
    ) -> tuple[int, ...]:
        turns = list(self._turns(ids))
        expected = sum(message["role"] == "assistant" for message in messages)
        if len(turns) != expected:
            raise InputError(
                f"{source} has {len(turns)} assistant's turns in its prompt and {expected} in its "
                f"messages; a text in it spells {TURN_START}."
            )
        return tuple(index for turn in turns for index in turn)

    def _turns(self, ids: list[int]) -> Iterator[range]:
        """Yield where each answer's tokens are, its closing one included."""
        opened = 1 + len(self._header)
        for at, token_id in enumerate(ids):
            if token_id == self._start and ids[at + 1 : at + opened] == self._header:
                try:
                    yield range(at + opened, ids.index(self._end, at) + 1)
                except ValueError:
                    yield range(at + opened, len(ids))
