"""The state of an interrupted training in its run folder: written whole, read checked."""

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from qianyan.errors import CheckpointError, quote

STATE_FILE = "last.pt"


def write_run_state(run_dir: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and plain containers; the file before is replaced only when done.

    Raises CheckpointError when it cannot be written; the file before stays then.
    """
    draft = run_dir / f"{STATE_FILE}.part"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(run_dir / STATE_FILE)
    except (OSError, RuntimeError) as error:  # torch's writer tells a full disk as the latter
        draft.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else None
        raise CheckpointError(
            f"The run's state cannot be saved in {quote(run_dir.name)} "
            f"({reason or 'the disk may be full'}); the one before is kept. Make room and resume."
        ) from error


def read_run_state(run_dir: Path) -> dict[str, Any]:
    """Read what write_run_state() wrote.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = run_dir / STATE_FILE
    if not path.exists():
        raise CheckpointError(
            f"The run folder '{run_dir.name}' has no {STATE_FILE}; there is nothing to resume. "
            "Start without resuming."
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
        raise CheckpointError(
            f"{STATE_FILE} in '{run_dir.name}' is damaged or holds something else "
            f"({type(error).__name__}). Delete it and start without resuming."
        ) from error
    return state
