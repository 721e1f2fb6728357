"""One picture, video or sound as a model reads it, and the tokens it takes in a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from qianyan.errors import InputError
from qianyan.inputs.interleaving import interleave
from qianyan.inputs.mel import MelConfig
from qianyan.inputs.patches import GridTHW
from qianyan.inputs.tokenizer import Tokenizer

IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
OMNI_IMAGE, OMNI_VIDEO, OMNI_AUDIO = "<|IMAGE|>", "<|VIDEO|>", "<|AUDIO|>"
OMNI_SOUND_MARKS = ("<|audio_bos|>", "<|audio_eos|>")
"""Qwen2.5-Omni's words for the same tokens, and for those about sound."""

Kind = Literal["image", "video", "audio"]


@dataclass(frozen=True)
class Heard:
    """One sound as log-mel frames, (frames, feature_size) float32."""

    frames: np.ndarray

    @property
    def kind(self) -> Kind:
        """What it is."""
        return "audio"

    @property
    def num_tokens(self) -> int:
        """Tokens that it takes."""
        return MelConfig.num_tokens(len(self.frames))


@dataclass(frozen=True)
class Medium:
    """One picture or video, cut into float32 rows as the model reads them.

    `num_tokens` is what it takes in the prompt, its sound not counted. `second_per_grid_t` is the
    time between two temporal patches of a video, None for a picture; `heard` is a video's sound.
    """

    rows: np.ndarray
    grid: GridTHW
    num_tokens: int
    second_per_grid_t: float | None = None
    heard: Heard | None = None

    @property
    def kind(self) -> Kind:
        """What it is: what moves is a video."""
        return "image" if self.second_per_grid_t is None else "video"


@dataclass(frozen=True, kw_only=True)
class SoundPads:
    """The tokens of sound: its places, and what stands before and after a video's own."""

    audio: int
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Pads:
    """The tokens that hold the places of media; None where a vocabulary has none.

    `words` are what no text may spell, that of pictures first.
    """

    words: tuple[str, ...]
    image: int | None
    video: int | None
    sound: SoundPads | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Find them in a checkpoint's vocabulary."""
        find = tokenizer.token_id
        if find(OMNI_IMAGE) is None:
            words = (IMAGE_PAD, VIDEO_PAD)
            return cls(words=words, image=find(IMAGE_PAD), video=find(VIDEO_PAD))
        audio, start, end = (find(word) for word in (OMNI_AUDIO, *OMNI_SOUND_MARKS))
        sound = None
        if audio is not None and start is not None and end is not None:
            sound = SoundPads(audio=audio, start=start, end=end)
        return cls(
            words=(OMNI_IMAGE, OMNI_VIDEO, OMNI_AUDIO),
            image=find(OMNI_IMAGE),
            video=find(OMNI_VIDEO),
            sound=sound,
        )

    def widen(self, token_ids: list[int], items: Sequence[Medium | Heard]) -> list[int]:
        """Widen each place to the tokens that its item takes.

        Raises InputError when places and items do not agree.
        """
        kinds: dict[int | None, Kind] = {self.image: "image", self.video: "video"}
        if self.sound is not None:
            kinds[self.sound.audio] = "audio"
        places = [kinds[token_id] for token_id in token_ids if token_id in kinds]
        if places != [item.kind for item in items]:
            raise InputError(
                f"The prompt has {len(places)} places for {len(items)} pictures, videos and "
                "sounds; the chat template drops some in this position, or a text spells "
                f"{self.words[0]}."
            )
        left = iter(items)
        widened: list[int] = []
        for token_id in token_ids:
            widened += self._run(next(left), token_id) if token_id in kinds else [token_id]
        return widened

    def _run(self, item: Medium | Heard, pad: int) -> list[int]:
        """List the tokens that stand for an item in place of its `pad`."""
        if isinstance(item, Heard) or item.heard is None or self.sound is None:
            return [pad] * item.num_tokens
        mixed = interleave(
            num_moments=item.grid[0],
            tokens_per_moment=item.num_tokens // item.grid[0],
            second_per_grid_t=item.second_per_grid_t or 0.0,
            num_audio_tokens=item.heard.num_tokens,
        )
        run = [pad if is_video else self.sound.audio for is_video in mixed]
        return [self.sound.start, *run, self.sound.end]
