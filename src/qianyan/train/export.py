"""A trained model as a folder in the official format: the names and numbers of the one it was.

Every tensor of the source checkpoint is written under its own name, in its own format, with the
trained values where they changed; tokenizer, template, settings and voices are taken over. So is
what speaks of a Qwen2.5-Omni, unless its Thinker alone is wanted. The folder appears whole or not
at all.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from qianyan.engine.folder import CONFIG, INDEX, is_wanted
from qianyan.errors import CheckpointError, ConfigError, quote
from qianyan.models.omni.speakers import PICKLED_NAME, SAFE_NAME
from qianyan.models.registry import RENAMES, UNREAD, read_config_json, thinker_alone
from qianyan.models.saved import ShardWriter
from qianyan.models.weights import list_tensors, read_tensors, renamed
from qianyan.train.lora import Addition, lora_layers, save_adapter
from qianyan.train.recipe import Export, Lora
from qianyan.train.world import World, whole


def require_new(out: Path) -> None:
    """Raise ConfigError for a folder that holds something already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{quote(out)} is there already; expected the name of a new folder for the model."
        )


def export_model(
    model: nn.Module, source: Path, out: Path, *, lora: Lora | None, world: World, export: Export
) -> None:
    """Write `model`, which began as the checkpoint in `source`, into the new folder `out`.

    Low-rank additions are in its weights, and apart in adapter/. Every process takes part, because
    each may hold a piece of the model; the first one writes.

    Raises CheckpointError when there is too little room or `out` cannot be written; what was there
    before stays then.
    """
    trained = dict(model.named_parameters(remove_duplicate=False))
    added = {f"{path}.weight": (layer, one) for path, layer, one in lora_layers(model)}
    names = _names(source, export)
    unfinished = out.with_name(f"{out.name}.unfinished")
    try:
        if world.is_first:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            _write(unfinished, names, source, partial(_put_together, trained=trained, added=added))
            _copy_files(source, unfinished, export)
        else:
            for name in names:
                _put_together(renamed(name, RENAMES), trained=trained, added=added)
        if lora is not None:
            save_adapter(model, lora, unfinished / "adapter", world=world, source=source.name)
        if world.is_first:
            if out.exists():
                out.rmdir()  # an empty one
            unfinished.rename(out)
    except OSError as error:
        raise CheckpointError(
            f"The trained model cannot be written to {quote(out)} "
            f"({error.strerror or type(error).__name__}); the run's last state is kept. Make room "
            "and resume."
        ) from error


def _names(source: Path, export: Export) -> dict[str, str]:
    """Say under which name each wanted tensor of the source is written."""
    names = list(list_tensors(source))
    if export == "whole":
        return {name: name for name in names}
    kept = (name for name in names if not name.startswith(UNREAD))
    return {name: name.removeprefix("thinker.") for name in kept}


def _write(
    folder: Path,
    names: Mapping[str, str],
    source: Path,
    put_together: Callable[[str], tuple[Tensor | None, Tensor | None]],
) -> None:
    """Write the wanted tensors of the source: trained, with an addition, or as they were."""
    specs = {name: spec for name, spec in list_tensors(source).items() if name in names}
    additions: dict[str, Tensor] = {}  # to weights that were kept in codes
    left = set(specs)
    with ShardWriter(folder, {names[name]: spec for name, spec in specs.items()}) as writer:
        for name, spec in specs.items():
            value, addition = put_together(renamed(name, RENAMES))
            if value is not None:
                writer.write(names[name], _sum(value, addition).to(spec.dtype))
                left.remove(name)
            elif addition is not None:
                additions[name] = addition
        for name, tensor in read_tensors(source) if left else ():
            if name in left:
                writer.write(names[name], _sum(tensor, additions.get(name)).to(tensor.dtype))
        writer.finish()


def _copy_files(source: Path, folder: Path, export: Export) -> None:
    """Take over what is no weights; a Thinker alone has a config.json of its own and no voices."""
    for file in source.iterdir():
        if file.is_file() and is_wanted(file.name) and not _is_weights(file):
            shutil.copyfile(file, folder / file.name)
    if export == "thinker":
        text = json.dumps(thinker_alone(read_config_json(source)), indent=2, ensure_ascii=False)
        (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")
        for name in (PICKLED_NAME, SAFE_NAME):
            (folder / name).unlink(missing_ok=True)


def _put_together(
    key: str,
    *,
    trained: Mapping[str, nn.Parameter],
    added: Mapping[str, tuple[nn.Module, Addition]],
) -> tuple[Tensor | None, Tensor | None]:
    """Give a tensor's trained value and its low-rank addition, None where there is none."""
    value = whole(trained[key].detach()) if key in trained else None
    layer, addition = added.get(key, (None, None))
    if layer is None or addition is None:
        return value, None
    return value, addition.weight(layer)


def _sum(value: Tensor, addition: Tensor | None) -> Tensor:
    value = value.cpu()
    return value if addition is None else value.float() + addition.cpu()


def _is_weights(file: Path) -> bool:
    return file.name == INDEX or (file.suffix == ".safetensors" and file.name != SAFE_NAME)
