"""Count a model that was built on the meta device: parameters by part, weights, keys and values.

Nothing here asks which architecture it is; a model is read by the names of its modules, which are
the checkpoint's: towers are called `visual` and `audio_tower`, experts `experts`, and attention
makes keys and values in `k_proj` and `v_proj`, or in a third each of `c_attn`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args

from torch import nn

from qianyan.errors import ConfigError
from qianyan.models.quantize import Kind, plain_layers
from qianyan.models.registry import Model, ModelConfig, build_empty

TOWERS = {"visual": "vision", "audio_tower": "audio"}
SPEAKERS = ("talker", "token2wav")
GROUP_BYTES = 3  # of a group of quantised weights: a bfloat16 scale and a zero
MAX_COUNT = 1000  # layers or experts of a config that is built here; released: 94 and 128
COUNTS = ("num_hidden_layers", "depth", "layers", "num_experts")


def build_without_weights(config: ModelConfig) -> Model:
    """Build a model on the meta device; ConfigError for matrices that no model has."""
    try:
        return build_empty(config)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise ConfigError(
            f"config.json describes matrices that cannot exist ({type(error).__name__})."
        ) from error


def require_plausible(data: Mapping[str, Any]) -> None:
    """Raise ConfigError for a config.json's object with more layers than could ever be built."""
    objects = [data]
    for known in objects:  # grows while it is read
        for name, value in known.items():
            if isinstance(value, dict):
                objects.append(value)
            elif name in COUNTS and isinstance(value, int) and value > MAX_COUNT:
                raise ConfigError(f"{name} is {value}; expected at most {MAX_COUNT}.")


def find_field(config: object, name: str) -> int | None:
    """Find an integer among a config's fields and those of the configs within; None without."""
    if not is_dataclass(config):
        return None
    value = getattr(config, name, None)
    if isinstance(value, int):
        return value
    found = (find_field(getattr(config, field.name), name) for field in fields(config))
    return next((value for value in found if value is not None), None)


def part_of(name: str) -> str:
    """Say which part of a model a module's or parameter's name belongs to."""
    pieces = name.split(".")
    if pieces[0] in SPEAKERS:
        return pieces[0]
    return next((TOWERS[piece] for piece in pieces if piece in TOWERS), "text")


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Count the parameters of each part; shared ones once, quantised ones as the numbers meant."""
    counts: Counter[str] = Counter()
    for name, count in _counts(model):
        counts[part_of(name)] += count
    return dict(counts)


def count_active_parameters(model: nn.Module, config: ModelConfig) -> int | None:
    """Count the parameters that each token meets; None for a model without experts."""
    experts, chosen = (find_field(config, n) for n in ("num_experts", "num_experts_per_tok"))
    in_experts = sum(count for name, count in _counts(model) if ".experts." in name)
    if not experts or not chosen or not in_experts:
        return None
    total = sum(count for _, count in _counts(model))
    return total - in_experts + in_experts * chosen // experts


def _counts(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield each parameter with its number of elements, and each quantised matrix."""
    for name, parameter in model.named_parameters():
        yield name, parameter.numel()
    for name, module in model.named_modules():
        if _is_matrix(module) and not hasattr(module, "weight"):
            yield f"{name}.weight", _elements(module)


def _is_matrix(module: nn.Module) -> bool:
    """Say whether a module is a Linear, plain or quantised."""
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _elements(module: nn.Module) -> int:
    return int(module.in_features) * int(module.out_features)  # type: ignore[arg-type]


def weigh(model: nn.Module) -> dict[str, int]:
    """Give the bytes of the weights by dtype; int8 and int4 are what loading in them makes."""
    total = sum(count for _, count in _counts(model))
    kinds: tuple[Kind, ...] = get_args(Kind)
    weights = {"float32": 4 * total, "bfloat16": 2 * total}
    return weights | {kind: 2 * total + _added_by(model, kind) for kind in kinds}


def _added_by(model: nn.Module, kind: Kind) -> int:
    """Give the bytes by which quantising adds to bfloat16, a negative number."""
    owners = {id(parameter): name for name, parameter in model.named_parameters()}
    added = 0
    for path, linear, group_size in plain_layers(model, kind):
        if owners[id(linear.weight)] == f"{path}.weight":  # else the embeddings stay beside it
            added -= 2 * _elements(linear)
        groups = _elements(linear) // (group_size or linear.in_features)
        added += _elements(linear) // (1 if group_size is None else 2) + GROUP_BYTES * groups
    return added


def count_kept_numbers(model: nn.Module) -> int:
    """Count the numbers that the decoder keeps of each token, 2 x layers x kv heads x head_dim."""
    kept = 0
    for name, module in model.named_modules():
        if not _is_matrix(module) or part_of(name) != "text":
            continue
        out_features = int(module.out_features)
        if name.endswith((".k_proj", ".v_proj")):
            kept += out_features
        elif name.endswith(".c_attn"):
            kept += out_features * 2 // 3
    return kept
