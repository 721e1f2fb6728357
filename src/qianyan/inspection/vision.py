"""Ask a vision-language model about a picture: the local engine, or any OpenAI-compatible endpoint.

Both forms answer with the text, the size the model saw the picture in and, where it is known, how
sure the model was of each token. What the text means is not decided here.
"""

import base64
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from qianyan.engine.options import ChatOptions
from qianyan.engine.request import Completion, Logprobs
from qianyan.errors import ConfigError, EndpointError, InputError, quote
from qianyan.inputs.grounding import Markup, Notation, find_markup, find_notation
from qianyan.inputs.images import smart_resize
from qianyan.inputs.tokenizer import Tokenizer
from qianyan.inspection.profile import EndpointProfile, find_profile, guess_profile
from qianyan.inspection.records import Usage
from qianyan.inspection.remote import ChatEndpoint, Patience, RefusedError

if TYPE_CHECKING:  # an endpoint's users need no torch
    from qianyan.engine.engine import Engine

DEFAULT_MAX_TOKENS = 512
JPEG_QUALITY = 95
SOME_PHOTO_WH = (448, 448)
_END_OF_TURN = re.compile(r"\s*(<\|(im_end|endoftext|im_start)\|>\s*)+$")
# Hosted models named qwen-vl-plus, -max or -ocr are of later generations.
_FIRST_GENERATION = re.compile(r"qwen[-_ ]?vl([-_ ]?(chat|v1)|$)")
_BAD_REQUEST_STATUS = frozenset({400, 404, 415, 422, 501})


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
    """One question about one picture (RGB, any size); the picture comes before the text.

    `schema` is a wish: where an endpoint cannot be held to a schema, the answer is free text.
    `logprobs` is the number of likeliest tokens wanted at each step; None wants no probabilities.
    """

    image: Image.Image
    text: str
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
    `finish_reason` is "stop", or "length" when the answer was cut at `max_tokens`.
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

    def seen_wh(self, photo_wh: tuple[int, int]) -> tuple[int, int]:
        """Tell in which size (width, height) the model sees a picture."""

    def ask(self, ask: Ask) -> Answer:
        """Answer one question; raises a QianyanError when there is no answer."""

    def ask_many(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answer several questions at once, in order; raises when one of them has no answer."""


class LocalVision:
    """A checkpoint run by the engine in this process."""

    def __init__(self, engine: "Engine") -> None:
        """Get ready to ask; raises ConfigError for a checkpoint that sees no pictures."""
        notation = find_notation(engine.architecture)
        try:
            engine.processor.seen_wh(SOME_PHOTO_WH)
        except InputError as error:
            raise ConfigError(
                f"{engine.name} reads text only; expected a model that sees pictures, such as "
                "Qwen2.5-VL."
            ) from error
        if notation is None:
            raise ConfigError(
                f"How {quote(engine.architecture)} counts the coordinates of boxes is not known; "
                "expected a checkpoint of Qwen-VL, Qwen2-VL or Qwen2.5-VL."
            )
        self._engine = engine
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

    def seen_wh(self, photo_wh: tuple[int, int]) -> tuple[int, int]:
        """Tell in which size the checkpoint's processor shows a picture."""
        return self._engine.processor.seen_wh(photo_wh)

    def ask(self, ask: Ask) -> Answer:
        """Answer one question."""
        return self._to_answer(self._engine.chat(_messages(ask), **_options(ask)))

    def ask_many(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answer several questions, those with equal settings in one batch."""
        answers: dict[int, Answer] = {}
        waiting = list(range(len(asks)))
        while waiting:
            options = _options(asks[waiting[0]])
            batch = [index for index in waiting if _options(asks[index]) == options]
            done = self._engine.chat_many([_messages(asks[index]) for index in batch], **options)
            answers.update(zip(batch, map(self._to_answer, done), strict=True))
            waiting = [index for index in waiting if index not in answers]
        return [answers[index] for index in range(len(asks))]

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
            ),
            finish_reason=done.finish_reason,
        )

    def _text(self, done: Completion) -> str:
        """Take the answer's text; where places are marked by control tokens, with those."""
        if self._markup is Markup.JSON:
            return done.text
        tokenizer = self._engine.processor.tokenizer
        return _END_OF_TURN.sub("", tokenizer.decode(done.token_ids, skip_special=False))


class RemoteVision:
    """A model behind an OpenAI-compatible endpoint.

    Pictures are resized here, to multiples of the profile's factor within its limits, so that the
    server's own resizing changes nothing and its boxes come back in a space we know. A schema or
    log-probabilities that the endpoint refuses are left out from then on.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        profile: EndpointProfile | None = None,
        patience: Patience | None = None,
        concurrency: int = 4,
    ) -> None:
        """Get ready to ask; without `model` the endpoint is asked for its first one.

        Without `profile` the saved one is used, or one guessed from the model's name. Raises
        EndpointError when the profile says that the model's boxes cannot be placed.
        """
        self.endpoint = ChatEndpoint(base_url, api_key, patience=patience, concurrency=concurrency)
        self._concurrency = concurrency
        address = self.endpoint.base_url
        self.model = model or (profile.model if profile else self.endpoint.first_model())
        known = profile or find_profile(address, self.model) or guess_profile(address, self.model)
        self.profile = replace(known, model=self.model)
        if not self.profile.can_place_boxes:
            raise EndpointError(
                f"The boxes of {self.model} at {address} cannot be placed: no way of reading its "
                f"coordinates fits better than an IoU of {self.profile.iou:.2f}. Use another "
                "model, or run 'qianyan doctor' again after changing the server."
            )
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The model's name at the endpoint."""
        return self.model

    @property
    def notation(self) -> Notation:
        """What the numbers of its boxes mean."""
        return self.profile.notation

    @property
    def markup(self) -> Markup:
        """How it was trained to write places into an answer, going by its name."""
        return Markup.REF if _FIRST_GENERATION.search(self.model.lower()) else Markup.JSON

    def seen_wh(self, photo_wh: tuple[int, int]) -> tuple[int, int]:
        """Tell in which size a picture is sent."""
        return pinned_size(self.profile, photo_wh)

    def ask(self, ask: Ask) -> Answer:
        """Answer one question."""
        seen_wh = self.seen_wh(ask.image.size)
        sent = ask.image.convert("RGB")
        if sent.size != seen_wh:
            sent = sent.resize(seen_wh, Image.Resampling.BICUBIC)
        return to_answer(self._complete(ask, to_data_url(sent)), seen_wh, self.model)

    def ask_unresized(self, ask: Ask) -> Answer:
        """Answer one question about the picture exactly as it is, which the server may resize."""
        url = to_data_url(ask.image.convert("RGB"), is_lossless=True)
        return to_answer(self._complete(ask, url), ask.image.size, self.model)

    def ask_many(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answer several questions, up to `concurrency` of them at once."""
        if len(asks) < 2:
            return [self.ask(ask) for ask in asks]
        with ThreadPoolExecutor(min(self._concurrency, len(asks))) as pool:
            return list(pool.map(self.ask, asks))

    def _complete(self, ask: Ask, picture_url: str) -> dict[str, Any]:
        """Send a question; leave out what the endpoint refuses, and remember what that was.

        A refusal that stays has another reason: then nothing is remembered.
        """
        profile = self.profile
        left_out: list[str] = []
        while True:
            try:
                reply = self.endpoint.chat(to_body(ask, picture_url, profile))
            except RefusedError as error:
                option = _refused_option(ask, profile, error.said)
                if error.status not in _BAD_REQUEST_STATUS or option is None:
                    raise
                left_out.append(option)
                profile = profile.without(option)
                continue
            if left_out:
                with self._lock:  # another thread may have found out something else
                    self.profile = self.profile.without(*left_out)
            return reply


def pinned_size(profile: EndpointProfile, photo_wh: tuple[int, int]) -> tuple[int, int]:
    """Give the (width, height) to send a picture in, so that the server has nothing to resize."""
    height, width = smart_resize(
        photo_wh[1],
        photo_wh[0],
        factor=profile.factor,
        min_pixels=profile.min_pixels,
        max_pixels=profile.max_pixels,
    )
    return width, height


def to_body(ask: Ask, picture_url: str, profile: EndpointProfile) -> dict[str, Any]:
    """Write the request body: common fields, and what the profile does not rule out."""
    body: dict[str, Any] = {
        "model": profile.model,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": picture_url}},
                    {"type": "text", "text": ask.text},
                ],
            }
        ],
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
    }
    sent = _options_sent(ask, profile)
    if "has_penalty" in sent:
        body["presence_penalty"] = ask.presence_penalty
    if ask.seed is not None:
        body["seed"] = ask.seed
    if "has_schema" in sent:
        body["response_format"] = _response_format(ask)
    if "has_logprobs" in sent:
        body["logprobs"] = True
        if ask.logprobs:
            body["top_logprobs"] = ask.logprobs
    return {**body, **profile.extra}


def to_answer(reply: Mapping[str, Any], seen_wh: tuple[int, int], model: str) -> Answer:
    """Read a chat completion; raises EndpointError when it is none."""
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise EndpointError(
            f"{model} answered without choices[0].message; expected an OpenAI chat completion."
        )
    usage = reply.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Answer(
        text=_content_text(message.get("content")),
        seen_wh=seen_wh,
        tokens=_remote_tokens(choice.get("logprobs")),
        usage=Usage(
            prompt_tokens=_count(counts.get("prompt_tokens")),
            completion_tokens=_count(counts.get("completion_tokens")),
        ),
        finish_reason=str(choice.get("finish_reason") or "stop"),
    )


def to_data_url(image: Image.Image, *, is_lossless: bool = False) -> str:
    """Write a picture into a data: URL; JPEG without colour subsampling unless lossless."""
    buffer = BytesIO()
    if is_lossless:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    kind = "png" if is_lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _messages(ask: Ask) -> list[dict[str, Any]]:
    """Show the engine the picture, then the text."""
    parts = [{"type": "image", "image": ask.image}, {"type": "text", "text": ask.text}]
    return [{"role": "user", "content": parts}]


def _options(ask: Ask) -> ChatOptions:
    """Say an ask in the engine's options."""
    return ChatOptions(
        max_tokens=ask.max_tokens,
        temperature=ask.temperature,
        presence_penalty=ask.presence_penalty,
        logprobs=ask.logprobs,
        seed=ask.seed,
        response_format=None if ask.schema is None else _response_format(ask),
    )


def _response_format(ask: Ask) -> dict[str, Any]:
    """Wrap a schema as the OpenAI API does."""
    schema = {"name": "answer", "schema": dict(ask.schema or {}), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _token_score(tokenizer: Tokenizer, token_id: int, step: Logprobs) -> TokenScore:
    """Spell out one step of the engine."""
    return TokenScore(
        text=tokenizer.token_text(token_id),
        logprob=step[token_id],
        top={tokenizer.token_text(other): logprob for other, logprob in step.items()},
        data=tokenizer.token_bytes(token_id),
    )


def _options_sent(ask: Ask, profile: EndpointProfile) -> dict[str, tuple[str, ...]]:
    """Name what goes beyond the plainest request, with words by which a refusal may blame it."""
    wanted = {
        "has_schema": (ask.schema is not None, ("response_format", "schema", "grammar")),
        "has_penalty": (ask.presence_penalty != 0, ("presence_penalty",)),
        "has_logprobs": (ask.logprobs is not None, ("logprob",)),
    }
    return {
        name: words
        for name, (is_wanted, words) in wanted.items()
        if is_wanted and getattr(profile, name) is not False
    }


def _refused_option(ask: Ask, profile: EndpointProfile, said: str) -> str | None:
    """Pick what to leave out after a refusal: the option blamed, else the first; None if none."""
    sent = _options_sent(ask, profile)
    blamed = [name for name, words in sent.items() if any(word in said.lower() for word in words)]
    return next(iter([*blamed, *sent]), None)


def _content_text(content: Any) -> str:
    """Take the text of a message, which some servers send in parts."""
    if isinstance(content, list):
        content = "".join(
            part["text"]
            for part in content
            if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    if not isinstance(content, str):
        return ""
    # Half of a surrogate pair cannot be written to a file later.
    return content.encode("utf-8", errors="replace").decode("utf-8")


def _remote_tokens(logprobs: Any) -> tuple[TokenScore, ...] | None:
    """Read the token log-probabilities; None when there are none or they have another form."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content:
        return None
    try:
        return tuple(_remote_token(entry) for entry in content)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _remote_token(entry: Mapping[str, Any]) -> TokenScore:
    text = str(entry["token"])
    raw = entry.get("bytes")
    return TokenScore(
        text=text,
        logprob=min(float(entry["logprob"]), 0.0),
        top={str(one["token"]): float(one["logprob"]) for one in entry.get("top_logprobs") or ()},
        data=bytes(raw) if raw is not None else text.encode(errors="replace"),
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
