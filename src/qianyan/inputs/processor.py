"""The one way from chat messages to what a model reads.

Messages are OpenAI chat messages: content is text or a list of parts, a part is text or a picture
(`image_url` with an http(s) URL, a data: URI or, in process, a local path; `image` with a
PIL.Image). Everything is checked here, once; a message outside the form is an InputError.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from qianyan.errors import CapacityError, ConfigError, InputError, quote
from qianyan.inputs.chat import ChatTemplate
from qianyan.inputs.fetch import FetchLimits, fetch
from qianyan.inputs.images import ImageLimits, read_image, upright_rgb
from qianyan.inputs.patches import GridTHW, PatchConfig, make_patches
from qianyan.inputs.tokenizer import Tokenizer, read_json

IMAGE_PAD = "<|image_pad|>"
VIDEO_PAD = "<|video_pad|>"
MAX_IMAGES = 64

ROLES = ("system", "user", "assistant", "tool")
_MESSAGE_KEYS = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"}
)
_LATER_PARTS = frozenset({"video", "video_url", "audio", "audio_url", "input_audio", "file"})


@dataclass(frozen=True)
class SeenImage:
    """One picture of a prompt: its own size and the size the model sees it in, (width, height)."""

    photo_wh: tuple[int, int]
    seen_wh: tuple[int, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelInputs:
    """A prompt as a model reads it.

    `pixel_values` is (patches, 1176) float32 over all pictures and videos in order of appearance,
    None without any; each grid of `grid_thw` has t*h*w of those rows and a quarter as many pad
    tokens. `second_per_grid_ts` holds, for each video, the seconds between two temporal patches.
    """

    prompt_token_ids: list[int]
    pixel_values: np.ndarray | None = None
    grid_thw: tuple[GridTHW, ...] = ()
    second_per_grid_ts: tuple[float, ...] = ()
    images: tuple[SeenImage, ...] = ()


@dataclass
class _Pictures:
    """The pictures of a prompt in order, resized, with what is to be said about them."""

    seen: list[Image.Image] = field(default_factory=list)
    records: list[SeenImage] = field(default_factory=list)


class Processor:
    """Turns messages into ModelInputs as the checkpoint's own processor would."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        patches: PatchConfig | None = None,
        *,
        fetch_limits: FetchLimits | None = None,
        image_limits: ImageLimits | None = None,
    ) -> None:
        """Compose the parts; without `patches` the model reads text only."""
        self.tokenizer = tokenizer
        self.template = template
        self.patches = patches
        self.fetch_limits = fetch_limits or FetchLimits()
        self.image_limits = image_limits or ImageLimits()
        self._image_pad_id = tokenizer.token_id(IMAGE_PAD)
        if patches is not None and self._image_pad_id is None:
            raise ConfigError(
                f"The tokenizer has no {IMAGE_PAD} though the checkpoint reads pictures; "
                "copy tokenizer.json from the same repository as preprocessor_config.json."
            )

    @classmethod
    def from_folder(
        cls, folder: Path | str, *, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> Self:
        """Load a checkpoint's tokenizer, template and picture settings.

        Args:
            folder: the checkpoint; without preprocessor_config.json it reads text only.
            min_pixels: least area a picture is enlarged to, instead of the checkpoint's.
            max_pixels: largest area a picture is reduced to, instead of the checkpoint's.
        """
        folder = Path(folder)
        tokenizer = Tokenizer.from_folder(folder)
        template = ChatTemplate.from_folder(folder, special_tokens=tokenizer.special_tokens)
        patches = None
        settings = _picture_settings(folder)
        if settings:
            patches = PatchConfig.from_json(settings).within(
                min_pixels=min_pixels, max_pixels=max_pixels
            )
        return cls(tokenizer, template, patches)

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        allow_files: bool = True,
    ) -> ModelInputs:
        """Read messages into token ids and pixel rows.

        Args:
            messages: OpenAI chat messages.
            tools: OpenAI function tools, shown to the model by its template.
            add_generation_prompt: end with the opening of the assistant's turn.
            enable_thinking: passed to templates that know it; None leaves their default.
            allow_files: whether pictures may be named by a local path.

        Raises:
            InputError: a message is outside the form; MediaError for its pictures.
        """
        pictures = _Pictures()
        plain = self._plain_messages(messages, pictures, allow_files=allow_files)
        _refuse_pads([plain, list(tools or ())])
        variables = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        prompt = self.template.render(
            plain,
            tools=list(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
        return self._model_inputs(self.tokenizer.encode(prompt), pictures)

    def seen_wh(self, photo_wh: tuple[int, int]) -> tuple[int, int]:
        """Tell in which size (width, height) the model sees a picture of that size."""
        if self.patches is None:
            raise InputError("This model reads text only; it sees no pictures.")
        return self.patches.seen_size(*photo_wh)

    def _model_inputs(self, token_ids: list[int], pictures: _Pictures) -> ModelInputs:
        """Widen each picture's pad token to one per merged patch, and cut the pixels."""
        pads = token_ids.count(self._image_pad_id) if self._image_pad_id is not None else 0
        if pads != len(pictures.seen):
            raise InputError(
                f"The prompt has {pads} places for {len(pictures.seen)} pictures; the chat "
                f"template drops pictures in this position, or a text spells {IMAGE_PAD}."
            )
        if not pictures.seen or self.patches is None:
            return ModelInputs(token_ids)
        grids = tuple(self.patches.grid(image.size) for image in pictures.seen)
        merged = self.patches.merge_size**2
        widths = iter([t * h * w // merged for t, h, w in grids])
        prompt_token_ids: list[int] = []
        for token_id in token_ids:
            if token_id == self._image_pad_id:
                prompt_token_ids += [token_id] * next(widths)
            else:
                prompt_token_ids.append(token_id)
        return ModelInputs(
            prompt_token_ids,
            make_patches(pictures.seen, self.patches),
            grids,
            images=tuple(pictures.records),
        )

    def _plain_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        pictures: _Pictures,
        *,
        allow_files: bool,
    ) -> list[dict[str, Any]]:
        """Check messages and rebuild them from plain values, collecting their pictures."""
        if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
            raise InputError("messages is empty or not a list; expected a list of chat messages.")
        plain = []
        for index, message in enumerate(messages):
            where = f"messages[{index}]"
            checked = _check_message(message, where)
            content = message.get("content")
            if isinstance(content, list | tuple) and content:
                parts = [
                    self._plain_part(
                        part, pictures, f"{where}.content[{number}]", allow_files=allow_files
                    )
                    for number, part in enumerate(content)
                ]
                checked["content"] = parts if self._keeps_parts(parts) else _joined(parts)
            elif isinstance(content, str):
                checked["content"] = content
            elif content is None and message.get("tool_calls"):
                checked["content"] = ""
            else:
                raise InputError(f"{where} has no content; expected text or a list of parts.")
            if message.get("tool_calls"):
                checked["tool_calls"] = self._tool_calls(message["tool_calls"], where)
            plain.append(checked)
        return plain

    def _keeps_parts(self, parts: list[dict[str, Any]]) -> bool:
        """Whether the template is given parts as they are, rather than their text joined."""
        return self.template.takes_parts or any(part["type"] != "text" for part in parts)

    def _plain_part(
        self, part: Any, pictures: _Pictures, where: str, *, allow_files: bool
    ) -> dict[str, Any]:
        """Check one content part; a picture joins `pictures` and leaves a placeholder."""
        if not isinstance(part, Mapping):
            raise InputError(f"{where} is {type(part).__name__}; expected an object with a type.")
        kind = str(part.get("type"))
        if kind == "text":
            _only_keys(part, {"type", "text"}, where)
            return {"type": "text", "text": _text(part.get("text"), f"{where}.text")}
        if kind in _LATER_PARTS:
            raise InputError(
                f"{where} is of type {quote(kind)}, which is not supported yet by this model "
                "class; expected text or image_url."
            )
        if kind not in {"image_url", "image"}:
            raise InputError(
                f"{where} is of type {quote(kind)}; expected text, image_url or image."
            )
        _only_keys(part, {"type", kind, "min_pixels", "max_pixels"}, where)
        self._add_picture(part, pictures, where, allow_files=allow_files)
        return {"type": "image"}

    def _add_picture(
        self, part: Mapping[str, Any], pictures: _Pictures, where: str, *, allow_files: bool
    ) -> None:
        """Read one picture and resize it to what the model will see."""
        if self.patches is None:
            raise InputError(f"{where} is a picture; this model reads text only.")
        if len(pictures.seen) >= MAX_IMAGES:
            raise CapacityError(f"The messages hold more than {MAX_IMAGES} pictures. Send fewer.")
        patches = _part_patches(part, self.patches, where)
        source = _picture_source(part, where)
        notes: tuple[str, ...] = ()
        if isinstance(source, Image.Image):
            rgb = upright_rgb(source)
        else:
            fetched = fetch(source, limits=self.fetch_limits, allow_files=allow_files)
            photo = read_image(fetched.data, limits=self.image_limits)
            rgb, notes = photo.rgb, photo.notes
        seen = rgb.resize(patches.seen_size(*rgb.size), patches.resample)
        pictures.seen.append(seen)
        pictures.records.append(SeenImage(rgb.size, seen.size, notes))

    def _tool_calls(self, calls: Any, where: str) -> list[dict[str, Any]]:
        """Check an assistant's tool calls; their arguments as the template wants them."""
        if not isinstance(calls, list | tuple):
            raise InputError(f"{where}.tool_calls is {type(calls).__name__}; expected a list.")
        plain = []
        for number, call in enumerate(calls):
            at = f"{where}.tool_calls[{number}]"
            function = call.get("function") if isinstance(call, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise InputError(f"{at} has no function with a name.")
            arguments = function.get("arguments") or {}
            if isinstance(arguments, str) and not self.template.takes_arguments_as_text:
                arguments = _parsed_arguments(arguments, at)
            named = {"name": function["name"], "arguments": arguments}
            call_id = {"id": _text(call["id"], f"{at}.id")} if call.get("id") else {}
            plain.append({"type": "function", **call_id, "function": named})
        return plain


def _picture_settings(folder: Path) -> dict[str, Any]:
    """Read preprocessor_config.json, or the image part of processor_config.json."""
    settings = read_json(folder / "preprocessor_config.json")
    if settings:
        return settings
    combined: dict[str, Any] = read_json(folder / "processor_config.json").get(
        "image_processor", {}
    )
    return combined


def _check_message(message: Any, where: str) -> dict[str, Any]:
    """Check a message's role and keys; returns it without content and tool calls."""
    if not isinstance(message, Mapping):
        raise InputError(f"{where} is {type(message).__name__}; expected an object with a role.")
    role = message.get("role")
    if role not in ROLES:
        raise InputError(f"{where} has the role {quote(role)}; expected one of {', '.join(ROLES)}.")
    # Clients send back whole replies, with null for all that a reply did not have.
    stated = {key: value for key, value in message.items() if value is not None}
    _only_keys(stated, _MESSAGE_KEYS, where)
    checked = {"role": role}
    for key in ("name", "tool_call_id", "reasoning_content"):
        if key in stated:
            checked[key] = _text(stated[key], f"{where}.{key}")
    return checked


def _only_keys(data: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    unknown = sorted(str(key) for key in set(data) - set(known))
    if unknown:
        raise InputError(
            f"{where} has {quote(unknown[0])}, which is not known here; "
            f"expected {', '.join(sorted(known))}."
        )


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} is {type(value).__name__}; expected text.")
    return value


def _part_patches(part: Mapping[str, Any], patches: PatchConfig, where: str) -> PatchConfig:
    """Apply a part's own limits; it may ask for less than the settings allow, never for more."""
    most = patches.max_pixels
    stated: dict[str, int] = {}
    for name in ("max_pixels", "min_pixels"):
        value = part.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise InputError(
                f"{where}.{name} is {quote(value)}; expected a number of pixels up to {most}."
            )
        stated[name] = most = value
    return patches.within(**stated)


def _picture_source(part: Mapping[str, Any], where: str) -> str | Path | Image.Image:
    """Take the picture's source out of an image_url or image part."""
    kind = part["type"]
    source = part.get(kind)
    if kind == "image_url" and isinstance(source, Mapping):
        # `detail` asks hosted services for a size; here the size is the checkpoint's.
        _only_keys(source, {"url", "detail"}, f"{where}.image_url")
        source = source.get("url")
    allowed = (str,) if kind == "image_url" else (str, Path, Image.Image)
    if not isinstance(source, allowed) or source == "":
        raise InputError(
            f"{where} names no picture; expected "
            + ("a URL." if kind == "image_url" else "a PIL.Image, a path or a URL.")
        )
    return source


def _parsed_arguments(arguments: str, where: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError as error:
        raise InputError(
            f"{where}.function.arguments is not valid JSON: {quote(arguments)}."
        ) from error


def _joined(parts: list[dict[str, Any]]) -> str:
    return "".join(part["text"] for part in parts)


def _refuse_pads(value: Any) -> None:
    """Refuse texts that spell a placeholder, which would shift every picture after it.

    Other control tokens in a text are read as such, as the checkpoints' own tools do.
    """
    if isinstance(value, str):
        for pad in (IMAGE_PAD, VIDEO_PAD):
            if pad in value:
                raise InputError(
                    f"A text contains {pad}, the model's own placeholder for pictures. Remove it "
                    "and send pictures as image_url parts."
                )
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_pads(key)
            _refuse_pads(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_pads(item)
