"""A trained model as a folder in the official format: the names and numbers of the one it was.

Every tensor of the source checkpoint is written under its own name, in its own format, with the
trained values where they changed; tokenizer, template and settings are taken over. The folder
appears whole or not at all.
"""

import shutil
from pathlib import Path

import torch
from torch import nn

from qianyan.engine.folder import INDEX, is_wanted
from qianyan.errors import CheckpointError, quote
from qianyan.models.registry import RENAMES
from qianyan.models.saved import ShardWriter
from qianyan.models.weights import list_tensors, read_tensors, renamed


def export_model(model: nn.Module, source: Path, out: Path) -> None:
    """Write `model`, which began as the checkpoint in `source`, into the folder `out`.

    Raises CheckpointError when there is too little room or `out` cannot be written; what was there
    before stays then.
    """
    specs = list_tensors(source)
    trained = dict(model.named_parameters(remove_duplicate=False))
    unfinished = out.with_name(f"{out.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        with ShardWriter(unfinished, specs) as writer:
            for name, tensor in read_tensors(source):
                value = trained.get(renamed(name, RENAMES), tensor)
                writer.write(name, _plain(value, specs[name].dtype))
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


def _plain(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.detach().to(device="cpu", dtype=dtype).contiguous()


def _is_weights(file: Path) -> bool:
    return file.suffix == ".safetensors" or file.name == INDEX
