"""The first generation: Qwen-1.8B to 72B, and Qwen-VL with the eyes of qwen_vl.py.

Source: Qwen technical report (arXiv 2309.16609), section 2.3; Qwen-VL (arXiv 2308.12966). Modules
are named as in the checkpoints. Against Qwen2:

- query, key and value come out of one matrix, `c_attn`, in three blocks; every head has its own
  key and value;
- `w2` is the gate of the feed-forward and `w1` what it lets through; config.json's
  `intermediate_size` is the sum of both widths;
- prompts longer than `seq_length` turn more slowly ("dynamic NTK"): how much is decided by the
  prompt's length and stays so for its answer;
- queries beyond `seq_length` are scaled by the logarithm of their position ("log-n");
- a picture fills the slots between <img> and </img>, and its tokens count like words.

So a position has two axes here: where a token stands, and how long its prompt was. Everything is
packed, `(tokens, hidden)`. Both stretchings are always on: released training code turns them off,
and never goes beyond `seq_length`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from qianyan.errors import ConfigError, InputError, quote
from qianyan.models.attention import KVCache
from qianyan.models.config import (
    MAX_LAYERS,
    build,
    require_at_most,
    require_booleans,
    require_multiple,
    require_positive_integers,
    require_positive_numbers,
)
from qianyan.models.flatten import json_object, stated
from qianyan.models.language_model import fill_rows, refuse_pictures
from qianyan.models.layers import Linear, RMSNorm
from qianyan.models.positions import Grid, Positions
from qianyan.models.qwen_vl import VisionTransformer, VisualConfig
from qianyan.models.rope import Rope, rotate


@dataclass(frozen=True, kw_only=True)
class QWenConfig:
    """Hyper-parameters of the whole model, named as in config.json; `visual` is None for text."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    kv_channels: int
    max_position_embeddings: int
    seq_length: int
    layer_norm_epsilon: float
    rotary_emb_base: float
    use_dynamic_ntk: bool
    use_logn_attn: bool
    no_bias: bool = True
    rotary_pct: float = 1.0
    tie_word_embeddings: bool = False
    visual: VisualConfig | None = None

    def __post_init__(self) -> None:
        require_positive_integers(
            self,
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "kv_channels",
            "max_position_embeddings",
            "seq_length",
        )
        require_at_most(self, "num_hidden_layers", MAX_LAYERS)
        require_positive_numbers(self, "layer_norm_epsilon", "rotary_emb_base")
        require_booleans(self, "use_dynamic_ntk", "use_logn_attn", "no_bias", "tie_word_embeddings")
        require_multiple(self, "hidden_size", "num_attention_heads")
        self._require_what_was_released()
        if self.visual is not None:
            self._require_fitting_eyes(self.visual)

    def _require_what_was_released(self) -> None:
        """Refuse what the architecture's code can do and no checkpoint does."""
        if self.rotary_pct != 1:
            raise ConfigError(
                f"rotary_pct is {quote(self.rotary_pct)}; expected 1, as in every released model."
            )
        if not self.no_bias:
            raise ConfigError("no_bias is false; expected true, as in every released model.")
        if self.kv_channels * self.num_attention_heads != self.hidden_size:
            raise ConfigError(
                f"kv_channels is {self.kv_channels}; expected hidden_size / num_attention_heads "
                f"({self.hidden_size} / {self.num_attention_heads})."
            )
        if self.kv_channels % 2 or self.kv_channels < 4:
            raise ConfigError(
                f"kv_channels is {self.kv_channels}; expected an even number of at least 4."
            )
        if self.intermediate_size % 2:
            raise ConfigError(
                f"intermediate_size is {self.intermediate_size}; "
                "expected an even number: it counts w1 and w2 together."
            )
        if self.seq_length < 2:
            raise ConfigError(f"seq_length is {self.seq_length}; expected at least 2.")

    def _require_fitting_eyes(self, visual: VisualConfig) -> None:
        if visual.output_dim != self.hidden_size:
            raise ConfigError(
                f"visual output_dim is {visual.output_dim}; "
                f"expected the text hidden_size, {self.hidden_size}."
            )
        if visual.image_start_id + 2 >= self.vocab_size:
            raise ConfigError(
                f"visual image_start_id is {visual.image_start_id}; expected it and the two ids "
                f"after it below vocab_size ({self.vocab_size})."
            )

    @property
    def mlp_width(self) -> int:
        """Width of w1, and of w2."""
        return self.intermediate_size // 2


def qwen_config(data: Mapping[str, Any]) -> QWenConfig:
    """Make a config from config.json's object."""
    fields = stated(data)
    visual = stated(json_object(data, "visual"))
    fields["visual"] = build(VisualConfig, visual, where="visual") if visual else None
    return build(QWenConfig, fields, where="config.json")


