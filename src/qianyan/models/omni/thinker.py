"""Qwen2.5-Omni's Thinker: eyes and ears in front of a decoder that answers in text.

Source: Qwen2.5-Omni (arXiv 2503.20215, section 2). Against Qwen2.5-VL (`vision_language.py`):
- the tower's query, key and value are separate matrices;
- an audio encoder gives a token for each 40 ms of sound (`audio_encoder.py`);
- the time axis counts 40 ms steps, for sound and videos alike (`positions.py`).

The model's other half speaks: it reads the decoder's last hidden states, `thinker.model(...)`, and
its input embeddings, `thinker.embed(...)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from qianyan.errors import ConfigError
from qianyan.models import qwen2_5_vl
from qianyan.models.config import build
from qianyan.models.flatten import json_object, stated, text_config, vision_fields
from qianyan.models.language_model import fill_rows
from qianyan.models.omni.audio_encoder import AudioConfig, AudioEncoder
from qianyan.models.omni.positions import OmniGrids, OmniTokens, tmrope_position_ids
from qianyan.models.positions import Grid, Positions, continue_after_largest
from qianyan.models.vision_language import VisionLanguageConfig, VisionLanguageModel

TOKEN_IDS = {
    "image_token_id": ("image_token_index", 151655),
    "video_token_id": ("video_token_index", 151656),
    "audio_token_id": ("audio_token_index", 151646),
    "audio_start_token_id": ("audio_start_token_id", 151647),
    "audio_end_token_id": ("audio_end_token_id", 151648),
    "vision_start_token_id": ("vision_start_token_id", 151652),
}
"""Our names, config.json's (either may be used) and the ids of the released vocabulary."""
IDS_PER_SECOND = 25  # of the released models


@dataclass(frozen=True, kw_only=True)
class ThinkerConfig(VisionLanguageConfig):
    """The whole Thinker: text, vision, sound and the tokens that stand for what is no text."""

    vision: qwen2_5_vl.VisionConfig
    audio: AudioConfig
    audio_token_id: int
    audio_start_token_id: int
    audio_end_token_id: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.audio.output_dim != self.text.hidden_size:
            raise ConfigError(
                f"audio output_dim is {self.audio.output_dim}; "
                f"expected the text hidden_size, {self.text.hidden_size}."
            )
        for name in ("audio_token_id", "audio_start_token_id", "audio_end_token_id"):
            self.require_token(name)

    @property
    def tokens(self) -> OmniTokens:
        """The ids that positions depend on."""
        return OmniTokens(
            image=self.image_token_id,
            video=self.video_token_id,
            audio=self.audio_token_id,
            audio_start=self.audio_start_token_id,
            audio_end=self.audio_end_token_id,
        )


def omni_config(data: Mapping[str, Any]) -> ThinkerConfig:
    """Make the Thinker's config from the config.json of a whole Qwen2.5-Omni."""
    thinker = json_object(data, "thinker_config")
    if not thinker:
        raise ConfigError("config.json has no thinker_config; a Qwen2.5-Omni model needs it.")
    return thinker_config(thinker)


def thinker_config(data: Mapping[str, Any]) -> ThinkerConfig:
    """Make the Thinker's config from a config.json of its own, or its part of the whole."""
    # Only the Thinker's own word counts: its text object repeats a class default.
    tied = {"tie_word_embeddings": data.get("tie_word_embeddings") or False}
    text = text_config({**data, **tied}, attention_bias=True, qk_norm=False)
    vision = {**vision_fields(data), "splits_qkv": True}
    vision["tokens_per_second"] = data.get("position_id_per_seconds", IDS_PER_SECOND)
    audio = stated(json_object(data, "audio_config"))
    return ThinkerConfig(
        text=text,
        vision=build(qwen2_5_vl.VisionConfig, vision, where="vision_config"),
        audio=build(AudioConfig, audio, where="audio_config"),
        **{
            ours: next((data[name] for name in (ours, theirs) if data.get(name) is not None), usual)
            for ours, (theirs, usual) in TOKEN_IDS.items()
        },
    )


def tie_as_saved(config: ThinkerConfig, names: Mapping[str, object]) -> ThinkerConfig:
    """Share the output matrix with the embeddings where a checkpoint holds none of its own."""
    is_tied = not any(name.endswith("lm_head.weight") for name in names)
    return replace(config, text=replace(config.text, tie_word_embeddings=is_tied))


class Thinker(VisionLanguageModel):
    """The towers, the decoder and the output matrix; a `LanguageModel` that also hears.

    Qwen2_5OmniThinkerForConditionalGeneration, and the `thinker` of the whole model.
    """

    config: ThinkerConfig

    def __init__(self, config: ThinkerConfig) -> None:
        super().__init__(config)
        self.audio_tower = AudioEncoder(config.audio)

    def place(
        self,
        input_ids: Sequence[int],
        grid_thw: Sequence[Grid] = (),
        second_per_grid_ts: Sequence[float] = (),
    ) -> Positions:
        """Give the time, height and width position of each token of one prompt (3 axes).

        Generated tokens continue at 1 + the largest position, on all axes. Raises InputError when
        tokens, grids and times do not agree.
        """
        grids = OmniGrids(
            grid_thw=grid_thw,
            second_per_grid_ts=second_per_grid_ts,
            merge=self.config.vision.spatial_merge_size,
            ids_per_second=self.config.vision.tokens_per_second,
        )
        return continue_after_largest(tmrope_position_ids(input_ids, self.config.tokens, grids))

    def audio_rows(self, input_ids: Tensor) -> Tensor:
        """Give the rows that stand for sound, in order, (tokens,)."""
        return (input_ids == self.config.audio_token_id).nonzero().squeeze(-1)

    def encode_audio(self, input_features: Tensor, num_frames: Sequence[int]) -> Tensor:
        """Map the packed mel frames of sounds, (frames, mel), to their tokens (tokens, hidden).

        `num_frames` are the sounds' frame counts. Raises InputError when the two do not agree.
        """
        features: Tensor = self.audio_tower(input_features, num_frames)
        return features

    def embed(
        self,
        input_ids: Tensor,
        vision_features: Tensor | None = None,
        audio_features: Tensor | None = None,
    ) -> Tensor:
        """Give (tokens, hidden): word embeddings, with features at the places held for them.

        Raises InputError when there are more or fewer features of a kind than places.
        """
        hidden = super().embed(input_ids, vision_features)
        if audio_features is None:
            return hidden
        return fill_rows(hidden, self.audio_rows(input_ids), audio_features)
