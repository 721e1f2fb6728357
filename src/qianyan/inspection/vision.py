"""Ask a vision-language model about a picture: questions, answers, and the engine in this process.

The other form, a model behind an OpenAI-compatible endpoint, is in remote/vision.py. Both answer
with the text, the size the model saw the picture in and, where it is known, how sure the model was
of each token. What the text means is not decided here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from qianyan.engine.options import ChatOptions
from qianyan.engine.request import Completion, Logprobs
from qianyan.errors import ConfigError, quote
from qianyan.inputs.grounding import Markup, Notation, find_markup, find_notation
from qianyan.inputs.squares import SquareConfig
from qianyan.inputs.tokenizer import Tokenizer
from qianyan.inspection.records import Usage

if TYPE_CHECKING:  # an endpoint's users need no torch
    from qianyan.engine.desk import Desk
    from qianyan.engine.engine import Engine

DEFAULT_MAX_TOKENS = 512
_END_OF_TURN = re.compile(r"\s*(<\|(im_end|endoftext|im_start)\|>\s*)+$")


@dataclass(frozen=True)
class TokenScore:
    """One token of an answer: its natural-log probability and those of the likeliest tokens.

    `data` are the token's bytes: a Chinese character may be spread over several tokens, whose
    `text` then holds replacement marks.
    """

    text: str
    logprob: float
    top: Mapping[str, float]
    data: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One question about one picture (RGB, any size); `text` comes after the picture.

    `before` comes before it: words that are the same for every picture, which an engine that knows
    beginnings computes once. `visual_tokens` is the most that the picture may take; None leaves it
    to the model's own limits. `schema` is a wish: where an endpoint cannot be held to a schema, the
    answer is free text; an answer that lists more than `max_objects` may then be cut behind the
    last of these. `logprobs` is the number of likeliest tokens wanted at each step; None wants no
    probabilities.
    """

    image: Image.Image
    text: str
    before: str = ""
    visual_tokens: int | None = None
    max_objects: int | None = None
    schema: Mapping[str, Any] | None = None
    max_tokens: int = DEFAULT_MAX_TOKENS
    logprobs: int | None = None
    temperature: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said; `tokens` is None where it gives no probabilities.

    `seen_wh` is the size of the picture that the model saw, the space of pixel coordinates.
    `finish_reason` is "stop", "length" when the answer was cut at `max_tokens`, or "enough" when
    it was cut behind its last object that was asked for, which leaves its list open.
    """

    text: str
    seen_wh: tuple[int, int]
    tokens: tuple[TokenScore, ...] | None = None
    usage: Usage = field(default_factory=Usage)
    finish_reason: str = "stop"


class Vision(Protocol):
    """A model that answers questions about pictures."""

    @property
    def name(self) -> str:
        """The model's name, as reports print it."""

    @property
    def notation(self) -> Notation:
        """What the numbers of its boxes mean."""

    @property
    def markup(self) -> Markup:
        """How it was trained to write places into an answer."""

    def seen_wh(
        self, photo_wh: tuple[int, int], visual_tokens: int | None = None
    ) -> tuple[int, int]:
        """Tell in which size (width, height) the model sees a picture, within so many tokens."""

    def count_tokens(self, seen_wh: tuple[int, int]) -> int:
        """Count the visual tokens of a picture that is seen in this size."""

    def ask(self, ask: Ask) -> Answer:
        """Answer one question; raises a QianyanError when there is no answer."""

    def ask_many(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answer several questions at once, in order; raises when one of them has no answer."""


class LocalVision:
    """A checkpoint run by the engine in this process."""

    def __init__(self, engine: "Engine", desk: "Desk | None" = None) -> None:
        """Get ready to ask, at a desk where many threads do.

        Raises ConfigError for a checkpoint that sees no pictures.
        """
        notation = find_notation(engine.architecture)
        if engine.processor.pictures is None:
            raise ConfigError(
                f"{engine.name} reads text only; expected a model that sees pictures, such as "
                "Qwen2.5-VL."
            )
        if notation is None:
            raise ConfigError(
                f"How {quote(engine.architecture)} counts the coordinates of boxes is not known; "
                "expected a checkpoint of Qwen-VL, Qwen2-VL or Qwen2.5-VL."
            )
        self._engine = engine
        self._chat_many = engine.chat_many if desk is None else partial(desk.chat_many, engine)
        self._pictures = engine.processor.pictures
        self._notation = notation
        self._markup = find_markup(engine.architecture)

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return self._engine.name

    @property
    def notation(self) -> Notation:
        """What the numbers of its boxes mean."""
        return self._notation

    @property
    def markup(self) -> Markup:
        """How it was trained to write places into an answer."""
        return self._markup

    def seen_wh(
        self, photo_wh: tuple[int, int], visual_tokens: int | None = None
    ) -> tuple[int, int]:
        """Tell in which size the checkpoint's processor shows a picture."""
        return self._pictures.within(**self._limits(visual_tokens)).seen_size(*photo_wh)

    def count_tokens(self, seen_wh: tuple[int, int]) -> int:
        """Count the visual tokens of a picture that is seen in this size."""
        return self._pictures.num_tokens(self._pictures.grid(seen_wh))

    def _limits(self, visual_tokens: int | None) -> dict[str, int]:
        """Turn a budget into the processor's words; nothing where its own limits hold.

        Models that see every picture in squares of one size have no other limit.
        """
        if visual_tokens is None or isinstance(self._pictures, SquareConfig):
            return {}
        most = min(visual_tokens * self._pictures.factor**2, self._pictures.max_pixels)
        return {"min_pixels": least_pixels(self._pictures.min_pixels, most), "max_pixels": most}

    def ask(self, ask: Ask) -> Answer:
        """Answer one question."""
        return self._to_answer(self._chat_many([self.messages(ask)], **_options(ask))[0])

    def ask_many(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answer several questions, those with equal settings in one batch."""
        answers: dict[int, Answer] = {}
        waiting = list(range(len(asks)))
        while waiting:
            options = _options(asks[waiting[0]])
            batch = [index for index in waiting if _options(asks[index]) == options]
            done = self._chat_many([self.messages(asks[index]) for index in batch], **options)
            answers.update(zip(batch, map(self._to_answer, done), strict=True))
            waiting = [index for index in waiting if index not in answers]
        return [answers[index] for index in range(len(asks))]

    def messages(self, ask: Ask) -> list[dict[str, Any]]:
        """Write an ask as chat messages: words that stay the same, the picture, the question."""
        picture: dict[str, Any] = {"type": "image", "image": ask.image}
        picture.update(self._limits(ask.visual_tokens))
        before = [{"type": "text", "text": ask.before}] if ask.before else []
        return [{"role": "user", "content": [*before, picture, {"type": "text", "text": ask.text}]}]

    def _to_answer(self, done: Completion) -> Answer:
        """Put a completion into the words of this room."""
        tokens = None
        if done.logprobs is not None:
            tokenizer = self._engine.processor.tokenizer
            tokens = tuple(
                _token_score(tokenizer, token_id, step)
                for token_id, step in zip(done.token_ids, done.logprobs, strict=True)
            )
        return Answer(
            text=self._text(done),
            seen_wh=done.images[0].seen_wh,
            tokens=tokens,
            usage=Usage(
                prompt_tokens=done.usage.prompt_tokens,
                completion_tokens=done.usage.completion_tokens,
                forwarded_tokens=done.usage.forwarded_tokens,
                visual_tokens=sum(self.count_tokens(one.seen_wh) for one in done.images),
            ),
            finish_reason=done.finish_reason,
        )

    def _text(self, done: Completion) -> str:
        """Take the answer's text; where places are marked by control tokens, with those."""
        if self._markup is Markup.JSON:
            return done.text
        tokenizer = self._engine.processor.tokenizer
        return _END_OF_TURN.sub("", tokenizer.decode(done.token_ids, skip_special=False))


def least_pixels(usual: int, most: int) -> int:
    """Lower a least size that a budget of `most` pixels does not allow.

    Enlarging rounds up to whole tokens: from a quarter of the budget on it cannot exceed it.
    """
    return min(usual, most // 4)


def response_format(ask: Ask) -> dict[str, Any]:
    """Wrap an ask's schema as the OpenAI API does."""
    schema = {"name": "answer", "schema": dict(ask.schema or {}), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _options(ask: Ask) -> ChatOptions:
    """Say an ask in the engine's options."""
    return ChatOptions(
        max_tokens=ask.max_tokens,
        temperature=ask.temperature,
        presence_penalty=ask.presence_penalty,
        logprobs=ask.logprobs,
        seed=ask.seed,
        response_format=None if ask.schema is None else response_format(ask),
    )


def _token_score(tokenizer: Tokenizer, token_id: int, step: Logprobs) -> TokenScore:
    """Spell out one step of the engine."""
    return TokenScore(
        text=tokenizer.token_text(token_id),
        logprob=step[token_id],
        top={tokenizer.token_text(other): logprob for other, logprob in step.items()},
        data=tokenizer.token_bytes(token_id),
    )
