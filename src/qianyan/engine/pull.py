"""Bring a model from a hub to the disk: listed, fetched, verified, and only then in its place.

All files are fetched under other names first. The model's folder gets them when every one of them
has been verified, config.json last: a folder that has one is whole. A killed pull leaves parts that
the next one goes on with.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # no __all__

from qianyan.engine.folder import CONFIG, INDEX, read_shard_names
from qianyan.engine.hub import Listing, RemoteFile, list_files
from qianyan.engine.places import (
    WORKSHOP,
    Place,
    Source,
    huggingface_folder,
    modelscope_folder,
    remember,
    write_origin,
)
from qianyan.engine.transfer import connect, fetch, is_verified, length
from qianyan.errors import CheckpointError, quote


@dataclass(frozen=True, kw_only=True)
class PullProgress:
    """How far a pull has come: bytes and files of the whole model, and the file it is at."""

    file: str
    done_bytes: int
    total_bytes: int
    num_files_done: int
    num_files: int


def pull(  # noqa: PLR0913  (each is a choice of the user's)
    model: str,
    *,
    source: Source = "huggingface",
    folder: Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    on_progress: Callable[[PullProgress], None] | None = None,
) -> Path:
    """Fetch a model, or what of it is missing or new, and return its folder.

    `folder` None is the hub's own cache. `endpoint` is a mirror's address. Two pulls of one model
    at once wait for each other. Raises CheckpointError with a sentence when the model cannot be
    had; what has come is kept, where it is good, and nothing looks like a model that is none.
    """
    listing = list_files(model, source=source, revision=revision, token=token, endpoint=endpoint)
    place = _choose_place(listing, folder, revision)
    try:
        with _locked(place.lock):
            _fetch_all(listing, place, on_progress or _ignore)
            place.publish(listing)
    except OSError as error:
        raise CheckpointError(
            f"{quote(place.folder)} cannot be written ({error.strerror or type(error).__name__}). "
            "What has come is kept; make room or choose another folder and pull again."
        ) from error
    return place.folder


def _ignore(progress: PullProgress) -> None:
    """Take no notice."""


class _Destination(Protocol):
    """Where a pull puts a model."""

    folder: Path
    lock: Path

    def prepare(self, listing: Listing) -> None:
        """Make the folders, or say what stands in the way."""

    def find(self, file: RemoteFile) -> Path | None:
        """Find a file that is there already, whole."""

    def whole(self, file: RemoteFile) -> Path:
        """Say where a file goes once it is verified."""

    def publish(self, listing: Listing) -> None:
        """Give the model's folder its files, config.json last."""


class _HuggingFaceCache:
    """Hugging Face's cache: files by their checksum, and links to them by their name."""

    def __init__(self, listing: Listing) -> None:
        self._storage = huggingface_folder(listing.model)
        self.folder = self._storage / "snapshots" / listing.commit
        self.lock = self._storage.parent / ".locks" / self._storage.name / "pull.lock"

    def prepare(self, listing: Listing) -> None:  # noqa: ARG002  (as the protocol has it)
        (self._storage / "blobs").mkdir(parents=True, exist_ok=True)

    def find(self, file: RemoteFile) -> Path | None:
        blob = self.whole(file)
        return blob if blob.is_file() and length(blob) == file.size_bytes else None

    def whole(self, file: RemoteFile) -> Path:
        if file.checksum is None:
            raise CheckpointError(f"Hugging Face declares no checksum for {quote(file.name)}.")
        return self._storage / "blobs" / file.checksum

    def publish(self, listing: Listing) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in _in_order(listing):
            _link(self.whole(file), self.folder / file.name)
        if listing.revision != listing.commit:
            reference = self._storage / "refs" / listing.revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            unfinished = reference.with_name(f"{reference.name}.unfinished")
            unfinished.write_text(listing.commit, encoding="utf-8")
            unfinished.replace(reference)


