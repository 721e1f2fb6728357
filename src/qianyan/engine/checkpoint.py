"""Where a model's files are: a folder, the package itself, on disk under a hub's name, or a hub."""

from importlib.resources import files
from pathlib import Path

from qianyan.engine.places import HUB_ID, find_on_disk
from qianyan.errors import CheckpointError, quote

BUNDLED = "bundled"
BUNDLED_FAST = "bundled-fast"
"""The bundled detector alone, which finds boxes and answers nothing."""
BUNDLED_FOLDER = Path(str(files("qianyan"))) / "assets" / "bundled"
"""The models that come with the package, `detector/` and `judge/`; the judge answers chats."""


def find_checkpoint(model: str | Path) -> Path:
    """Return a checkpoint's folder, downloading `owner/name` when it is neither folder nor on disk.

    What was pulled from Hugging Face or ModelScope is found without network, as it is; a pull
    brings what is new. The name "bundled" stands for the small model that comes with the package.
    """
    found = find_local(model)
    if found is not None:
        return found
    from qianyan.engine.pull import pull  # noqa: PLC0415  (what speaks to hubs takes 0.2 s to import)

    try:
        return pull(str(model))
    except CheckpointError as error:
        raise CheckpointError(
            f"{quote(model)} is neither a folder nor a model that can be downloaded. {error}"
        ) from error


def find_local(model: str | Path) -> Path | None:
    """Find a checkpoint without network; None for a hub's name of which nothing whole is on disk.

    Raises CheckpointError for what is neither a folder nor such a name.
    """
    if model == BUNDLED:
        return BUNDLED_FOLDER / "judge"
    if model == BUNDLED_FAST:
        raise CheckpointError(
            f"{quote(model)} only finds fire, smoke and people in pictures; expected a model that "
            "answers, such as bundled."
        )
    folder = Path(model)
    if model and folder.is_dir():
        return folder
    if not isinstance(model, str) or not HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"{quote(model)} is not a folder; expected a checkpoint folder or a Hub name "
            "such as Qwen/Qwen2.5-VL-3B-Instruct."
        )
    return find_on_disk(model)
