"""From a checkpoint folder to a model: config.json says which class, safetensors fill it.

One row a `model_type`: how its config is read and which class it describes.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qianyan.errors import CheckpointError, ConfigError, quote
from qianyan.models import qwen2_5_vl, qwen2_vl
from qianyan.models.config import build
from qianyan.models.flatten import json_object, text_config, vision_fields, vision_token_ids
from qianyan.models.omni.thinker import (
    Thinker,
    ThinkerConfig,
    omni_config,
    thinker_config,
    tie_as_saved,
)
from qianyan.models.packed import swap_packed, unpack_tensors
from qianyan.models.precision import choose_dtype
from qianyan.models.quantization import SAVED_METHOD, QuantizationConfig, read_quantization
from qianyan.models.quantize import GROUP_SIZES, Kind, QuantizedLinear, quantize_weight, swap_plain
from qianyan.models.qwen import QWenConfig, QWenLMHeadModel, ignored_tensors, qwen_config
from qianyan.models.saved import quantization_entry, saved_specs, swap_saved, to_saved
from qianyan.models.text import CausalLM, TextConfig
from qianyan.models.vision_language import VisionLanguageConfig, VisionLanguageModel
from qianyan.models.weights import (
    DTYPES,
    INDEX_NAME,
    WEIGHTS_NAME,
    TensorSpec,
    list_tensors,
    load_weights,
    quantized_layers,
    read_tensors,
    renamed,
)

RENAMES = {
    "model.visual.": "visual.",  # newer tools' prefixes
    "model.language_model.": "model.",
    "model.audio_tower.": "audio_tower.",
    "thinker.model.visual.": "visual.",
    "thinker.model.language_model.": "model.",
    "thinker.model.audio_tower.": "audio_tower.",
    "thinker.": "",
    "embed_tokens.": "model.embed_tokens.",  # a decoder saved without its head
    "layers.": "model.layers.",
    "norm.": "model.norm.",
}
UNREAD = ("talker.", "token2wav.")
"""What of Qwen2.5-Omni speaks; whoever wants text has no use for it."""

ModelConfig = TextConfig | VisionLanguageConfig | QWenConfig
Model = CausalLM | VisionLanguageModel | QWenLMHeadModel  # each a `LanguageModel`


@dataclass(frozen=True)
class Architecture:
    """A `model_type` of config.json: the name of its class there, and how its config is read."""

    name: str
    read: Callable[[Mapping[str, Any]], ModelConfig]


def qwen2_config(data: Mapping[str, Any]) -> TextConfig:
    """Make the config of Qwen2, Qwen2.5 or QwQ from config.json's object."""
    return text_config(data, attention_bias=True, qk_norm=False)


def qwen3_config(data: Mapping[str, Any]) -> TextConfig:
    """Make the config of a dense Qwen3 from config.json's object."""
    return text_config(data, attention_bias=False, qk_norm=True)


def qwen3_moe_config(data: Mapping[str, Any]) -> TextConfig:
    """Make the config of a Qwen3 with experts from config.json's object."""
    return text_config(data, attention_bias=False, qk_norm=True, has_experts=True)


def qwen2_vl_config(data: Mapping[str, Any]) -> VisionLanguageConfig:
    """Make the config of Qwen2-VL from config.json's object, flat or nested."""
    return _vision_language_config(data, qwen2_vl.VisionConfig)


def qwen2_5_vl_config(data: Mapping[str, Any]) -> VisionLanguageConfig:
    """Make the config of Qwen2.5-VL from config.json's object, flat or nested."""
    return _vision_language_config(data, qwen2_5_vl.VisionConfig)


def _vision_language_config(
    data: Mapping[str, Any],
    vision_class: type[qwen2_vl.VisionConfig] | type[qwen2_5_vl.VisionConfig],
) -> VisionLanguageConfig:
    return VisionLanguageConfig(
        text=text_config(data, attention_bias=True, qk_norm=False),
        vision=build(vision_class, vision_fields(data), where="vision_config"),
        **vision_token_ids(data),
    )


