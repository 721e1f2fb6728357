"""Checkpoints in and out: safetensors only, strict on both sides.

Pickled weights (`.bin`, `.pt`) are never opened: unpickling runs whatever code the file names.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qianyan.errors import CheckpointError, quote
from qianyan.models.quantize import QuantizedLinear

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
NAMES_SHOWN = 5
MAPPED_BYTES = 2**26  # of tensors that are mapped at one time while they are read, or one tensor
COPIED_BYTES = 2**16  # a tensor up to this size is copied; a view of it would hold a mapping
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED_DTYPES = {  # the safetensors format's own names
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorSpec(NamedTuple):
    """What a checkpoint says of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def list_tensors(folder: str | Path) -> dict[str, TensorSpec]:
    """Give the shape and dtype of every tensor of a checkpoint folder; no weight is read.

    Raises CheckpointError when a shard is missing or damaged, two shards hold the same name, the
    index and the shards disagree, or there are no safetensors at all.
    """
    return {
        name: spec for specs in _list_shards(Path(folder)).values() for name, spec in specs.items()
    }


def read_tensors(folder: str | Path, *, skip: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of a checkpoint folder with its name, shard by shard, on the CPU.

    Those whose names begin with one of `skip` are not read. Tensors are views of the memory-mapped
    file: valid as long as nobody writes into it; writing into one leaves the file as it is. Raises
    CheckpointError before the first tensor, for what `list_tensors` raises it for.
    """
    for shard, specs in _list_shards(Path(folder)).items():
        wanted = {name: spec for name, spec in specs.items() if not name.startswith(skip)}
        for names in _runs(wanted):
            with _opened(shard) as file:
                for name in names:
                    tensor = file.get_tensor(name)
                    # A view keeps all pages of its mapping that were read, its neighbours' too.
                    yield name, tensor.clone() if tensor.nbytes <= COPIED_BYTES else tensor


def _runs(specs: Mapping[str, TensorSpec]) -> Iterator[list[str]]:
    """Cut a shard's tensors into runs that are mapped together, so that pages go when one ends."""
    run: list[str] = []
    size = 0
    for name, spec in specs.items():
        if run and size + spec.size_bytes > MAPPED_BYTES:
            yield run
            run, size = [], 0
        run.append(name)
        size += spec.size_bytes
    if run:
        yield run


@contextmanager
def _opened(shard: Path, *, framework: str = "pt") -> Iterator[Any]:
    try:
        with safe_open(shard, framework=framework, device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{shard.name} cannot be read as safetensors ({error}). Download it again."
        ) from error
    except (RuntimeError, MemoryError) as error:  # both map the whole file at once
        raise CheckpointError(
            f"{shard.name} does not fit into memory ({error}). Use a checkpoint with smaller "
            "shards or a machine with more memory."
        ) from error


def _list_shards(folder: Path) -> dict[Path, dict[str, TensorSpec]]:
    """Read the headers of all shards and hold them against each other and the index."""
    listed = {shard: _list_shard(shard) for shard in _shards(folder)}
    homes: dict[str, str] = {}
    for shard, specs in listed.items():
        twice = sorted(set(specs) & set(homes))
        if twice:
            raise CheckpointError(
                f"{shard.name} holds {len(twice)} tensors that another shard of {folder.name} "
                f"holds too ({some(twice)}); expected each once. Download the folder again."
            )
        homes |= dict.fromkeys(specs, shard.name)
    index = folder / INDEX_NAME
    if index.is_file():
        _require_agreement(_weight_map(index), homes)
    return listed


def _require_agreement(weight_map: Mapping[str, str], homes: Mapping[str, str]) -> None:
    absent = [name for name, shard in weight_map.items() if homes.get(name) != shard]
    unlisted = [name for name in homes if name not in weight_map]
    problems = count_problems(
        {"that are not where it says": absent, "that it does not name": unlisted}
    )
    if problems:
        raise CheckpointError(
            f"{INDEX_NAME} does not fit its shards; tensors: {problems}. Download the folder again."
        )


def _list_shard(shard: Path) -> dict[str, TensorSpec]:
    specs = {}
    with _opened(shard, framework="numpy") as file:  # unlike torch, it claims no memory
        for name in file.keys():  # noqa: SIM118 - the handle is no mapping
            header = file.get_slice(name)
            dtype = STORED_DTYPES.get(header.get_dtype())
            if dtype is None:
                raise CheckpointError(
                    f"{name} in {shard.name} has the dtype {quote(header.get_dtype())}; "
                    f"expected one of {', '.join(STORED_DTYPES)}."
                )
            specs[name] = TensorSpec(tuple(header.get_shape()), dtype)
    return specs


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX_NAME
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{len(missing)} of {len(names)} shards are missing from {folder.name} "
                f"({some(missing)}). Download them again."
            )
        return [folder / name for name in names]
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    if not folder.is_dir():
        raise CheckpointError(f"{quote(folder)} is not a folder; expected a checkpoint folder.")
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickled:
        raise CheckpointError(
            f"{folder.name} holds pickled weights only ({some(pickled)}); expected "
            f"{WEIGHTS_NAME}. Convert them to safetensors: pickle files can run code."
        )
    raise CheckpointError(
        f"{folder.name} holds no weights; expected {WEIGHTS_NAME} or {INDEX_NAME}."
    )


