"""A trained model as a folder in the official format: the names and numbers of the one it was.

Every tensor of the source checkpoint is written under its own name, in its own format, with the
trained values where they changed; tokenizer, template and settings are taken over. The folder
appears whole or not at all.
"""

import shutil
from pathlib import Path

from torch import nn

from qianyan.engine.folder import INDEX, is_wanted
from qianyan.errors import CheckpointError, quote
from qianyan.models.registry import RENAMES
from qianyan.models.saved import ShardWriter
from qianyan.models.weights import list_tensors, read_tensors, renamed
from qianyan.train.world import World, whole


def export_model(model: nn.Module, source: Path, out: Path, *, world: World) -> None:
    """Write `model`, which began as the checkpoint in `source`, into the folder `out`.

    Every process takes part, because each may hold a piece of it; the first one writes.

    Raises CheckpointError when there is too little room or `out` cannot be written; what was there
    before stays then.
    """
    trained = dict(model.named_parameters(remove_duplicate=False))
    if not world.is_first:
        for name in list_tensors(source):
            if (key := renamed(name, RENAMES)) in trained:
                whole(trained[key])
        return
    specs = list_tensors(source)
    unfinished = out.with_name(f"{out.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        with ShardWriter(unfinished, specs) as writer:
            for name, spec in specs.items():
                if (key := renamed(name, RENAMES)) in trained:
                    value = whole(trained[key].detach())
                    writer.write(name, value.to(device="cpu", dtype=spec.dtype))
            for name, tensor in read_tensors(source):
                if renamed(name, RENAMES) not in trained:
                    writer.write(name, tensor)
            writer.finish()
        for file in source.iterdir():
            if file.is_file() and is_wanted(file.name) and not _is_weights(file):
                shutil.copyfile(file, unfinished / file.name)
        shutil.rmtree(out, ignore_errors=True)
        unfinished.rename(out)
    except OSError as error:
        raise CheckpointError(
            f"The trained model cannot be written to {quote(out)} "
            f"({error.strerror or type(error).__name__}); the run's last state is kept. Make room "
            "and resume."
        ) from error


def _is_weights(file: Path) -> bool:
    return file.suffix == ".safetensors" or file.name == INDEX