THINKER = "Qwen2_5OmniThinkerForConditionalGeneration"
ARCHITECTURES = {
    "qwen": Architecture("QWenLMHeadModel", qwen_config),
    "qwen2": Architecture("Qwen2ForCausalLM", qwen2_config),
    "qwen3": Architecture("Qwen3ForCausalLM", qwen3_config),
    "qwen3_moe": Architecture("Qwen3MoeForCausalLM", qwen3_moe_config),
    "qwen2_vl": Architecture("Qwen2VLForConditionalGeneration", qwen2_vl_config),
    "qwen2_5_vl": Architecture("Qwen2_5_VLForConditionalGeneration", qwen2_5_vl_config),
    "qwen2_5_omni": Architecture("Qwen2_5OmniForConditionalGeneration", omni_config),
    "qwen2_5_omni_thinker": Architecture(THINKER, thinker_config),
}


def find_architecture(data: Mapping[str, Any]) -> Architecture:
    """Find the row of a config.json's object; ConfigError for a model that is none of ours."""
    model_type = data.get("model_type")
    architecture = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if architecture is None:
        raise ConfigError(
            f"model_type is {quote(model_type)}; expected one of {', '.join(ARCHITECTURES)}."
        )
    return architecture


def read_config_json(folder: str | Path) -> dict[str, Any]:
    """Read a checkpoint folder's config.json; ConfigError when it is missing or unreadable."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ConfigError(f"{quote(folder)} has no config.json; expected a checkpoint folder.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{quote(path)} is not JSON: {error}.") from error
    except (RecursionError, OSError) as error:
        raise ConfigError(f"{quote(path)} cannot be read as JSON; copy the file again.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{quote(path)} holds no JSON object; expected one.")
    return data


def read_config(folder: str | Path) -> ModelConfig:
    """Read a checkpoint folder's config.json, flat or nested.

    Raises ConfigError when the file is missing, unreadable, of an unknown model type, incomplete
    or impossible.
    """
    data = read_config_json(folder)
    return find_architecture(data).read(data)


def build_model(config: ModelConfig) -> Model:
    """Make the model a config describes, with unset weights."""
    if isinstance(config, ThinkerConfig):
        return Thinker(config)
    if isinstance(config, VisionLanguageConfig):
        return VisionLanguageModel(config)
    if isinstance(config, QWenConfig):
        return QWenLMHeadModel(config)
    return CausalLM(config)


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they are where modules draw their first weights.

    On the meta device there is nothing to draw, and drawing there imports torch's compiler.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init" or func is Tensor.normal_:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """Make modules on the meta device: shapes without memory, and nothing drawn."""
    with torch.device("meta"), _Undrawn():
        yield


def build_empty(config: ModelConfig) -> Model:
    """Make the model a config describes on the meta device."""
    with unfilled():
        return build_model(config)


ROUNDED: Mapping[str, Kind] = {"w8a8": "int8", "w4a8": "int4"}
"""Ways to quantise whose layers also round the activations of many tokens, and their weights."""


def load_model(
    folder: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    quantize: str | None = None,
) -> Model:
    """Load a checkpoint folder, ready to run (evaluation mode).

    `dtype` is "auto" for the checkpoint's own (on a processor never float16, see `precision.py`),
    or float32, bfloat16, float16; quantised layers stay quantised and compute in it. `quantize`
    "int8" or "int4" makes a plain checkpoint's matrices such layers while they are read, one at a
    time; what was saved so (`quantize_checkpoint`) needs no word. "w8a8" and "w4a8" are the same
    weights, plain or quantised before, and let processors multiply many tokens in 8 bits: faster
    and coarser. Raises ConfigError and CheckpointError.
    """
    if isinstance(dtype, str) and dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(f"dtype is {quote(dtype)}; expected auto, {', '.join(DTYPES)}.")
    data = read_config_json(folder)
    quantization = read_quantization(data)
    kind = _quantize_kind(quantize, quantization)
    listed = _list_wanted(folder)
    config = _as_saved(find_architecture(data).read(data), listed)
    is_saved = quantization is not None and quantization.quant_method == SAVED_METHOD
    if dtype == "auto" and quantization is not None:
        own = quantization.torch_dtype
        dtype = choose_dtype([own], device=device) or (dtype if is_saved else own)
    elif dtype == "auto":
        dtype = choose_dtype((spec.dtype for spec in listed.values()), device=device) or dtype
    model = build_empty(config)
    if kind is not None:
        tensors = _quantized(Path(folder), model, swap_plain(model, kind))
    elif quantization is not None and is_saved:
        swap_saved(model, listed, quantization, RENAMES)
        tensors = read_tensors(folder, skip=UNREAD)
    else:
        packed = swap_packed(model, listed, quantization, RENAMES)
        tensors = unpack_tensors(read_tensors(folder, skip=UNREAD), packed)
    load_weights(
        model,
        tensors,
        renames=RENAMES,
        ignore=_ignored(config),
        dtype=DTYPES.get(dtype) if isinstance(dtype, str) else dtype,
        device=device,
    )
    _use_kernels(model, round_activations=quantize in ROUNDED)
    return model.eval()


@dataclass(frozen=True, kw_only=True)
class QuantizedCheckpoint:
    """What a plain checkpoint becomes: config.json's object, and tensors under the model's names.

    `tensors` yields what `specs` lists, each once, and makes one at a time.
    """

    config: Mapping[str, Any]
    specs: Mapping[str, TensorSpec]
    tensors: Iterator[tuple[str, Tensor]]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.size_bytes for spec in self.specs.values())


def quantize_checkpoint(folder: str | Path, kind: str) -> QuantizedCheckpoint:
    """Make of a plain checkpoint what `load_model` makes of it with `quantize`, to be saved.

    Of Qwen2.5-Omni that is the Thinker alone, under a config.json of its own.

    Raises ConfigError and CheckpointError, before the first tensor for all but numbers that are not
    finite.
    """
    data = thinker_alone(read_config_json(folder))
    if kind not in get_args(Kind):
        raise ConfigError(f"quantize is {quote(kind)}; expected {' or '.join(get_args(Kind))}.")
    known = _quantize_kind(kind, read_quantization(data))
    assert known is not None
    listed = _list_wanted(folder)
    config = _as_saved(find_architecture(data).read(data), listed)
    ignored = _ignored(config)
    _require_fit(config, listed)
    model = build_empty(config)
    swapped = swap_plain(model, known)
    stored = {renamed(name, RENAMES): spec.dtype for name, spec in listed.items()}
    specs = {
        name: TensorSpec(tuple(slot.shape), stored[name]) for name, slot in model.named_parameters()
    }
    for path in quantized_layers(model):
        layer = model.get_submodule(path)
        assert isinstance(layer, QuantizedLinear)
        specs |= saved_specs(path, layer)
    if not swapped:
        raise ConfigError(
            f"{quote(Path(folder).name)} has no matrix that is large enough to be quantised; "
            "use it as it is."
        )
    floats = Counter(dtype for dtype in stored.values() if dtype in DTYPES.values())
    own = max(floats, key=lambda dtype: floats[dtype], default=torch.float32)
    group_size = GROUP_SIZES[0] if known == "int4" else -1
    entry = quantization_entry(8 if known == "int8" else 4, group_size, own)
    return QuantizedCheckpoint(
        config={**data, "quantization_config": entry},
        specs=specs,
        tensors=(
            (key, to_saved(tensor, specs[key]))
            for name, tensor in _quantized(Path(folder), model, swapped)
            if (key := renamed(name, RENAMES)) not in ignored
        ),
    )


def _list_wanted(folder: str | Path) -> dict[str, TensorSpec]:
    """List what of a checkpoint is to be read."""
    listed = list_tensors(folder)
    return {name: spec for name, spec in listed.items() if not name.startswith(UNREAD)}


def _as_saved(config: ModelConfig, listed: Mapping[str, TensorSpec]) -> ModelConfig:
    """Let what a checkpoint holds decide what config.json leaves open."""
    if isinstance(config, ThinkerConfig):
        return tie_as_saved(config, listed)
    if isinstance(config, TextConfig) and any(name.startswith("embed_tokens.") for name in listed):
        # A decoder without its head, as for embeddings: no matrix is missing that nobody reads.
        return replace(config, tie_word_embeddings=True)
    return config


def thinker_alone(data: dict[str, Any]) -> dict[str, Any]:
    """Give the config.json of Qwen2.5-Omni's Thinker as a model of its own; others stay."""
    thinker = json_object(data, "thinker_config")
    if not thinker:
        return data
    stored = {name: value for name, value in data.items() if name in ("dtype", "torch_dtype")}
    return {**stored, **thinker, "model_type": "qwen2_5_omni_thinker", "architectures": [THINKER]}