def ignored_tensors(config: QWenConfig) -> frozenset[str]:
    """Name the constants that some checkpoints carry along; this code computes them."""
    parts = ("masked_bias", "bias", "rotary_emb.inv_freq")
    layers = range(config.num_hidden_layers)
    return frozenset(f"transformer.h.{layer}.attn.{part}" for layer in layers for part in parts) | {
        "transformer.rotary_emb.inv_freq"
    }


def stretched_rope(position_ids: Tensor, config: QWenConfig) -> Rope:
    """Give cosine and sine, (tokens, 1, head_dim/2) float32, for (2, tokens) positions.

    With dynamic NTK a prompt of up to 2, 4, 8 … times `seq_length` takes the base of one that is
    3, 7, 15 … times as long as what the model was trained on.
    """
    positions, prompt_lengths = position_ids
    head_dim = config.kv_channels
    exponents = torch.arange(0, head_dim, 2, device=positions.device) / head_dim
    alpha = torch.ones_like(positions, dtype=torch.float32)
    if config.use_dynamic_ntk:
        # The exponent of frexp is the bit length: how often the trained length has to double.
        whole = (prompt_lengths - 1).div(config.seq_length, rounding_mode="floor")
        doublings = torch.frexp(whole.float()).exponent  # (tokens,)
        alpha = (2.0 ** (doublings + 1) - 1).float()
    base = config.rotary_emb_base * alpha ** (head_dim / (head_dim - 2))
    inv_freq = 1 / base.unsqueeze(-1) ** exponents  # (tokens, head_dim/2)
    angles = (positions.float().unsqueeze(-1) * inv_freq).unsqueeze(1)  # (tokens, 1, head_dim/2)
    return angles.cos(), angles.sin()


def logn_scale(position_ids: Tensor, config: QWenConfig) -> Tensor:
    """Give the factor on each query, (tokens, 1, 1) float32: 1 up to `seq_length`.

    Beyond it log(n) / log(seq_length) for the n-th token, so that attention over more keys stays
    as sharp as it was in training.
    """
    nth = (position_ids[0] + 1).float()
    scale = nth.clamp(min=config.seq_length).log() / math.log(config.seq_length)
    if not config.use_logn_attn:
        scale = torch.ones_like(scale)
    return scale.view(-1, 1, 1)  # (tokens, 1, 1)


class Attention(nn.Module):
    """Multi-head self-attention; only `c_attn` has a bias."""

    def __init__(self, config: QWenConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.kv_channels
        self.c_attn = Linear(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, rope: Rope, scale: Tensor, cache: KVCache) -> Tensor:
        """Map (tokens, hidden) to (tokens, hidden); `scale` is on the query, after its rotation."""
        heads = self.c_attn(hidden).unflatten(-1, (3, -1, self.head_dim))  # (tokens, 3, heads, …)
        query, key, value = heads.unbind(1)  # (tokens, heads, head_dim)
        query = rotate(query, *rope) * scale.to(query.dtype)
        attended = cache.attend(self.layer, query, rotate(key, *rope), value)
        out: Tensor = self.c_proj(attended.flatten(-2))  # (tokens, hidden)
        return out


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202) with the gate in `w2`."""

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        self.w1 = Linear(config.hidden_size, config.mlp_width, bias=False)
        self.w2 = Linear(config.hidden_size, config.mlp_width, bias=False)
        self.c_proj = Linear(config.mlp_width, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (tokens, hidden) to (tokens, hidden)."""
        out: Tensor = self.c_proj(self.w1(hidden) * silu(self.w2(hidden)))
        return out


