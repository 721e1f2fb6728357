"""Review files: what persons say about detections, a statement on each line (`qianyan.review/1`).

A statement is about one box of one picture, known by its sha256, so it holds for whatever run has
looked at that picture; a later one about the same box takes its place. Files only grow.

    {"schema": "qianyan.review/1", "sha256": "…", "label_id": "fire", "bbox_2d": [10, 20, 90, 80],
     "verdict": "right"}
    … "verdict": "wrong"                                  nothing of this kind is there
    … "verdict": "moved", "moved_to": [12, 20, 95, 80]    it is there, and this is its box
    … "verdict": "missed"                                 it is there, and nothing was reported
    {"schema": "qianyan.review/1", "sha256": "…", "verdict": "complete", "categories": ["fire"]}

`sub_label` beside right, moved and missed is what is right; without it the detection's stands.
`complete` says that all things of these categories are among the statements, and that whatever else
is reported of them is wrong. `by`, `at` and `note` are for people and not read.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from qianyan.errors import ConfigError, quote
from qianyan.inspection.records import SUB_LABELS, Box, Hazard, SubLabel
from qianyan.inspection.results import MEANING

SCHEMA = "qianyan.review/1"
Verdict = Literal["right", "wrong", "moved", "missed"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
COMPLETE = "complete"
MAX_REVIEW_BYTES = 500_000_000
"""Largest review file."""
_FOR_PEOPLE = {"by", "at", "note"}
_KEYS = (
    "schema",
    "sha256",
    "verdict",
    "categories",
    "label_id",
    "bbox_2d",
    "moved_to",
    "sub_label",
)
_Key = tuple[Hazard, Box]


@dataclass(frozen=True, kw_only=True)
class Review:
    """What a person says about one box; `sub_label` is None where the detection's stands."""

    label: Hazard
    box: Box
    verdict: Verdict
    moved_to: Box | None = None
    sub_label: SubLabel | None = None

    @property
    def truth(self) -> Box | None:
        """Where the thing is; None where there is none."""
        return None if self.verdict == "wrong" else self.moved_to or self.box


@dataclass
class PictureReviews:
    """All that stands about one picture, the last word on each box."""

    by_box: dict[_Key, Review] = field(default_factory=dict)
    complete: frozenset[Hazard] = frozenset()

    def of(self, label: Hazard) -> list[Review]:
        """List the statements about boxes of one kind."""
        return [review for review in self.by_box.values() if review.label is label]

    def __bool__(self) -> bool:
        return bool(self.by_box or self.complete)


def read_reviews(files: Iterable[Path]) -> dict[str, PictureReviews]:
    """Read review files in order, by the sha256 of the pictures; later statements win.

    Raises ConfigError, with the line, for what is no statement.
    """
    reviews: dict[str, PictureReviews] = {}
    for file in files:
        for number, line in enumerate(_lines(file), start=1):
            if line.strip():
                where = f"Line {number} of {quote(file.name)}"
                _take(reviews, _parse(line, where), where)
    return reviews


def _lines(file: Path) -> list[str]:
    try:
        if file.stat().st_size > MAX_REVIEW_BYTES:
            raise ConfigError(f"{quote(file.name)} has more than {MAX_REVIEW_BYTES} bytes.")
        return file.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{quote(file.name)} cannot be read; expected reviews as JSON lines ({SCHEMA})."
        ) from error


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON; expected a statement ({SCHEMA}).") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ConfigError(f"{where} does not say that it is a statement in the form {SCHEMA}.")
    strange = set(record).difference(_KEYS, _FOR_PEOPLE)
    if strange:
        raise ConfigError(
            f"{where} has {quote(min(strange))}; expected none but {', '.join(_KEYS)}."
        )
    if not isinstance(record.get("sha256"), str):
        raise ConfigError(f"{where} names no picture; expected its sha256, as results have it.")
    return record


def _take(reviews: dict[str, PictureReviews], record: Mapping[str, Any], where: str) -> None:
    picture = reviews.setdefault(record["sha256"].lower(), PictureReviews())
    if record.get("verdict") == COMPLETE:
        picture.complete = _categories(record, where)
        return
    review = _review(record, where)
    picture.by_box[review.label, review.box] = review


def _categories(record: Mapping[str, Any], where: str) -> frozenset[Hazard]:
    names = record.get("categories", [hazard.value for hazard in Hazard])
    if not isinstance(names, list):
        raise ConfigError(f"{where} has no list of categories.")
    return frozenset(_hazard(name, where) for name in names)


def _review(record: Mapping[str, Any], where: str) -> Review:
    verdict = record.get("verdict")
    if verdict not in VERDICTS:
        raise ConfigError(
            f"{where} has the verdict {quote(verdict)}; expected {', '.join(VERDICTS)} or "
            f"{COMPLETE}."
        )
    if ("moved_to" in record) != (verdict == "moved"):
        raise ConfigError(f"{where} is {verdict}; expected moved_to with moved, and only there.")
    label = _hazard(record.get("label_id"), where)
    return Review(
        label=label,
        box=_box(record.get("bbox_2d"), where),
        verdict=cast("Verdict", verdict),
        moved_to=_box(record["moved_to"], where) if verdict == "moved" else None,
        sub_label=_sub_label(record.get("sub_label"), label, where),
    )


def _hazard(name: object, where: str) -> Hazard:
    if name not in tuple(Hazard):
        raise ConfigError(
            f"{where} names the category {quote(name)}; expected {', '.join(Hazard)}."
        )
    return Hazard(str(name))


def _box(numbers: object, where: str) -> Box:
    if isinstance(numbers, list) and len(numbers) == 4 and all(type(n) is int for n in numbers):
        box = Box(*numbers)
        if 0 <= box.x1 < box.x2 and 0 <= box.y1 < box.y2:
            return box
    raise ConfigError(f"{where} has the box {quote(numbers)}; expected [x1, y1, x2, y2] in pixels.")


def _sub_label(word: object, label: Hazard, where: str) -> SubLabel | None:
    """Read an id of a sub-label, or the word for it in either language."""
    if word is None:
        return None
    known = {sub.value: sub for sub in SubLabel} | MEANING
    found = known.get(word) if isinstance(word, str) else None
    if found not in SUB_LABELS[label]:
        raise ConfigError(
            f"{where} has the sub_label {quote(word)}; expected {', '.join(SUB_LABELS[label])}."
        )
    return found