def _require_fit(config: ModelConfig, listed: Mapping[str, TensorSpec]) -> None:
    """Hold a checkpoint's headers against the model they are to fill."""
    load_weights(
        build_empty(config),
        (
            (name, torch.empty(spec.shape, dtype=spec.dtype, device="meta"))
            for name, spec in listed.items()
        ),
        renames=RENAMES,
        ignore=_ignored(config),
        device="meta",
    )


def _quantize_kind(quantize: str | None, quantization: QuantizationConfig | None) -> Kind | None:
    """Read what is asked for; refuse codes of what is codes already, unless it has those."""
    if quantize is None or quantize == "none":
        return None
    kind = ROUNDED.get(quantize, quantize)
    found: Kind | None = next((one for one in get_args(Kind) if one == kind), None)
    if found is None:
        known = (*get_args(Kind), *ROUNDED)
        raise ConfigError(f"quantize is {quote(quantize)}; expected none, {', '.join(known)}.")
    if quantization is None:
        return found
    rounded = next(name for name, one in ROUNDED.items() if one == f"int{quantization.bits}")
    if quantize != rounded:
        raise ConfigError(
            f"quantize is {quantize}, but the checkpoint is quantised already "
            f"({quantization.quant_method}, {quantization.bits} bits); expected none or {rounded}."
        )
    return None


