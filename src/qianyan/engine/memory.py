"""What a model is and what memory it takes, told before any weight is loaded.

A model is built without weights and counted (`sizes.py`), so every architecture that can be loaded
can be described. Of a model that is only on a hub, the config and the licence are fetched and the
sizes of its weight files are taken from the hub's list.

What is told: the weights, and the keys and values of one conversation. Activations come on top:
little for text, some hundred MB for a large picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qianyan.engine.checkpoint import find_local
from qianyan.engine.folder import CONFIG, StoredTensor, is_complete, read_headers
from qianyan.engine.hub import Listing, list_files
from qianyan.engine.library import LICENCE_FILES, README, Licence, read_architecture, read_licence
from qianyan.engine.places import Source
from qianyan.engine.sizes import (
    build_without_weights,
    count_active_parameters,
    count_kept_numbers,
    count_parameters,
    require_plausible,
    weigh,
)
from qianyan.engine.transfer import connect, fetch
from qianyan.errors import ConfigError, quote
from qianyan.models.registry import read_config, read_config_json

STORED = "stored"
"""The key of what the files hold, beside float32, bfloat16, int8 and int4."""
FORMAT_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
NOT_FETCHED = "not on disk; only its config and licence were fetched"
NOT_COMPLETE = "its weights are not on disk, or not all of them"
QUANTIZED = "int8 and int4 are what quantising the unquantised model would take"


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of a model before it is loaded.

    `num_parameters` is by part: text, vision, audio; tied matrices count once. Of a mixture of
    experts, `num_active_parameters` take part in each token; of other models it is None.
    `weights_bytes` and `kv_bytes_per_token` are by dtype: float32, bfloat16, int8, int4 and, where
    the files are known, "stored". `max_length` is of prompt and answer together.
    """

    name: str
    folder: Path | None
    architecture: str
    num_parameters: Mapping[str, int]
    num_active_parameters: int | None
    stored_dtype: str | None
    quantization: str | None
    max_length: int
    weights_bytes: Mapping[str, int]
    kv_bytes_per_token: Mapping[str, int]
    licence: Licence | None
    notes: tuple[str, ...]

    def kv_cache_bytes(self, dtype: str, context_tokens: int) -> int:
        """Give the bytes of the keys and values of one conversation of that length."""
        if context_tokens < 0:
            raise ConfigError(f"context length is {context_tokens}; expected no negative number.")
        return _by_dtype(self.kv_bytes_per_token, dtype) * context_tokens


def total_bytes(facts: ModelFacts, dtype: str, context_tokens: int) -> int:
    """Add the weights in `dtype` to the keys and values of `context_tokens`.

    Quantised weights are computed with in 16 bits, and so are their keys and values.
    """
    weights = _by_dtype(facts.weights_bytes, dtype)
    return weights + facts.kv_cache_bytes(dtype, context_tokens)


def _by_dtype(table: Mapping[str, int], dtype: str) -> int:
    if dtype not in table:
        raise ConfigError(f"dtype is {quote(dtype)}; expected one of {', '.join(table)}.")
    return table[dtype]


def describe(
    model: str | Path,
    *,
    source: Source = "huggingface",
    token: str | None = None,
    endpoint: str | None = None,
) -> ModelFacts:
    """Tell what a model is and takes: a folder, "bundled", or a hub's name, on disk or not.

    Raises ConfigError for an architecture or a config that could not be loaded either, and
    CheckpointError when there is no such model or its weight files are damaged.
    """
    folder = find_local(model)
    if folder is not None:
        return _describe(folder, name=str(model))
    listing = list_files(str(model), source=source, token=token, endpoint=endpoint)
    with TemporaryDirectory(prefix="qianyan-") as scratch:
        _fetch_words(listing, Path(scratch))
        return _describe(Path(scratch), name=listing.model, listing=listing)


def _fetch_words(listing: Listing, folder: Path) -> None:
    """Fetch what is to be read: the config and the licence."""
    with connect(listing) as client:
        for file in listing.files:
            if file.name in (CONFIG, README, *LICENCE_FILES):
                fetch(client, listing, file, folder / file.name, lambda _: None)


def _describe(folder: Path, *, name: str, listing: Listing | None = None) -> ModelFacts:
    data = read_config_json(folder)
    require_plausible(data)
    config = read_config(folder)
    model = build_without_weights(config)
    tensors = list(read_headers(folder)) if listing is None else []
    stored_dtype, quantization = _stored_dtype(tensors, data), _quantization(data)
    weights, note = weigh(model), None
    if listing is not None:
        note = NOT_FETCHED
        shards = (f.size_bytes or 0 for f in listing.files if f.name.endswith(".safetensors"))
        weights[STORED] = sum(shards)
    elif is_complete(folder):
        weights[STORED] = sum(tensor.size_bytes for tensor in tensors)
    else:
        note = NOT_COMPLETE
    numbers = count_kept_numbers(model)
    widths = {
        dtype: 4 if "float32" in (dtype, stored_dtype if dtype == STORED else None) else 2
        for dtype in weights
    }
    return ModelFacts(
        name=name,
        folder=None if listing is not None else folder,
        architecture=read_architecture(folder) or type(model).__name__,
        num_parameters=count_parameters(model),
        num_active_parameters=count_active_parameters(model, config),
        stored_dtype=stored_dtype,
        quantization=quantization,
        max_length=model.max_position_embeddings,
        weights_bytes=weights,
        kv_bytes_per_token={dtype: numbers * width for dtype, width in widths.items()},
        licence=read_licence(folder),
        notes=tuple(filter(None, (note, QUANTIZED if quantization else None))),
    )


def _stored_dtype(tensors: Sequence[StoredTensor], data: Mapping[str, Any]) -> str | None:
    """Name the dtype of most floating weights, as the files have it, else as the config says."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.dtype in FORMAT_DTYPES:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size_bytes
    if sizes:
        return FORMAT_DTYPES[max(sizes, key=lambda dtype: sizes[dtype])]
    text = data.get("text_config")
    for where in (data, text if isinstance(text, dict) else {}):
        for field in ("torch_dtype", "dtype"):
            if isinstance(where.get(field), str):
                return str(where[field])
    return None


def _quantization(data: Mapping[str, Any]) -> str | None:
    """Say how the files are quantised, such as "gptq, 4 bits, groups of 128"."""
    stated = data.get("quantization_config")
    if not isinstance(stated, dict):
        return None
    words = [quote(stated.get("quant_method", "unknown")).strip("'")]
    bits, group_size = stated.get("bits"), stated.get("group_size")
    if isinstance(bits, int):
        words.append(f"{bits} bits")
    if isinstance(group_size, int):
        words.append(f"groups of {group_size}" if group_size > 0 else "a group each row")
    return ", ".join(words)
