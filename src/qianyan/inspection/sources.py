"""From what the user typed to an ordered list of pictures: files, folders, globs, URLs.

Nothing is opened here. What cannot be a picture becomes an entry with a failure, so that it shows
up in the results with a sentence instead of vanishing.
"""

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qianyan.errors import InputError, quote
from qianyan.inspection.records import Failure

PICTURE_SUFFIXES = frozenset(
    {
        ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg",
        ".png", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
VIDEO_SUFFIXES = frozenset(
    {".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)
STANDARD_INPUT = "-"
RUN_FILE = ".run.json"
"""Lies in every results folder, and so marks one."""


@dataclass(frozen=True)
class Source:
    """One thing to inspect as results name it: a path or URL, or the reason why there is none."""

    name: str
    failure: Failure | None = None

    @property
    def is_url(self) -> bool:
        """Whether the picture has to be downloaded."""
        return is_url(self.name)


@dataclass(frozen=True)
class SourceList:
    """What to inspect, in order, each path and URL once; `num_repeated` more were given again."""

    entries: tuple[Source, ...]
    num_repeated: int


def is_url(name: str) -> bool:
    """Tell an http(s) URL from a path."""
    return name.lower().startswith(("http://", "https://"))


def list_sources(given: Sequence[str], *, standard_input: Iterable[str] = ()) -> SourceList:
    """Turn arguments into sources, in the order given; folders recursively, names sorted.

    `-` stands for one source per line of `standard_input`; empty lines are skipped. A path that
    leads to the same file as an earlier one is counted, not listed again.
    """
    entries: list[Source] = []
    seen: set[str] = set()
    num_repeated = 0
    for name in _names(given, standard_input):
        for source in _expand(name):
            is_path = source.failure is None and not source.is_url
            identity = str(Path(source.name).resolve()) if is_path else source.name
            if identity in seen:
                num_repeated += 1
                continue
            seen.add(identity)
            entries.append(source)
    if not entries:
        raise InputError("There is nothing to inspect; name files, folders, globs or URLs.")
    return SourceList(tuple(entries), num_repeated)


def _names(given: Sequence[str], standard_input: Iterable[str]) -> Iterable[str]:
    for name in given:
        if name == STANDARD_INPUT:
            yield from (line.strip() for line in standard_input if line.strip())
        else:
            yield name


def _expand(name: str) -> list[Source]:
    """List what one argument stands for."""
    if is_url(name):
        return [Source(name)]
    scheme, separator, _ = name.partition("://")
    if separator:
        return [_failed(name, "bad_scheme", f"has the scheme {quote(scheme)}; expected http(s)")]
    path = Path(name)
    try:
        if path.is_dir():
            return _folder(name, path)
        is_there = path.exists()
    except (OSError, ValueError):  # too long, a NUL inside, or a folder that may not be read
        return [_failed(name, "missing", "cannot be opened; expected a picture, folder or glob")]
    if not is_there and glob.has_magic(name):
        return _matches(name)
    if not is_there:
        return [_failed(name, "missing", "does not exist; expected a picture, folder or glob")]
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return [_failed(name, "video", "is a video; this version inspects pictures only")]
    return [Source(name)]


def _folder(name: str, folder: Path) -> list[Source]:
    """List the pictures below a folder, sorted; hidden ones and results folders are left out.

    Marked pictures of an earlier run are no new pictures, and the run that is being resumed often
    lies in the folder that it inspects.
    """
    runs = {mark.parent for mark in folder.rglob(RUN_FILE)} - {folder}
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and runs.isdisjoint(path.parents)
        and path.is_file()
    )
    if not found:
        known = ", ".join(sorted(PICTURE_SUFFIXES))
        return [_failed(name, "no_pictures", f"holds no pictures; expected files such as {known}")]
    return [source for path in found for source in _expand(str(path))]


def _matches(pattern: str) -> list[Source]:
    # Path.glob refuses absolute patterns.
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    sources = [source for path in found for source in _expand(path)]
    if sources:
        return sources
    return [
        _failed(pattern, "no_pictures", "matches nothing; expected a glob such as 'site/*.jpg'")
    ]


def _failed(name: str, code: str, what: str) -> Source:
    return Source(name, Failure(code, f"{quote(name)} {what}."))
