"""Checkpoints in and out: safetensors only, strict on both sides.

Pickled weights (`.bin`, `.pt`) are never opened: unpickling runs whatever code the file names.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qianyan.errors import CheckpointError, quote

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
NAMES_SHOWN = 5


def read_tensors(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of a checkpoint folder with its name, shard by shard, on the CPU.

    Tensors are views of the memory-mapped file: valid as long as nobody writes into it. Raises
    CheckpointError when a shard is missing, damaged, or there are no safetensors at all.
    """
    for shard in _shards(Path(folder)):
        try:
            with safe_open(shard, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 - the handle is no mapping
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{shard.name} cannot be read as safetensors ({error}). Download it again."
            ) from error


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX_NAME
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{len(missing)} of {len(names)} shards are missing from {folder.name} "
                f"({_some(missing)}). Download them again."
            )
        return [folder / name for name in names]
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    if not folder.is_dir():
        raise CheckpointError(f"{quote(folder)} is not a folder; expected a checkpoint folder.")
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickled:
        raise CheckpointError(
            f"{folder.name} holds pickled weights only ({_some(pickled)}); expected "
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
    on the meta device becomes real; tied parameters stay tied. `dtype` None keeps the tensors'.
    """
    slots = dict(model.named_parameters()) | dict(model.named_buffers())
    found: dict[str, Tensor] = {}
    unexpected: list[str] = []
    misfits: dict[str, str] = {}
    for name, tensor in tensors:
        key = _renamed(name, renames or {})
        if key in ignore:
            continue
        if key not in slots or key in found:
            unexpected.append(name)
        elif slots[key].shape != tensor.shape:
            misfits[key] = f"{name} is {tuple(tensor.shape)}, not {tuple(slots[key].shape)}"
        else:
            is_float = tensor.is_floating_point()
            found[key] = tensor.to(device=device, dtype=dtype if is_float else None)
    missing = [name for name in slots if name not in found and name not in misfits]
    if missing or unexpected or misfits:
        problems = [
            f"{len(names)} {what} ({_some(names)})"
            for what, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", list(misfits.values())),
            )
            if names
        ]
        raise CheckpointError(
            f"Checkpoint does not fit {type(model).__name__}; tensors: {', '.join(problems)}."
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


def _renamed(name: str, renames: Mapping[str, str]) -> str:
    prefix = next((prefix for prefix in renames if name.startswith(prefix)), None)
    return name if prefix is None else renames[prefix] + name.removeprefix(prefix)


def _some(names: list[str]) -> str:
    """Name the first few."""
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def save_checkpoint(
    model: nn.Module, folder: str | Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write `model.safetensors` into `folder`, which is made when missing.

    Shared parameters are written once, under their first name. The file appears whole or not at
    all, so that a killed run leaves the previous one readable. `dtype` None keeps the tensors'.
    """
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
