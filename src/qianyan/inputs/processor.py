"""The one way from chat messages to what a model reads.

Messages are checked (`messages.py`), their pictures, videos, sounds and documents read
(`media.py`), the checkpoint's template writes the prompt (`chat.py`), its tokenizer cuts it
(`tokenizer.py`), and each picture's placeholder is widened to the tokens it takes (`medium.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from qianyan.errors import ConfigError, InputError
from qianyan.inputs.chat import ChatTemplate
from qianyan.inputs.first_generation import (
    IMAGE_PAD as SQUARE_PAD,
)
from qianyan.inputs.first_generation import (
    encode_first_generation,
    read_chat_format,
    stop_token_ids,
    template_source,
)
from qianyan.inputs.frames import VideoConfig
from qianyan.inputs.media import Media, MediaLimits, Seen, Senses
from qianyan.inputs.medium import IMAGE_PAD, VIDEO_PAD, Pads
from qianyan.inputs.mel import MelConfig
from qianyan.inputs.messages import MessageReader, refuse_placeholders, take_begun
from qianyan.inputs.parts import PictureConfig
from qianyan.inputs.patches import GridTHW, PatchConfig
from qianyan.inputs.prepared import PreparedPictures
from qianyan.inputs.shortening import fit_documents
from qianyan.inputs.squares import SquareConfig
from qianyan.inputs.tokenizer import Tokenizer, read_json
from qianyan.inputs.tool_words import write_tools

__all__ = ["IMAGE_PAD", "VIDEO_PAD", "ModelInputs", "Processor"]

THINK_START, THINK_END = "<think>", "</think>"
VIDEO_TOKENS = {"qwen2_vl": 16_384}
"""Most tokens of one video by model_type: those of training (Qwen2-VL, section 2.1)."""
DEFAULT_VIDEO_TOKENS = 24_576
"""Of later generations (Qwen2.5-VL, section 3.3.4)."""


@dataclass(frozen=True)
class ModelInputs:
    """A prompt as a model reads it.

    `pixel_values` is float32 over all pictures and videos in order of appearance, (patches, 1176)
    or (pictures, 3, side, side) by the model's kind, None without any; `grid_thw` has the patches
    of each. `second_per_grid_ts` holds, for each video, the seconds between two temporal patches.
    `input_features` are the mel frames of all sounds, those of videos included, in order, (frames,
    mel), None without any; `num_audio_frames` has the frames of each. `is_thinking` says that the
    prompt ends inside the reasoning; `begun` is the beginning of the answer that the prompt ends
    with, None where a new turn begins.
    """

    prompt_token_ids: list[int]
    pixel_values: np.ndarray | None = None
    grid_thw: tuple[GridTHW, ...] = ()
    second_per_grid_ts: tuple[float, ...] = ()
    seen: Seen = field(default_factory=Seen)
    is_thinking: bool = False
    begun: str | None = None
    input_features: np.ndarray | None = None
    num_audio_frames: tuple[int, ...] = ()


class Processor:
    """Turns messages into ModelInputs as the checkpoint's own processor would."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        pictures: PictureConfig | None = None,
        *,
        videos: VideoConfig | None = None,
        encode: Callable[[str], list[int]] | None = None,
        limits: MediaLimits | None = None,
    ) -> None:
        """Compose the parts.

        Args:
            tokenizer: the checkpoint's.
            template: the checkpoint's.
            pictures: how it wants pictures; None reads text only.
            videos: how it wants videos; None reads none.
            encode: prompt to token ids where the tokenizer's own way is not all of it.
            limits: what pictures, videos and documents may cost.
        """
        self.tokenizer = tokenizer
        self.template = template
        self.pictures = pictures
        self.videos = videos
        self.limits = limits or MediaLimits()
        self.extra_stop_ids: frozenset[int] = frozenset()
        self._prepared = PreparedPictures()
        self._encode = encode or tokenizer.encode
        self.sounds: MelConfig | None = None
        self.pads = Pads.of(tokenizer)
        needed = SQUARE_PAD if isinstance(pictures, SquareConfig) else self.pads.words[0]
        if pictures is not None and tokenizer.token_id(needed) is None:
            raise ConfigError(
                f"The tokenizer has no {needed} though the checkpoint reads pictures; "
                "copy the tokenizer from the same repository as the other files."
            )

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        limits: MediaLimits | None = None,
    ) -> Self:
        """Load a checkpoint's tokenizer, template and picture settings.

        Args:
            folder: the checkpoint; without preprocessor_config.json it reads text only.
            min_pixels: least area a picture is enlarged to, instead of the checkpoint's; without
                effect on the first generation, which sees squares of one size.
            max_pixels: largest area a picture is reduced to, likewise.
            limits: what pictures, videos and documents may cost.
        """
        folder = Path(folder)
        tokenizer = Tokenizer.from_folder(folder)
        if tokenizer.is_first_generation:
            return cls._first_generation(folder, tokenizer, limits)
        template = ChatTemplate.from_folder(folder, special_tokens=tokenizer.special_tokens)
        settings = _settings(folder, "image_processor")
        if not settings:
            return cls(tokenizer, template, limits=limits)
        pictures = PatchConfig.from_json(settings)
        model_type = read_json(folder / "config.json").get("model_type")
        total_tokens = VIDEO_TOKENS.get(str(model_type), DEFAULT_VIDEO_TOKENS)
        processor = cls(
            tokenizer,
            template,
            pictures.within(min_pixels=min_pixels, max_pixels=max_pixels),
            videos=VideoConfig(patches=pictures, total_tokens=total_tokens),
            limits=limits,
        )
        if processor.pads.sound is not None:
            processor.sounds = MelConfig.from_json(_settings(folder, "feature_extractor"))
        return processor

    @classmethod
    def _first_generation(
        cls, folder: Path, tokenizer: Tokenizer, limits: MediaLimits | None
    ) -> Self:
        """Load a checkpoint of the first generation: its template and prompt rules are ours."""
        chat_format = read_chat_format(folder)
        visual = read_json(folder / "config.json").get("visual")
        pictures = SquareConfig.from_json(visual) if visual else None
        num_slots = pictures.n_queries if pictures else 1
        processor = cls(
            tokenizer,
            ChatTemplate(template_source(chat_format), special_tokens=tokenizer.special_tokens),
            pictures,
            encode=partial(encode_first_generation, tokenizer, num_slots=num_slots),
            limits=limits,
        )
        processor.extra_stop_ids = stop_token_ids(tokenizer, chat_format)
        return processor

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        allow_files: bool = True,
        max_prompt_tokens: int | None = None,
    ) -> ModelInputs:
        """Read messages into token ids, pixel rows and mel frames.

        Args:
            messages: OpenAI chat messages; where the last is an assistant's and `partial`, its text
                is the beginning of the answer, which goes on without thinking.
            tools: OpenAI function tools, shown to the model by its template, or where that knows
                of none, in the words of Qwen2.5's.
            add_generation_prompt: end with the opening of the assistant's turn.
            enable_thinking: passed to templates that know it; None leaves their default.
            allow_files: whether texts may name pictures, videos, sounds and documents by a local
                path; a Path always may.
            max_prompt_tokens: where a prompt is longer, its documents are shortened to the
                passages that matter for the question, and the notes say so; None leaves them whole.

        Raises:
            InputError: a message is outside the form; MediaError for its pictures and the like.
        """
        media = Media(
            Senses(self.pictures, self.videos, self.sounds),
            self.limits,
            allow_files=allow_files,
            prepared=self._prepared,
            control_words=self.tokenizer.control_words,
        )
        reader = MessageReader(self.template, media)
        plain = reader.read(messages)
        refuse_placeholders([plain, list(tools or ())], self._placeholders)
        begun = take_begun(plain)
        if begun is not None:
            if enable_thinking:
                raise InputError("A partial message goes on without enable_thinking; leave it out.")
            enable_thinking = False if self.template.takes_thinking else None
        variables = {} if enable_thinking is None else {"enable_thinking": enable_thinking}

        def render(plain: list[dict[str, Any]]) -> str:
            if not self.template.takes_tools:
                plain = write_tools(plain, tools, self.template)
            prompt = self.template.render(
                reader.for_template(plain),
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
            return prompt if begun is None else _after_thinking(prompt) + begun

        if max_prompt_tokens is not None:
            fit_documents(
                plain,
                media,
                measure=lambda plain: len(self._widen(self._encode(render(plain)), media)),
                max_tokens=max_prompt_tokens,
                count=lambda text: len(self.tokenizer.encode(text)),
            )
        prompt, heard = render(plain), media.heard_frames
        return ModelInputs(
            self._widen(self._encode(prompt), media),
            media.rows(),
            tuple(item.grid for item in media.seen_items),
            media.second_per_grid_ts,
            media.seen,
            is_thinking=(
                add_generation_prompt and begun is None and prompt.rstrip().endswith(THINK_START)
            ),
            begun=begun,
            input_features=np.concatenate(heard) if heard else None,
            num_audio_frames=tuple(len(frames) for frames in heard),
        )

    def seen_wh(self, photo_wh: tuple[int, int]) -> tuple[int, int]:
        """Tell in which size (width, height) the model sees a picture of that size."""
        if self.pictures is None:
            raise InputError("This model reads text only; it sees no pictures.")
        return self.pictures.seen_size(*photo_wh)

    @property
    def _placeholders(self) -> tuple[str, ...]:
        if isinstance(self.pictures, SquareConfig):
            return ()  # texts are searched for them with their tags, in `Media.add_text`
        return self.pads.words

    def _widen(self, token_ids: list[int], media: Media) -> list[int]:
        """Widen each placeholder to the tokens that its picture, video or sound takes."""
        if isinstance(self.pictures, SquareConfig):  # encoding has widened them
            return token_ids
        return self.pads.widen(token_ids, media.items)


def _after_thinking(prompt: str) -> str:
    """Close a reasoning that a template has opened unasked, as if nothing was thought."""
    if not prompt.rstrip().endswith(THINK_START):
        return prompt
    return f"{prompt.rstrip()}\n\n{THINK_END}\n\n"


def _settings(folder: Path, part: str) -> dict[str, Any]:
    """Read preprocessor_config.json, or a part of processor_config.json."""
    settings = read_json(folder / "preprocessor_config.json")
    if settings:
        return settings
    combined: dict[str, Any] = read_json(folder / "processor_config.json").get(part, {})
    return combined
