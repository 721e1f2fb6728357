"""From a checkpoint folder to a model: config.json says which class, safetensors fill it.

Two forms of config.json exist for the same model. The Hub's is flat: text fields at the top level,
`rope_theta` beside `rope_scaling`. Newer tools nest `text_config` and put the theta into
`rope_parameters`. Both are flattened here, once; the models know one form.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qianyan.errors import ConfigError, quote
from qianyan.models.config import build
from qianyan.models.qwen2_5_vl import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    VisionConfig,
)
from qianyan.models.rope import VISION_ROPE_THETA, RopeScaling
from qianyan.models.text import TextConfig
from qianyan.models.weights import load_weights, read_tensors

RENAMES = {"model.visual.": "visual.", "model.language_model.": "model."}  # newer tools' prefixes
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
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


def read_config(folder: str | Path) -> Qwen2_5_VLConfig:
    """Read a checkpoint folder's config.json, flat or nested.

    Raises ConfigError when the file is missing, unreadable, of an unknown model type, incomplete
    or impossible.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ConfigError(f"{quote(folder)} has no config.json; expected a checkpoint folder.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{quote(path)} is not JSON: {error}.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{quote(path)} holds no JSON object; expected one.")
    model_type = data.get("model_type")
    if model_type != "qwen2_5_vl":
        raise ConfigError(f"model_type is {quote(model_type)}; expected qwen2_5_vl.")
    return qwen2_5_vl_config(data)


def qwen2_5_vl_config(data: Mapping[str, Any]) -> Qwen2_5_VLConfig:
    """Make a config from config.json's object, flat or nested."""
    text = {**data, **_object(data, "text_config")}
    # Tying is the whole model's matter: the nested text object repeats a class default.
    text["tie_word_embeddings"] = data.get(
        "tie_word_embeddings", text.get("tie_word_embeddings", False)
    )
    if text.get("use_sliding_window"):
        raise ConfigError("use_sliding_window is true; expected false, as in all released models.")
    rope = _object(text, "rope_scaling") or _object(text, "rope_parameters")
    text["rope_theta"] = rope.get("rope_theta", text.get("rope_theta"))
    text["rope_scaling"] = _rope_scaling(rope)
    return Qwen2_5_VLConfig(
        text=build(TextConfig, _stated(text), where="config.json"),
        vision=build(VisionConfig, _vision(data), where="vision_config"),
        **_token_ids(data),
    )


def _token_ids(data: Mapping[str, Any]) -> dict[str, int]:
    names = ("image_token_id", "video_token_id", "vision_start_token_id")
    missing = [name for name in names if data.get(name) is None]
    if missing:
        raise ConfigError(f"config.json has no {', '.join(missing)}; Qwen2_5_VLConfig needs them.")
    return {name: data[name] for name in names}


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
    return build(RopeScaling, _stated(fields), where="rope_scaling")


def _vision(data: Mapping[str, Any]) -> dict[str, Any]:
    vision = dict(_object(data, "vision_config"))
    if "in_chans" in vision:
        vision.setdefault("in_channels", vision["in_chans"])
    if "spatial_patch_size" in vision:
        vision.setdefault("patch_size", vision["spatial_patch_size"])
    theta = _object(vision, "rope_parameters").get("rope_theta", VISION_ROPE_THETA)
    if theta != VISION_ROPE_THETA:
        raise ConfigError(f"vision rope_theta is {theta}; expected {VISION_ROPE_THETA:g}.")
    return _stated(vision)


def _object(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Take an optional JSON object; absent and null are empty."""
    value = data.get(name) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is {quote(value)}; expected a JSON object.")
    return value


def _stated(data: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what is null: in config.json it means not stated."""
    return {name: value for name, value in data.items() if value is not None}


def build_model(config: Qwen2_5_VLConfig) -> Qwen2_5_VLForConditionalGeneration:
    """Make the model a config describes, with unset weights.

    Under `torch.device("meta")` it takes no memory.
    """
    return Qwen2_5_VLForConditionalGeneration(config)


def load_model(
    folder: str | Path, *, dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu"
) -> Qwen2_5_VLForConditionalGeneration:
    """Load a checkpoint folder, ready to run (evaluation mode).

    `dtype` is "auto" for the checkpoint's own, or float32, bfloat16, float16. Raises ConfigError
    and CheckpointError.
    """
    if isinstance(dtype, str) and dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(f"dtype is {quote(dtype)}; expected auto, {', '.join(DTYPES)}.")
    config = read_config(folder)
    with torch.device("meta"):
        model = build_model(config)
    load_weights(
        model,
        read_tensors(folder),
        renames=RENAMES,
        # Some tools write the output matrix of a tied model a second time.
        ignore={"lm_head.weight"} if config.text.tie_word_embeddings else (),
        dtype=DTYPES.get(dtype) if isinstance(dtype, str) else dtype,
        device=device,
    )
    return model.eval()
