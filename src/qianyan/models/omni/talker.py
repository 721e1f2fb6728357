"""Qwen2.5-Omni's Talker: a decoder that turns what the Thinker thinks into speech codes.

Source: Qwen2.5-Omni (arXiv 2503.20215, section 2.3). Two tracks run side by side. What goes in at
a step is the sum of the code said last and of what the Thinker made of one token of its text: the
last hidden state H and the input embedding X there. All of it is as wide as the Thinker and is
mapped to the decoder's own width first.

1. The prompt: H + X of each token, without X where a picture, video or sound stands.
2. The voice's start token as the Thinker embeds it, and the code "pad".
3. H + X of the answer's first token, and the code "start": here the first code comes out.
4. The code drawn last and the next of: H + X of the answer's other tokens, the embedding of
   "text end", and then that of "text pad" for ever.

The decoder is the text model's, with heads that need not fill its width. Positions are the
Thinker's (`talker_positions`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qianyan.errors import ConfigError
from qianyan.models.attention import KVCache
from qianyan.models.config import require_positive_integers
from qianyan.models.flatten import json_object, text_config
from qianyan.models.layers import Linear
from qianyan.models.positions import Positions, continue_after_largest
from qianyan.models.registry import unfilled
from qianyan.models.text import TextConfig, TextModel
from qianyan.models.weights import load_weights, read_tensors

TOKEN_IDS = {
    "tts_codec_pad_token_id": 8292,
    "tts_codec_start_token_id": 8293,
    "tts_codec_end_token_id": 8294,
    "tts_codec_mask_token_id": 8296,
    "tts_text_pad_token_id": 151859,
    "tts_text_end_token_id": 151861,
}
"""config.json's names, and the ids of the released models."""
NOT_TALKER = ("thinker.", "token2wav.")


@dataclass(frozen=True, kw_only=True)
class TalkerConfig:
    """The Talker, named as in config.json's `talker_config`; `text` is its decoder.

    `embedding_size` is the Thinker's width. Ids of codes count in the Talker's own vocabulary,
    those of texts in the Thinker's.
    """

    text: TextConfig
    embedding_size: int
    tts_codec_pad_token_id: int
    tts_codec_start_token_id: int
    tts_codec_end_token_id: int
    tts_codec_mask_token_id: int
    tts_text_pad_token_id: int
    tts_text_end_token_id: int

    def __post_init__(self) -> None:
        require_positive_integers(self, "embedding_size")
        if self.text.rope_scaling.mrope_section is None:
            raise ConfigError(
                "talker_config has no mrope_section; expected three integers, the frequencies that "
                "follow time, height and width."
            )
        for name in TOKEN_IDS:
            token_id = getattr(self, name)
            is_code = name.startswith("tts_codec")
            if not isinstance(token_id, int) or token_id < 0:
                raise ConfigError(f"{name} is {token_id}; expected the id of a token.")
            if is_code and token_id >= self.text.vocab_size:
                raise ConfigError(
                    f"{name} is {token_id}; "
                    f"expected an id below the Talker's vocab_size ({self.text.vocab_size})."
                )

    @property
    def stop_ids(self) -> frozenset[int]:
        """The codes that end a speech."""
        return frozenset((self.tts_codec_pad_token_id, self.tts_codec_end_token_id))


def talker_config(data: Mapping[str, Any]) -> TalkerConfig:
    """Make the Talker's config from the config.json of a whole Qwen2.5-Omni."""
    talker = json_object(data, "talker_config")
    thinker = json_object(json_object(data, "thinker_config"), "text_config")
    if not talker:
        raise ConfigError("config.json has no talker_config; a model that speaks needs it.")
    width = thinker.get("hidden_size")
    config = TalkerConfig(
        text=text_config(talker, attention_bias=True, qk_norm=False),
        embedding_size=talker.get("embedding_size", width),
        **{
            name: usual if talker.get(name) is None else talker[name]
            for name, usual in TOKEN_IDS.items()
        },
    )
    if config.embedding_size != width:
        raise ConfigError(
            f"talker_config's embedding_size is {config.embedding_size}; "
            f"expected the Thinker's hidden_size, {width}."
        )
    return config


class TalkerModel(TextModel):
    """The decoder; its embeddings are as wide as the Thinker."""

    def __init__(self, config: TalkerConfig) -> None:
        super().__init__(config.text)
        self.embed_tokens = nn.Embedding(config.text.vocab_size, config.embedding_size)


class Talker(nn.Module):
    """The map from the Thinker's width, the decoder and the codes' matrix.

    Qwen2_5OmniTalkerForConditionalGeneration, and the `talker` of the whole model.
    """

    def __init__(self, config: TalkerConfig) -> None:
        super().__init__()
        self.config = config
        self.thinker_to_talker_proj = Linear(config.embedding_size, config.text.hidden_size)
        self.model = TalkerModel(config)
        self.codec_head = Linear(config.text.hidden_size, config.text.vocab_size, bias=False)

    def embed(self, codes: Tensor) -> Tensor:
        """Give the embeddings of codes (tokens,), in the Thinker's width."""
        embedded: Tensor = self.model.embed_tokens(codes)
        return embedded

    def forward(
        self,
        inputs: Tensor,
        position_ids: Tensor,
        cache: KVCache,
        logits_at: Tensor | None = None,
    ) -> Tensor:
        """Map sums of both tracks (tokens, embedding_size) at (3, tokens) to logits (n, codes).

        Logits are float32. `logits_at` picks the n tokens to score; None scores all of them.
        """
        hidden = self.thinker_to_talker_proj(inputs)  # (tokens, hidden)
        logits: Tensor = self.codec_head(self.model(hidden, position_ids, cache, logits_at))
        return logits.float()


def talker_positions(prompt: Positions) -> Positions:
    """Place the Talker's tokens: the Thinker's prompt, the voice's and the answer's first token.

    Codes after them continue as an answer does.
    """
    start = int(prompt.prompt[:, -1].max()) + 1
    both = torch.tensor([start, start + 1]).expand(len(prompt.prompt), -1)
    return continue_after_largest(torch.cat([prompt.prompt, both], dim=1))


def load_talker(
    folder: str | Path, config: TalkerConfig, *, dtype: torch.dtype, device: torch.device
) -> Talker:
    """Load the Talker of a whole Qwen2.5-Omni, ready to run; raises CheckpointError."""
    with unfilled():
        talker = Talker(config)
    load_weights(
        talker,
        read_tensors(folder, skip=NOT_TALKER),
        renames={"talker.": ""},
        dtype=dtype,
        device=device,
    )
    return talker.eval()