class Block(nn.Module):
    """Attention and feed-forward, each added to what it was given."""

    def __init__(self, config: QWenConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = FeedForward(config)

    def forward(self, hidden: Tensor, rope: Rope, scale: Tensor, cache: KVCache) -> Tensor:
        """Map (tokens, hidden) to (tokens, hidden)."""
        hidden = hidden + self.attn(self.ln_1(hidden), rope, scale, cache)
        out: Tensor = hidden + self.mlp(self.ln_2(hidden))
        return out


class QWenModel(nn.Module):
    """The decoder without its output matrix, and the eyes of a model that has them."""

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        if config.visual is not None:
            self.visual = VisionTransformer(config.visual)

    def forward(self, hidden: Tensor, position_ids: Tensor, cache: KVCache) -> Tensor:
        """Map embedded tokens (tokens, hidden) at positions (2, tokens) to final hidden states."""
        position_ids = position_ids.to(hidden.device)
        rope = stretched_rope(position_ids, self.config)
        scale = logn_scale(position_ids, self.config)
        for block in self.h:
            hidden = block(hidden, rope, scale, cache)
        out: Tensor = self.ln_f(hidden)
        return out


class QWenLMHeadModel(nn.Module):
    """The decoder, the output matrix and, in Qwen-VL, the eyes; a `LanguageModel`."""

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = QWenModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    @property
    def max_position_embeddings(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.config.max_position_embeddings

    def place(
        self,
        input_ids: Sequence[int],
        grid_thw: Sequence[Grid] = (),
        second_per_grid_ts: Sequence[float] = (),
    ) -> Positions:
        """Give each token its position and the length of its prompt, (2, tokens).

        Generated tokens count on and keep the prompt's length. Raises InputError when there are
        more or fewer grids than pictures, and for videos.
        """
        if second_per_grid_ts:
            raise InputError("This model sees no videos; send single frames as pictures.")
        if self.config.visual is None:
            if grid_thw:
                raise refuse_pictures()
        else:
            self._check_pictures(list(input_ids).count(self.config.visual.image_start_id), grid_thw)
        length = len(input_ids)
        prompt = torch.stack((torch.arange(length), torch.full((length,), length)))
        return Positions(prompt, torch.tensor([length, length]), torch.tensor([1, 0]))

    def _check_pictures(self, count: int, grid_thw: Sequence[Grid]) -> None:
        """Raise InputError unless there is one square grid for each of `count` pictures."""
        assert self.config.visual is not None
        side = self.config.visual.grid_side
        if len(grid_thw) != count:
            raise InputError(
                f"The prompt holds {count} pictures and {len(grid_thw)} grids were given; "
                "expected one grid for each."
            )
        for grid in grid_thw:
            if tuple(grid) != (1, side, side):
                t, h, w = grid
                raise InputError(
                    f"Grid is {t} x {h} x {w} patches; expected 1 x {side} x {side} for every "
                    "picture of this model."
                )

    def vision_rows(self, input_ids: Tensor) -> Tensor:
        """Give the rows strictly between <img> and </img>, in order, (pictures*n_queries,).

        Raises InputError unless every pair has exactly `n_queries` slots between.
        """
        visual = self.config.visual
        if visual is None:
            return torch.zeros(0, dtype=torch.long, device=input_ids.device)
        starts = (input_ids == visual.image_start_id).nonzero().squeeze(-1)  # (pictures,)
        ends = (input_ids == visual.image_start_id + 1).nonzero().squeeze(-1)
        if len(starts) != len(ends) or bool((ends - starts != visual.n_queries + 1).any()):
            raise InputError(
                f"The prompt holds {len(starts)} <img> and {len(ends)} </img>; expected pairs "
                f"with {visual.n_queries} slots between <img> and </img>."
            )
        slots = torch.arange(1, visual.n_queries + 1, device=input_ids.device)
        return (starts.unsqueeze(1) + slots).flatten()  # (pictures*n_queries,)

    def encode_images(self, pixel_values: Tensor, grid_thw: Sequence[Grid]) -> Tensor:
        """Map (pictures, 3, image_size, image_size) to (pictures*n_queries, hidden).

        Raises InputError when pictures and grids do not agree, or the model reads text only.
        """
        visual = self.config.visual
        if visual is None:
            raise refuse_pictures()
        expected = (len(grid_thw), 3, visual.image_size, visual.image_size)
        if not grid_thw or tuple(pixel_values.shape) != expected:
            raise InputError(
                f"pixel_values is {tuple(pixel_values.shape)}; expected {expected} "
                f"for {len(grid_thw)} grids."
            )
        self._check_pictures(len(pixel_values), grid_thw)
        features: Tensor = self.transformer.visual(pixel_values)
        return features

    def embed(self, input_ids: Tensor, vision_features: Tensor | None = None) -> Tensor:
        """Give (tokens, hidden): word embeddings, with features in the slots of pictures.

        Features fill the slots in order of appearance; None leaves them as words, which is right
        for generated tokens only. Raises InputError when the counts differ.
        """
        hidden: Tensor = self.transformer.wte(input_ids)
        if vision_features is None:
            return hidden
        return fill_rows(hidden, self.vision_rows(input_ids), vision_features)

    def forward(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        cache: KVCache,
        logits_at: Tensor | None = None,
    ) -> Tensor:
        """Map embedded tokens (tokens, hidden) at (2, tokens) to float32 logits (n, vocab).

        `logits_at` picks the n tokens to score; None scores all of them.
        """
        hidden = self.transformer(hidden, position_ids, cache)
        if logits_at is not None:
            hidden = hidden[logits_at]
        logits: Tensor = self.lm_head(hidden)
        return logits.float()
