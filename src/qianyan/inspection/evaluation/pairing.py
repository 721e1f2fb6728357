"""Which verdict belongs to which labelled picture: by path, by content, at last by name.

A run looks once at pictures that are the same bytes, and results are scored on other machines than
the one they were made on, so a path alone is not enough. A name decides only where the labelled
file is not at hand to compare, and only where both sides have it once.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

from qianyan.errors import ConfigError, quote
from qianyan.inspection.evaluation.precision import Pair
from qianyan.inspection.records import Inspection
from qianyan.inspection.sources import is_url
from qianyan.labels.photos import LabelledPhoto


@dataclass(frozen=True)
class Paired:
    """Labelled pictures with their verdicts, and what was left over or does not fit."""

    pairs: tuple[Pair, ...]
    without_verdict: tuple[str, ...] = ()
    """Names of labelled pictures that the run did not look at."""
    other_size: tuple[str, ...] = ()
    """Names of pictures whose labels were made at another size: their boxes cannot agree."""


def pair_verdicts(photos: Sequence[LabelledPhoto], inspections: Sequence[Inspection]) -> Paired:
    """Find each labelled picture's verdict; ConfigError where none has one."""
    finder = _Finder(photos, inspections)
    found = [(photo, finder.find(photo)) for photo in photos]
    pairs = tuple((photo, verdict) for photo, verdict in found if verdict is not None)
    if not pairs:
        raise ConfigError(
            f"None of the {len(photos)} labelled pictures is among the {len(inspections)} of the "
            "results; expected labels of the same pictures."
        )
    return Paired(
        pairs,
        without_verdict=tuple(photo.file for photo, verdict in found if verdict is None),
        other_size=tuple(photo.file for photo, verdict in pairs if not _same_size(photo, verdict)),
    )


class _Finder:
    """Verdicts by path, by the bytes of their picture, and by name."""

    def __init__(self, photos: Sequence[LabelledPhoto], inspections: Sequence[Inspection]) -> None:
        self._by_path = {
            Path(one.source).resolve(): one for one in inspections if not is_url(one.source)
        }
        self._by_sha256 = {one.sha256: one for one in inspections if one.sha256}
        self._by_name = _by_name(inspections)
        self._names = Counter(photo.file for photo in photos)

    def find(self, photo: LabelledPhoto) -> Inspection | None:
        """Give the verdict of a picture, or None."""
        verdict = self._by_path.get(photo.path.resolve())
        if verdict is not None:
            return verdict
        if photo.path.is_file():
            return self._by_sha256.get(sha256(photo.path.read_bytes()).hexdigest())
        named = self._by_name.get(photo.file, ())
        return named[0] if len(named) == 1 == self._names[photo.file] else None


def _by_name(inspections: Sequence[Inspection]) -> Mapping[str, Sequence[Inspection]]:
    named = defaultdict(list)
    for one in inspections:
        named[PurePosixPath(one.source.partition("?")[0]).name].append(one)
    return named


def _same_size(photo: LabelledPhoto, verdict: Inspection) -> bool:
    if verdict.width is None or verdict.height is None:
        return True
    return (verdict.width, verdict.height) == (photo.width, photo.height)


def listed(names: Sequence[str], most: int = 3) -> str:
    """Name a few of many files."""
    more = f" +{len(names) - most}" if len(names) > most else ""
    return ", ".join(quote(name) for name in names[:most]) + more
