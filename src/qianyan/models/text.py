"""The text decoder of Qwen2, Qwen2.5, QwQ and Qwen3, dense and mixture of experts.

Source: Qwen2 technical report (arXiv 2407.10671), section 2.2; Qwen3 technical report (arXiv
2505.09388), section 2. Pre-norm, grouped-query attention, SwiGLU, rotary positions. Everything is
packed: hidden states are `(tokens, hidden)`, sequences lie one after another and only the cache
knows where one ends.

Qwen3 against Qwen2 and Qwen2.5:
- query, key and value have no bias;
- each head's query and key pass an RMSNorm before they are rotated;
- `head_dim` is stated, and heads x head_dim may differ from the hidden size;
- some sizes replace the feed-forward by a router and experts (`Qwen3MoeForCausalLM`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qianyan.errors import ConfigError
from qianyan.models.attention import KVCache
from qianyan.models.config import (
    MAX_EXPERTS,
    MAX_LAYERS,
    require_at_most,
    require_booleans,
    require_multiple,
    require_positive_integers,
    require_positive_numbers,
    require_silu,
)
from qianyan.models.language_model import fill_rows, refuse_pictures
from qianyan.models.layers import MLP, Linear, RMSNorm
from qianyan.models.positions import Grid, Positions, plain_positions
from qianyan.models.rope import Rope, RopeScaling, inverse_frequencies, rotate, text_rope


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """The mixture of experts, named as in config.json.

    A layer has experts when its number + 1 is a multiple of `decoder_sparse_step` and it is not
    among `mlp_only_layers`.
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_positive_integers(
            self,
            "num_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "decoder_sparse_step",
        )
        require_booleans(self, "norm_topk_prob")
        require_at_most(self, "num_experts", MAX_EXPERTS)
        if self.num_experts_per_tok > self.num_experts:
            raise ConfigError(
                f"num_experts_per_tok is {self.num_experts_per_tok}; "
                f"expected at most num_experts ({self.num_experts})."
            )

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Decoder hyper-parameters, named as in config.json.

    `attention_bias` and `qk_norm` are facts of the generation, which config.json does not state.
    Layers from `max_window_layers` on see `sliding_window` tokens where `use_sliding_window` is
    on; no released model has it on.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling
    attention_bias: bool
    qk_norm: bool
    head_dim: int
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    use_sliding_window: bool = False
    sliding_window: int | None = None
    max_window_layers: int = 0
    moe: MoeConfig | None = None

    def __post_init__(self) -> None:
        require_positive_integers(
            self,
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "head_dim",
        )
        require_at_most(self, "num_hidden_layers", MAX_LAYERS)
        require_positive_numbers(self, "rms_norm_eps", "rope_theta")
        require_multiple(self, "num_attention_heads", "num_key_value_heads")
        require_booleans(
            self, "tie_word_embeddings", "attention_bias", "qk_norm", "use_sliding_window"
        )
        require_silu(self.hidden_act)
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; expected an even number.")
        if self.use_sliding_window:
            require_positive_integers(self, "sliding_window")
        section = self.rope_scaling.mrope_section
        if section is not None and 2 * sum(section) != self.head_dim:
            raise ConfigError(
                f"mrope_section is {section}; "
                f"expected a sum of {self.head_dim / 2:g}, half of the head_dim {self.head_dim}."
            )

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together; YaRN stretches what was trained."""
        scaling = self.rope_scaling
        stretched = scaling.factor * (scaling.original_max_position_embeddings or 0)
        return max(self.max_position_embeddings, int(stretched))

    def window(self, layer: int) -> int | None:
        """Give the number of tokens that a layer sees; None is all of them."""
        if self.use_sliding_window and layer >= self.max_window_layers:
            return self.sliding_window
        return None


class Attention(nn.Module):
    """Grouped-query self-attention (Qwen2 report, section 2.2; norms: Qwen3 report, section 2)."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.window = layer, config.head_dim, config.window(layer)
        query_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        bias = config.attention_bias
        self.q_proj = Linear(config.hidden_size, query_size, bias=bias)
        self.k_proj = Linear(config.hidden_size, kv_size, bias=bias)
        self.v_proj = Linear(config.hidden_size, kv_size, bias=bias)
        self.o_proj = Linear(query_size, config.hidden_size, bias=False)
        eps = config.rms_norm_eps
        self.q_norm = RMSNorm(config.head_dim, eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, eps) if config.qk_norm else nn.Identity()

    def forward(self, hidden: Tensor, rope: Rope, cache: KVCache) -> Tensor:
        """Map (tokens, hidden) to (tokens, hidden)."""
        query = self.q_proj(hidden).unflatten(-1, (-1, self.head_dim))  # (tokens, heads, head_dim)
        key = self.k_proj(hidden).unflatten(-1, (-1, self.head_dim))  # (tokens, kv_heads, head_dim)
        value = self.v_proj(hidden).unflatten(-1, (-1, self.head_dim))  # (tokens, kv_heads, …)
        query, key = rotate(self.q_norm(query), *rope), rotate(self.k_norm(key), *rope)
        attended = cache.attend(self.layer, query, key, value, window=self.window)
        out: Tensor = self.o_proj(attended.flatten(-2))  # (tokens, hidden)
        return out


