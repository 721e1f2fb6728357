"""The Qwen2.5 text decoder: pre-norm, grouped-query attention, SwiGLU, rotary positions.

Source: Qwen2 technical report (arXiv 2407.10671), section 2.2. Query, key and value have biases,
nothing else has. Everything is packed: hidden states are `(tokens, hidden)`, sequences lie one
after another and only the cache knows where one ends.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from qianyan.errors import ConfigError, quote
from qianyan.models.attention import KVCache
from qianyan.models.config import (
    require_multiple,
    require_positive_integers,
    require_positive_numbers,
    require_silu,
)
from qianyan.models.layers import MLP, RMSNorm
from qianyan.models.rope import Rope, RopeScaling, inverse_frequencies, multimodal_rope, rotate


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Decoder hyper-parameters, named as in config.json."""

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
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"

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
        )
        require_positive_numbers(self, "rms_norm_eps", "rope_theta")
        require_multiple(self, "hidden_size", "num_attention_heads")
        require_multiple(self, "num_attention_heads", "num_key_value_heads")
        require_silu(self.hidden_act)
        if not isinstance(self.tie_word_embeddings, bool):
            raise ConfigError(
                f"tie_word_embeddings is {quote(self.tie_word_embeddings)}; expected true or false."
            )
        if 2 * sum(self.rope_scaling.mrope_section) != self.head_dim:
            raise ConfigError(
                f"mrope_section is {self.rope_scaling.mrope_section}; "
                f"expected a sum of {self.head_dim / 2:g}, half of the head_dim {self.head_dim}."
            )

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.hidden_size // self.num_attention_heads


class Attention(nn.Module):
    """Grouped-query self-attention (Qwen2 report, section 2.2)."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, kv_size)
        self.v_proj = nn.Linear(config.hidden_size, kv_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, rope: Rope, cache: KVCache) -> Tensor:
        """Map (tokens, hidden) to (tokens, hidden)."""
        query = self.q_proj(hidden).unflatten(-1, (-1, self.head_dim))  # (tokens, heads, head_dim)
        key = self.k_proj(hidden).unflatten(-1, (-1, self.head_dim))  # (tokens, kv_heads, head_dim)
        value = self.v_proj(hidden).unflatten(-1, (-1, self.head_dim))  # (tokens, kv_heads, …)
        attended = cache.attend(self.layer, rotate(query, *rope), rotate(key, *rope), value)
        out: Tensor = self.o_proj(attended.flatten(-2))  # (tokens, hidden)
        return out


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each added to what it was given."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, bias=False)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, rope: Rope, cache: KVCache) -> Tensor:
        """Map (tokens, hidden) to (tokens, hidden)."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rope, cache)
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

    def forward(self, hidden: Tensor, position_ids: Tensor, cache: KVCache) -> Tensor:
        """Map embedded tokens (tokens, hidden) at positions (3, tokens) to final hidden states."""
        rope = self.rope(position_ids.to(hidden.device))
        for layer in self.layers:
            hidden = layer(hidden, rope, cache)
        out: Tensor = self.norm(hidden)
        return out

    def rope(self, position_ids: Tensor) -> Rope:
        """Give cosine and sine, (tokens, 1, head_dim/2), for (3, tokens) positions."""
        config = self.config
        inv_freq = inverse_frequencies(
            config.head_dim, config.rope_theta, config.rope_scaling, position_ids.device
        )
        return multimodal_rope(position_ids, inv_freq, config.rope_scaling)