def _link(blob: Path, pointer: Path) -> None:
    """Point to a blob, relatively; where there are no links, copy it."""
    pointer.parent.mkdir(exist_ok=True)
    unfinished = pointer.with_name(f"{pointer.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        unfinished.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        shutil.copyfile(blob, unfinished)
    unfinished.replace(pointer)


class _PlainFolder:
    """A folder that holds the files themselves: one the user named, or ModelScope's cache."""

    def __init__(self, listing: Listing, folder: Path, *, is_elsewhere: bool) -> None:
        self.folder = folder
        self._workshop = folder / WORKSHOP
        self._place = Place(name=listing.model, source=listing.source, folder=folder)
        self._is_elsewhere = is_elsewhere
        self.lock = self._workshop / "lock"

    def prepare(self, listing: Listing) -> None:
        names = {file.name for file in listing.files}
        others = sorted(p.name for p in self.folder.glob("*.safetensors") if p.name not in names)
        if others:
            raise CheckpointError(
                f"{quote(self.folder)} holds other weights ({quote(others[0])}); "
                "expected an empty folder or an earlier pull of the same model."
            )
        write_origin(self._place)
        if self._is_elsewhere:
            remember(self.folder)

    def find(self, file: RemoteFile) -> Path | None:
        for path in (self.folder / file.name, self.whole(file)):
            if path.is_file() and is_verified(file, path):
                return path
        return None

    def whole(self, file: RemoteFile) -> Path:
        return self._workshop / file.name

    def publish(self, listing: Listing) -> None:
        fresh = [file for file in _in_order(listing) if self.whole(file).is_file()]
        if fresh and (self.folder / CONFIG).is_file():
            # Without its config the folder is no model while old and new files are mixed.
            if fresh[-1].name == CONFIG:
                (self.folder / CONFIG).unlink()
            else:
                (self.folder / CONFIG).replace(self._workshop / CONFIG)
                fresh.append(next(file for file in listing.files if file.name == CONFIG))
        for file in fresh:
            (self.folder / file.name).parent.mkdir(exist_ok=True)
            self.whole(file).replace(self.folder / file.name)


def _in_order(listing: Listing) -> list[RemoteFile]:
    """Order files so that a folder counts as a model only when the last one is there."""
    return sorted(
        listing.files, key=lambda file: (file.name == CONFIG, file.name.endswith(".safetensors"))
    )


def _choose_place(listing: Listing, folder: Path | None, revision: str | None) -> _Destination:
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"{quote(folder)} is a file; expected a folder to pull into.")
        return _PlainFolder(listing, folder, is_elsewhere=True)
    if listing.source == "modelscope":
        cached = modelscope_folder(listing.model, revision)
        return _PlainFolder(listing, cached, is_elsewhere=False)
    return _HuggingFaceCache(listing)


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        yield


def _fetch_all(
    listing: Listing, place: _Destination, on_progress: Callable[[PullProgress], None]
) -> None:
    """Fetch what is not there yet: small files first, so that what is wrong shows early."""
    place.prepare(listing)
    found = {file.name: place.find(file) for file in listing.files}
    lacking = [file for file in listing.files if found[file.name] is None]
    _check_space(lacking, place)
    _check_shards(listing, found.get(INDEX))
    total = sum(file.size_bytes or 0 for file in listing.files)
    done = total - sum(file.size_bytes or 0 for file in lacking)
    num_done = len(listing.files) - len(lacking)

    def tell(file: RemoteFile, at: int) -> None:
        on_progress(
            PullProgress(
                file=file.name,
                done_bytes=min(done + at, total),
                total_bytes=total,
                num_files_done=num_done,
                num_files=len(listing.files),
            )
        )

    with connect(listing) as client:
        for file in sorted(lacking, key=lambda file: (file.name != INDEX, file.size_bytes or 0)):
            whole = place.whole(file)
            whole.parent.mkdir(exist_ok=True)
            fetch(client, listing, file, _part(whole), partial(tell, file))
            _part(whole).replace(whole)
            done, num_done = done + (file.size_bytes or 0), num_done + 1
            tell(file, 0)
            if file.name == INDEX:
                _check_shards(listing, whole)


def _part(whole: Path) -> Path:
    """Name the file that a transfer grows."""
    return whole.with_name(f"{whole.name}.incomplete")


def _check_space(lacking: list[RemoteFile], place: _Destination) -> None:
    needed = sum(
        max((file.size_bytes or 0) - length(_part(place.whole(file))), 0) for file in lacking
    )
    free = shutil.disk_usage(place.lock.parent).free
    if needed > free:
        raise CheckpointError(
            f"The model needs {needed / 1e9:.1f} GB more and {free / 1e9:.1f} GB are free for "
            f"{quote(place.folder)}; nothing was fetched. Make room or choose another folder."
        )


def _check_shards(listing: Listing, index: Path | None) -> None:
    """Refuse a repository whose index names files that it does not hold."""
    if index is None:
        return
    names = {file.name for file in listing.files}
    missing = [name for name in read_shard_names(index) if name not in names]
    if missing:
        raise CheckpointError(
            f"{quote(listing.model)} is incomplete: its {INDEX} names {quote(missing[0])}, which "
            "is not there. Use another revision or the other source."
        )
