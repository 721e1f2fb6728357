"""Where a model's files are: a folder, the package itself, or a repository of the Hub."""

import re
from importlib.resources import files
from pathlib import Path

import httpx2
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from qianyan.errors import CheckpointError, quote

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
BUNDLED = "bundled"
BUNDLED_FOLDER = Path(str(files("qianyan"))) / "assets" / "bundled"
"""The models that come with the package, `detector/` and `judge/`; the judge answers chats."""
FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt"]
"""What is downloaded: never pickled weights, never code."""


def find_checkpoint(model: str | Path) -> Path:
    """Return a checkpoint's folder, downloading `owner/name` from the Hub when it is no folder.

    The name "bundled" stands for the small model that comes with the package.
    """
    if model == BUNDLED:
        return BUNDLED_FOLDER / "judge"
    folder = Path(model)
    if model and folder.is_dir():
        return folder
    if not isinstance(model, str) or not HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"{quote(model)} is not a folder; expected a checkpoint folder or a Hub name "
            "such as Qwen/Qwen2.5-VL-3B-Instruct."
        )
    try:
        return Path(snapshot_download(model, allow_patterns=FILES))
    except (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        httpx2.HTTPError,
        OSError,
    ) as error:
        raise CheckpointError(
            f"{quote(model)} is neither a folder nor a model that can be downloaded "
            f"({type(error).__name__}). Check the name and the network, or give a folder."
        ) from error