class SparseMoeBlock(nn.Module):
    """A router and its experts: each token passes the likeliest few (Qwen3 report, section 2)."""

    def __init__(self, hidden_size: int, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Linear(hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(
            MLP(hidden_size, config.moe_intermediate_size, bias=False)
            for _ in range(config.num_experts)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (tokens, hidden) to (tokens, hidden)."""
        weights = self.gate(hidden).softmax(dim=-1, dtype=torch.float32)  # (tokens, experts)
        weights, chosen = weights.topk(self.config.num_experts_per_tok)  # (tokens, picked)
        if self.config.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        weights = weights.to(hidden.dtype)
        out = torch.zeros_like(hidden)
        # Only experts that some token chose are run: decoding reads few of the weights.
        for index in chosen.unique().tolist():
            token, place = (chosen == index).nonzero(as_tuple=True)
            expert_out = self.experts[index](hidden[token]) * weights[token, place].unsqueeze(-1)
            out.index_add_(0, token, expert_out)
        return out


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each added to what it was given."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = (
            SparseMoeBlock(config.hidden_size, config.moe)
            if config.moe is not None and config.moe.is_sparse(layer)
            else MLP(config.hidden_size, config.intermediate_size, bias=False)
        )
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden: Tensor, rope: Rope, cache: KVCache, *, kept: Tensor | None = None
    ) -> Tensor:
        """Map (tokens, hidden) to (tokens, hidden), or to the rows that `kept` picks."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rope, cache)
        if kept is not None:
            hidden = hidden[kept]
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class TextModel(nn.Module):
    """The decoder without its output matrix."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden: Tensor, position_ids: Tensor, cache: KVCache, kept: Tensor | None = None
    ) -> Tensor:
        """Map embedded tokens (tokens, hidden) at (axes, tokens) to final hidden states.

        `kept` picks the tokens whose states are wanted; None is all. Of the others the last layer
        computes keys and values alone.
        """
        rope = self.rope(position_ids.to(hidden.device))
        *layers, last = self.layers
        for layer in layers:
            hidden = layer(hidden, rope, cache)
        hidden = last(hidden, rope, cache, kept=kept)
        out: Tensor = self.norm(hidden)
        return out

    def rope(self, position_ids: Tensor) -> Rope:
        """Give cosine and sine, (tokens, 1, head_dim/2), for (axes, tokens) positions."""
        config = self.config
        inv_freq = inverse_frequencies(
            config.head_dim, config.rope_theta, config.rope_scaling, position_ids.device
        )
        return text_rope(position_ids, inv_freq, config.rope_scaling)


class CausalLM(nn.Module):
    """The decoder and its output matrix: Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM.

    A `LanguageModel` that reads text only.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.model = TextModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def max_position_embeddings(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.config.max_model_len

    def place(
        self,
        input_ids: Sequence[int],
        grid_thw: Sequence[Grid] = (),
        second_per_grid_ts: Sequence[float] = (),
    ) -> Positions:
        """Count the tokens; there are no pictures to place."""
        if grid_thw or second_per_grid_ts:
            raise refuse_pictures()
        return plain_positions(len(input_ids))

    def vision_rows(self, input_ids: Tensor) -> Tensor:
        """Give no rows."""
        return input_ids.new_empty(0)

    def encode_images(self, pixel_values: Tensor, grid_thw: Sequence[Grid]) -> Tensor:
        """Refuse."""
        del pixel_values, grid_thw
        raise refuse_pictures()

    def embed(self, input_ids: Tensor, vision_features: Tensor | None = None) -> Tensor:
        """Give the word embeddings, (tokens, hidden)."""
        hidden: Tensor = self.model.embed_tokens(input_ids)
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
        """Map embedded tokens (tokens, hidden) at (1, tokens) to float32 logits (n, vocab)."""
        logits: Tensor = self.lm_head(self.model(hidden, position_ids, cache, logits_at))
        return logits.float()