def _weight_map(index: Path) -> dict[str, str]:
    """Read tensor name -> shard file name; names that would leave the folder are refused."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index.name} has no readable weight_map: {error}.") from error
    for shard in shards.values():
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index.name} names the shard {quote(shard)}; expected a .safetensors file "
                "beside it."
            )
    return shards


def load_weights(
    model: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    renames: Mapping[str, str] | None = None,
    ignore: Collection[str] = (),
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Give `model` the checkpoint's tensors in place of its own parameters and buffers.

    Attributes carry the checkpoint's own names, so most keys match as they are; `renames` maps the
    few prefixes that do not, and `ignore` lists tensors this model has no use for. Anything else
    left over, on either side, raises CheckpointError and leaves the model as it was. A model built
    on the meta device becomes real; tied parameters stay tied. `dtype` None keeps the tensors';
    the scales of quantised layers always keep theirs.
    """
    slots = dict(model.named_parameters()) | dict(model.named_buffers())
    scales = {f"{path}.scales" for path in quantized_layers(model)}
    found: dict[str, Tensor] = {}
    unexpected: list[str] = []
    misfits: dict[str, str] = {}
    for name, tensor in tensors:
        key = renamed(name, renames or {})
        if key in ignore:
            continue
        if key not in slots or key in found:
            unexpected.append(name)
        elif slots[key].shape != tensor.shape:
            misfits[key] = f"{name} is {tuple(tensor.shape)}, not {tuple(slots[key].shape)}"
        else:
            is_fixed = key in scales or not tensor.is_floating_point()
            found[key] = tensor.to(device=device, dtype=None if is_fixed else dtype)
    missing = [name for name in slots if name not in found and name not in misfits]
    problems = count_problems(
        {
            "missing": missing,
            "unexpected": unexpected,
            "of another shape": list(misfits.values()),
        }
    )
    if problems:
        raise CheckpointError(
            f"Checkpoint does not fit {type(model).__name__}; tensors: {problems}."
        )
    _assign(model, found)


def _assign(model: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Put the tensors in, the same Parameter object wherever one is shared."""
    firsts = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = {
        name: nn.Parameter(found[name], requires_grad=parameter.requires_grad)
        for name, parameter in model.named_parameters()
    }
    state: dict[str, Tensor] = {
        name: parameters[firsts[id(parameter)]]
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    state |= {name: found[name] for name, _ in model.named_buffers()}
    model.load_state_dict(state, strict=True, assign=True)


def quantized_layers(model: nn.Module) -> list[str]:
    """Name the quantised layers of a model."""
    return [path for path, part in model.named_modules() if isinstance(part, QuantizedLinear)]


def renamed(name: str, renames: Mapping[str, str]) -> str:
    """Give the model's name for a checkpoint's name."""
    prefix = next((prefix for prefix in renames if name.startswith(prefix)), None)
    return name if prefix is None else renames[prefix] + name.removeprefix(prefix)


def count_problems(problems: Mapping[str, Sequence[str]]) -> str:
    """Count and name what is wrong, each kind of it; empty when nothing is."""
    return ", ".join(
        f"{len(names)} {kind} ({some(names)})" for kind, names in problems.items() if names
    )


def some(names: Sequence[str]) -> str:
    """Name the first few."""
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def save_checkpoint(
    model: nn.Module, folder: str | Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write `model.safetensors` into `folder`, which is made when missing.

    Shared parameters are written once, under their first name. The file appears whole or not at
    all, so that a killed run leaves the previous one readable. `dtype` None keeps the tensors'.
    Raises CheckpointError for a model with quantised layers: the form they are run in is no
    published one, and no config.json would describe the file.
    """
    quantized = quantized_layers(model)
    if quantized:
        raise CheckpointError(
            f"{len(quantized)} layers are quantised ({some(quantized)}); expected plain weights to "
            "save. Keep the folder they were loaded from."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    slots = dict(model.named_parameters()) | dict(model.named_buffers())
    state = {
        name: tensor.detach()
        .to(device="cpu", dtype=dtype if tensor.is_floating_point() else None)
        .contiguous()
        for name, tensor in slots.items()
    }
    unfinished = folder / f"{WEIGHTS_NAME}.unfinished"
    save_file(state, unfinished, metadata={"format": "pt"})
    unfinished.replace(folder / WEIGHTS_NAME)


def initialise(model: nn.Module, *, std: float = 0.02) -> None:
    """Draw fresh weights for training: normal matrices, zero biases; norms keep their ones."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv3d | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
