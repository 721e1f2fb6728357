"""Both forms of config.json for one model become one: flat, with rope settings in one object.

The Hub's is flat: text fields at the top level, `rope_theta` beside `rope_scaling`. Newer tools
nest `text_config` and put the theta into `rope_parameters`. The configs know one form.
"""

from collections.abc import Mapping
from typing import Any

from qianyan.errors import ConfigError, quote
from qianyan.models.config import build, check_positive_integer
from qianyan.models.rope import VISION_ROPE_THETA, RopeScaling
from qianyan.models.text import MoeConfig, TextConfig

ROPE_FIELDS = {
    "type",
    "rope_type",
    "rope_theta",
    "mrope_section",
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "attention_factor",
}


def text_config(
    data: Mapping[str, Any], *, attention_bias: bool, qk_norm: bool, has_experts: bool = False
) -> TextConfig:
    """Make the decoder's config from config.json's object, flat or nested.

    Args:
        data: the whole object.
        attention_bias: whether this generation's query, key and value have biases.
        qk_norm: whether this generation normalises each head's query and key.
        has_experts: whether this architecture has experts; their fields are needed then.
    """
    text = {**data, **json_object(data, "text_config")}
    # Tying is the whole model's matter: the nested text object repeats a class default.
    text["tie_word_embeddings"] = data.get(
        "tie_word_embeddings", text.get("tie_word_embeddings", False)
    )
    if text.get("attention_bias", attention_bias) is not attention_bias:
        raise ConfigError(
            f"attention_bias is {quote(text['attention_bias'])}; "
            f"expected {str(attention_bias).lower()}, as in every released model of this kind."
        )
    rope = json_object(text, "rope_scaling") or json_object(text, "rope_parameters")
    text["rope_theta"] = rope.get("rope_theta", text.get("rope_theta"))
    text["rope_scaling"] = _rope_scaling(rope)
    text |= {"attention_bias": attention_bias, "qk_norm": qk_norm}
    if not text.get("use_sliding_window"):  # the other two are stated all the same, and unused
        text |= {"sliding_window": None, "max_window_layers": 0}
    if text.get("num_experts") is None:  # newer tools' name
        text["num_experts"] = text.get("num_local_experts")
    text["moe"] = build(MoeConfig, stated(text), where="config.json") if has_experts else None
    if text.get("head_dim") is None:
        text["head_dim"] = _head_dim(text.get("hidden_size"), text.get("num_attention_heads"))
    config = build(TextConfig, stated(text), where="config.json")
    _check_layer_types(config, text.get("layer_types"))
    return config


def vision_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """Give the fields of a vision tower by one set of names."""
    vision = dict(json_object(data, "vision_config"))
    if "in_chans" in vision:
        vision.setdefault("in_channels", vision["in_chans"])
    if "spatial_patch_size" in vision:
        vision.setdefault("patch_size", vision["spatial_patch_size"])
    theta = json_object(vision, "rope_parameters").get("rope_theta", VISION_ROPE_THETA)
    if theta != VISION_ROPE_THETA:
        raise ConfigError(f"vision rope_theta is {theta}; expected {VISION_ROPE_THETA:g}.")
    return stated(vision)


def vision_token_ids(data: Mapping[str, Any]) -> dict[str, int]:
    """Give the ids of the tokens that stand for pictures; ConfigError where one is missing."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id")
    missing = [name for name in names if data.get(name) is None]
    if missing:
        raise ConfigError(
            f"config.json has no {', '.join(missing)}; a model that sees pictures needs them."
        )
    return {name: data[name] for name in names}


def json_object(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Take an optional JSON object; absent and null are empty."""
    value = data.get(name) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is {quote(value)}; expected a JSON object.")
    return value


def stated(data: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what is null: in config.json it means not stated."""
    return {name: value for name, value in data.items() if value is not None}


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling:
    unknown = sorted(set(rope) - ROPE_FIELDS)
    if unknown:
        raise ConfigError(
            f"rope_scaling has {', '.join(unknown)}; "
            f"expected only {', '.join(sorted(ROPE_FIELDS))}."
        )
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    # "mrope" is the older name of the default kind; the sections say the rest.
    fields = {**rope, "rope_type": "default" if rope_type == "mrope" else rope_type}
    return build(RopeScaling, stated(fields), where="rope_scaling")


def _head_dim(hidden_size: Any, num_attention_heads: Any) -> int | None:
    """Give the size of one head where config.json does not state it."""
    if hidden_size is None or num_attention_heads is None:
        return None
    check_positive_integer("hidden_size", hidden_size)
    check_positive_integer("num_attention_heads", num_attention_heads)
    if hidden_size % num_attention_heads:
        raise ConfigError(
            f"hidden_size is {hidden_size}; expected a multiple of num_attention_heads "
            f"({num_attention_heads}) where head_dim is not stated."
        )
    head_dim: int = hidden_size // num_attention_heads
    return head_dim


def _check_layer_types(config: TextConfig, layer_types: object) -> None:
    """Refuse a list of layer types that says something else than the sliding-window fields."""
    if layer_types is None:
        return
    expected = [
        "full_attention" if config.window(layer) is None else "sliding_attention"
        for layer in range(config.num_hidden_layers)
    ]
    if layer_types != expected:
        raise ConfigError(
            "layer_types does not agree with use_sliding_window and max_window_layers; expected "
            f"{expected.count('full_attention')} full_attention layers, then sliding_attention."
        )
