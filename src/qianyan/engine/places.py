"""Where models lie on disk: Hugging Face's cache, ModelScope's cache, folders pulled elsewhere.

The two caches are laid out as their own clients lay them out, so that models are found whoever
fetched them and nothing is fetched twice:

    <HF_HUB_CACHE>/models--owner--name/{blobs,refs,snapshots/<commit>}
    <modelscope>/models/owner--name/snapshots/<revision>      ModelScope's clients from 1.38 on
    <modelscope>/[hub/]models/owner/name                      older ones; dots in the name are ___

Other folders are remembered, one small file each, among Hugging Face's assets.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from huggingface_hub import constants

from qianyan.engine.folder import is_complete
from qianyan.settings import modelscope_cache

Source = Literal["huggingface", "modelscope"]
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WORKSHOP = ".qianyan"
"""Inside a plain folder: files on their way, the lock, and where the model came from."""
ORIGIN = "origin.json"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder that holds a model, or a part of one; `source` is a hub, "bundled" or "folder"."""

    name: str
    source: str
    folder: Path


def is_hub_name(model: str) -> bool:
    """Say whether `model` is owner/name and safe as a part of a path."""
    return (
        HUB_ID.fullmatch(model) is not None
        and ".." not in model
        and "--" not in model
        and not any(part.startswith((".", "-")) for part in model.split("/"))
    )


def huggingface_folder(model: str) -> Path:
    """Say where Hugging Face's cache keeps all of a model."""
    return Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"


def modelscope_folder(model: str, revision: str | None) -> Path:
    """Say where ModelScope's cache keeps a model's files: where they are already, else anew."""
    if revision is None:
        for folder in _older_modelscope_folders(model):
            if folder.is_dir():
                return folder
    return _modelscope_snapshots(model) / (revision or "master")


def _modelscope_snapshots(model: str) -> Path:
    return modelscope_cache() / "models" / model.replace("/", "--") / "snapshots"


def _older_modelscope_folders(model: str) -> list[Path]:
    owner, name = model.split("/")
    path = Path("models", owner, name.replace(".", "___"))
    return [modelscope_cache() / path, modelscope_cache() / "hub" / path]


def find_on_disk(model: str) -> Path | None:
    """Find a hub's model on disk, complete; Hugging Face's before ModelScope's before others."""
    if not is_hub_name(model):
        return None
    folders = [
        *_snapshots(huggingface_folder(model)),
        *_folders(_modelscope_snapshots(model)),
        *_older_modelscope_folders(model),
        *(place.folder for place in remembered_places() if place.name == model),
    ]
    return next((folder for folder in folders if is_complete(folder)), None)


def _snapshots(storage: Path) -> list[Path]:
    """List a cached model's snapshots: what `main` points at, then the others, newest first."""
    try:
        main = (storage / "refs" / "main").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        main = ""
    folders = _folders(storage / "snapshots")
    return sorted(folders, key=lambda path: (path.name != main, -path.stat().st_mtime))


def _folders(parent: Path) -> list[Path]:
    """List the folders in a folder; what is not there or not for us to see holds none."""
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except OSError:
        return []


def all_places() -> Iterator[Place]:
    """Yield every place where a hub's model lies, complete or not."""
    for storage in _folders(Path(constants.HF_HUB_CACHE)):
        kind, _, name = storage.name.partition("--")
        if kind == "models" and name:
            # A pull that has only begun has no snapshot yet; its parts are elsewhere.
            folder = next(iter(_snapshots(storage)), storage)
            yield Place(name=name.replace("--", "/"), source="huggingface", folder=folder)
    yield from _modelscope_places()
    yield from remembered_places()


def _modelscope_places() -> Iterator[Place]:
    for parent in (modelscope_cache() / "models", modelscope_cache() / "hub" / "models"):
        for owner in _folders(parent):
            for folder in _folders(owner / "snapshots" if "--" in owner.name else owner):
                name = f"{owner.name}/{folder.name.replace('___', '.')}"
                if "--" in owner.name:
                    name = owner.name.replace("--", "/")
                yield Place(name=name, source="modelscope", folder=folder)


def write_origin(place: Place) -> None:
    """Write into a plain folder where its model comes from."""
    workshop = place.folder / WORKSHOP
    workshop.mkdir(parents=True, exist_ok=True)
    origin = {"model": place.name, "source": place.source}
    (workshop / ORIGIN).write_text(json.dumps(origin), encoding="utf-8")


def remember(folder: Path) -> None:
    """Write down that a folder outside the caches holds a model."""
    record = _records() / f"{sha256(str(folder.resolve()).encode()).hexdigest()[:32]}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"folder": str(folder.resolve())}), encoding="utf-8")


def _records() -> Path:
    return Path(constants.HF_ASSETS_CACHE) / "qianyan" / "pulled"


def remembered_places() -> Iterator[Place]:
    """Yield the folders outside the caches that still hold what was pulled into them."""
    records = _records()
    for record in sorted(records.glob("*.json")) if records.is_dir() else []:
        folder = Path(_text(record, "folder"))
        origin = folder / WORKSHOP / ORIGIN
        if folder.is_absolute() and origin.is_file():
            name, source = _text(origin, "model"), _text(origin, "source")
            yield Place(name=name or folder.name, source=source or "folder", folder=folder)


def _text(file: Path, key: str) -> str:
    """Read one word of a small JSON file; empty when it is damaged."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return value if isinstance(value, str) else ""
