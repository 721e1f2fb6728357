"""What a model's folder holds: the files worth having, whether all are there, the weights' headers.

Only data is ever wanted: JSON, safetensors, templates, vocabularies and the licence. Pickled
weights and code are not, because both run what their author wrote; Qwen2.5-Omni's voices are the
one pickle that is fetched, and it is opened for its tensors only (`models/omni/speakers.py`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import SafetensorError, safe_open

from qianyan.errors import CheckpointError

FILES = (
    "*.json",
    "*.safetensors",
    "*.jinja",
    "merges.txt",
    "vocab.txt",
    "qwen.tiktoken",
    "spk_dict.pt",
    "README.md",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
)
"""What is downloaded, by name, from the top of a repository; never pickled weights, never code."""
POOLING = "1_Pooling/config.json"
"""How an embedding model makes its vectors; the one file that is not at the top."""
CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor as a safetensors header describes it; `dtype` is the format's word, such as BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def is_wanted(name: str) -> bool:
    """Say whether a repository's file belongs into a model's folder."""
    is_at_top = "/" not in name and any(fnmatchcase(name, pattern) for pattern in FILES)
    return is_at_top or name == POOLING


def read_shard_names(index: Path) -> list[str]:
    """Read which weight files an index names, sorted; CheckpointError when it cannot be read.

    Names that would leave the folder are refused.
    """
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{INDEX} has no readable weight_map ({type(error).__name__}); "
            "expected tensor names with their files. Pull the model again."
        ) from error
    for name in names:
        if not isinstance(name, str) or "/" in name or "\\" in name or not is_wanted(name):
            raise CheckpointError(
                f"{INDEX} names a weight file outside its folder; expected .safetensors beside it."
            )
    return sorted(names)


def find_weights(folder: Path) -> list[Path]:
    """List the weight files a folder should hold, there or not; empty when it names none."""
    if (folder / INDEX).is_file():
        return [folder / name for name in read_shard_names(folder / INDEX)]
    return [folder / SINGLE] if (folder / SINGLE).is_file() else []


def is_complete(folder: Path) -> bool:
    """Say whether a folder has its config and all of its weights, none of them cut short."""
    try:
        weights = find_weights(folder)
    except CheckpointError:
        return False
    return (folder / CONFIG).is_file() and bool(weights) and all(map(_is_whole, weights))


def _is_whole(weights: Path) -> bool:
    """Compare a safetensors file's length with what its header promises."""
    try:
        with safe_open(weights, framework="numpy"):
            return True
    except (SafetensorError, OSError):
        return False


def read_headers(folder: Path) -> Iterator[StoredTensor]:
    """Yield the tensors of a folder's weight files from their headers; no weight is read.

    Weight files that are missing are passed over. Raises CheckpointError for a damaged one.
    """
    for weights in find_weights(folder):
        if not weights.is_file():
            continue
        try:
            with weights.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                # The format's own limit; a longer header is no header.
                header = json.loads(file.read(min(length, 100_000_000)))
            for name, entry in header.items():
                if name != "__metadata__":
                    start, stop = entry["data_offsets"]
                    yield StoredTensor(
                        name=name,
                        dtype=str(entry["dtype"]),
                        shape=tuple(map(int, entry["shape"])),
                        size_bytes=int(stop) - int(start),
                    )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{weights.name} cannot be read as safetensors ({type(error).__name__}). "
                "Pull the model again."
            ) from error


def size_bytes(folder: Path) -> int:
    """Add up the sizes of a folder's files, links followed; what vanishes meanwhile is nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
