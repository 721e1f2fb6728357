"""Quantise a checkpoint once, into a folder that loads as it is.

Tensors are read, rounded and written one at a time. Everything goes into OUT.unfinished, which
takes its real name when it is complete: a killed run leaves nothing that looks like a model, and
the next one begins anew.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # no __all__

from qianyan.engine.checkpoint import find_checkpoint
from qianyan.engine.folder import CONFIG, INDEX, POOLING, is_wanted
from qianyan.errors import CheckpointError, quote
from qianyan.models.quantize import Kind
from qianyan.models.registry import QuantizedCheckpoint, quantize_checkpoint
from qianyan.models.saved import ShardWriter

LOCK, LOCK_TIMEOUT_S = "lock", 0.1


@dataclass(frozen=True, kw_only=True)
class QuantizeProgress:
    """How far it has come, in bytes of the quantised model."""

    done_bytes: int
    total_bytes: int


def quantize_model(
    model: str | Path,
    out: str | Path,
    *,
    to: Kind,
    on_progress: Callable[[QuantizeProgress], None] | None = None,
) -> Path:
    """Write a model quantised into the new folder `out`, with everything else it needs; return it.

    `model` is a folder or a hub's name. What is written loads as `quantize=to` makes it while the
    original loads, number by number. Raises ConfigError and CheckpointError for what is quantised
    already, a folder that is there already, too little room; nothing is left behind then.
    """
    out, source = Path(out), find_checkpoint(model)
    _require_new(out)
    made = quantize_checkpoint(source, to)
    others = _others(source)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _require_room(out, made, others)
        with _workshop(out) as workshop:
            _write(made, workshop, on_progress or _ignore)
            for file in others:
                copy = workshop / file.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)
            text = json.dumps(made.config, indent=2, ensure_ascii=False)
            (workshop / CONFIG).write_text(text, encoding="utf-8")
            (workshop / LOCK).unlink(missing_ok=True)
            _require_new(out)  # nobody was in the way when this began
            workshop.rename(out)
    except OSError as error:
        raise CheckpointError(
            f"{quote(out)} cannot be written ({error.strerror or type(error).__name__}). "
            "Make room or choose another folder and quantise again."
        ) from error
    return out


def _ignore(progress: QuantizeProgress) -> None:
    """Take no notice."""


def _require_new(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise CheckpointError(f"{quote(out)} is there already; expected the name of a new folder.")


def _others(source: Path) -> list[Path]:
    """List the files that are taken over as they are: tokenizer, templates, processor, licence."""
    names = (*sorted(path.name for path in source.iterdir()), POOLING)
    return [
        source / name
        for name in names
        if is_wanted(name)
        and name not in (CONFIG, INDEX)
        and not name.endswith(".safetensors")
        and (source / name).is_file()
    ]


def _require_room(out: Path, made: QuantizedCheckpoint, others: list[Path]) -> None:
    needed = made.size_bytes + sum(path.stat().st_size for path in others)
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise CheckpointError(
            f"The quantised model needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free for "
            f"{quote(out)}; nothing was written. Make room or choose another folder."
        )


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out`, for one run at a time; removed unless it was renamed."""
    workshop = out.with_name(f"{out.name}.unfinished")
    workshop.mkdir(exist_ok=True)
    try:
        with WeakFileLock(workshop / LOCK, timeout=LOCK_TIMEOUT_S):
            for left in workshop.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
                elif left.name != LOCK:
                    left.unlink()
            try:
                yield workshop
            finally:
                shutil.rmtree(workshop, ignore_errors=True)
    except Timeout as error:
        raise CheckpointError(
            f"{quote(out)} is being written by another run; wait for it or choose another folder."
        ) from error


def _write(
    made: QuantizedCheckpoint, folder: Path, on_progress: Callable[[QuantizeProgress], None]
) -> None:
    done = 0
    with ShardWriter(folder, made.specs) as writer:
        for name, tensor in made.tensors:
            writer.write(name, tensor)
            done += tensor.nbytes
            on_progress(QuantizeProgress(done_bytes=done, total_bytes=made.size_bytes))
        writer.finish()