def _quantized(
    folder: Path, model: Model, swapped: Mapping[str, str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield a plain checkpoint's tensors with codes, zeros and scales in place of some weights.

    `swapped` is of `swap_plain`.
    """
    index = folder / INDEX_NAME  # already held against the files
    homes = json.loads(index.read_text("utf-8"))["weight_map"] if index.is_file() else {}
    for name, tensor in read_tensors(folder, skip=UNREAD):
        source = renamed(name, RENAMES)
        path = swapped.get(source)
        if path is not None:
            yield from _quantized_parts(folder / homes.get(name, WEIGHTS_NAME), name, model, path)
        if path is None or source != f"{path}.weight":  # plain, or also the embeddings
            yield name, tensor


def _quantized_parts(
    shard: Path, name: str, model: Model, path: str
) -> Iterator[tuple[str, Tensor]]:
    layer = model.get_submodule(path)
    assert isinstance(layer, QuantizedLinear)
    # Mapped on its own, so that the pages read go back with it: else the whole file stays.
    with safe_open(shard, framework="pt") as file:
        weight = file.get_tensor(name)
        if weight.shape != (layer.out_features, layer.in_features):
            raise CheckpointError(
                f"{name} is {tuple(weight.shape)}; "
                f"expected {(layer.out_features, layer.in_features)} as config.json says."
            )
        parts = quantize_weight(weight, bits=layer.bits, group_size=layer.group_size)
    del weight
    for part, value in parts.items():
        yield f"{path}.{part}", value


def _use_kernels(model: Model, *, round_activations: bool) -> None:
    """Let quantised layers lie as kernels read them, where the model computes in bfloat16."""
    if next(model.parameters()).dtype == torch.bfloat16:
        for path in quantized_layers(model):
            layer = model.get_submodule(path)
            assert isinstance(layer, QuantizedLinear)
            layer.use_kernels(round_activations=round_activations)


def _ignored(config: ModelConfig) -> frozenset[str]:
    """Name the tensors that some tools write and the model has no use for."""
    if isinstance(config, QWenConfig):
        return ignored_tensors(config)
    text = config.text if isinstance(config, VisionLanguageConfig) else config
    # The output matrix of a tied model, written a second time.
    return frozenset({"lm_head.weight"} if text.tie_word_embeddings else ())
