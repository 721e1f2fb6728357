"""An export from results and reviews to a folder: whole, or not there at all.

Formats that keep predictions apart (Label Studio, CVAT) get one folder. In the others everything
counts as a label, so what persons said is a data set of its own in `reviewed/`, and pictures that
nobody has been through lie with their predictions in `predictions/`, in the same form.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qianyan.errors import ConfigError, MediaError, quote
from qianyan.inspection.exporting.cases import LOW_SCORE, Case, Choice, Reason, find_case
from qianyan.inspection.exporting.conversations import Lessons, write_conversations
from qianyan.inspection.exporting.pictures import Found, find_picture, place, safe_names
from qianyan.inspection.exporting.reviews import read_reviews
from qianyan.inspection.folder import read_lines
from qianyan.inspection.records import SUB_LABELS, Hazard, Inspection
from qianyan.inspection.results import read_run
from qianyan.labels.cvat import write_cvat
from qianyan.labels.label_studio import write_label_studio
from qianyan.labels.photos import Kind, LabelledPhoto
from qianyan.labels.reviewed import ReviewedPhoto
from qianyan.labels.writing import to_json_bytes, write_coco, write_voc, write_yolo

Format = Literal["coco", "yolo", "voc", "labelstudio", "cvat", "jsonl"]
SCHEMA = "qianyan.export/1"
EXPORT_FILE, REVIEWS_FILE = "export.json", "reviews.jsonl"
REVIEWED, PREDICTIONS = "reviewed", "predictions"
PICTURE_FOLDERS: dict[Format, str] = {"voc": "JPEGImages"}
_WORDS: dict[Kind, list[str]] = {
    hazard.value: [word.value for word in words] for hazard, words in SUB_LABELS.items()
}


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What goes out and how; `lessons` writes conversations, for jsonl alone."""

    to: Format
    only: Choice = "hard"
    low_score: float = LOW_SCORE
    categories: tuple[Hazard, ...] = tuple(Hazard)
    copy_pictures: bool = False
    lessons: Lessons | None = None

    @property
    def classes(self) -> tuple[Kind, ...]:
        """The categories as labels call them."""
        return tuple(hazard.value for hazard in Hazard if hazard in self.categories)


@dataclass(kw_only=True)
class Exported:
    """What went out, for the summary; `missing` are sources with the reason."""

    num_inspected: int
    num_chosen: int
    num_repeated: int
    num_strange_reviews: int
    reasons: Counter[Reason]
    missing: list[tuple[str, str]] = field(default_factory=list)
    num_labelled: int = 0
    num_predicted: int = 0


def export(
    results: Sequence[Path],
    out: Path,
    settings: ExportSettings,
    *,
    reviews: Sequence[Path] = (),
    is_forced: bool = False,
) -> Exported:
    """Write the chosen pictures of finished runs in another tool's format.

    Args:
        results: results folders, or results.json or .jsonl files; where a picture occurs again, the
            last counts. A reviews.jsonl beside results is read as well.
        out: the folder to make; one that is not empty is refused.
        settings: what goes out and how.
        reviews: further review files.
        is_forced: replace an earlier export in `out`.

    Raises ConfigError where nothing can go out; then nothing is written, and what was in `out`
    stays.
    """
    out = out.resolve()
    _check_room(out, is_forced=is_forced)
    cases, summary = _gather(results, settings, reviews)
    found = list(_find_pictures(cases, summary))
    if not found:
        source, reason = summary.missing[0]
        raise ConfigError(
            f"None of the {len(cases)} pictures can go out; the first is {quote(source)}: {reason}."
        )
    if any(picture.path.is_relative_to(out) for _, picture in found):
        raise ConfigError(f"Pictures lie in {quote(out)} itself; expected another --out.")
    with _new_folder(out, is_forced=is_forced) as folder:
        _write(folder, out.name, found, settings, summary)
    return summary


def _gather(
    results: Sequence[Path], settings: ExportSettings, reviews: Sequence[Path]
) -> tuple[list[Case], Exported]:
    """Read everything and choose; raises ConfigError where nothing is chosen."""
    runs = [_read_results(path) for path in results]
    beside = dict.fromkeys(folder / REVIEWS_FILE for folder, _, _ in runs)
    said = read_reviews([*(file for file in beside if file.is_file()), *reviews])
    by_picture: dict[str, Case] = {}
    num_read = 0
    for folder, model, inspections in runs:
        for one in inspections:
            num_read += 1
            by_picture[one.sha256 or one.source] = find_case(
                one, said, folder=folder, model=model, low_score=settings.low_score
            )
    chosen = [case for case in by_picture.values() if case.is_chosen(settings.only)]
    if not chosen:
        raise _none_chosen(len(by_picture), settings)
    return chosen, Exported(
        num_inspected=len(by_picture),
        num_chosen=len(chosen),
        num_repeated=num_read - len(by_picture),
        num_strange_reviews=len(said.keys() - by_picture.keys()),
        reasons=Counter(reason for case in chosen for reason in case.reasons),
    )


def _read_results(path: Path) -> tuple[Path, str, Sequence[Inspection]]:
    """Read a run: its folder, its model, its pictures; an interrupted one from its lines."""
    file = path
    if path.is_dir():
        names = [name for name in ("results.json", "results.jsonl") if (path / name).is_file()]
        if not names:
            raise ConfigError(
                f"{quote(path)} has no results.json; expected a folder that qianyan inspect wrote."
            )
        file = path / names[0]
    if file.suffix == ".jsonl" and file.is_file():
        return file.parent, "unfinished run", read_lines(file)
    facts, inspections = read_run(file)
    return file.parent, facts.model, inspections


def _none_chosen(num_inspected: int, settings: ExportSettings) -> ConfigError:
    if not num_inspected:
        return ConfigError("The results hold no picture; expected at least one.")
    if settings.only == "reviewed":
        return ConfigError(
            f"None of the {num_inspected} pictures has been reviewed; name review files with "
            f"--reviews, or put {REVIEWS_FILE} beside the results."
        )
    return ConfigError(
        f"None of the {num_inspected} pictures is hard: no score below {settings.low_score}, no "
        "veto, nothing uncertain, unreadable or reviewed as wrong. Use --only all, or a higher "
        "--low-score."
    )


def _find_pictures(cases: Sequence[Case], summary: Exported) -> Iterator[tuple[Case, Found]]:
    for case in cases:
        try:
            yield case, find_picture(case.inspection, case.folder)
        except MediaError as error:
            summary.missing.append((case.inspection.source, str(error)))


def _write(
    folder: Path,
    served_as: str,
    found: Sequence[tuple[Case, Found]],
    settings: ExportSettings,
    summary: Exported,
) -> None:
    names = safe_names([(case.inspection, picture) for case, picture in found])
    places = dict(zip(names, (picture for _, picture in found), strict=True))
    photos = [
        _photo(case, picture, name) for (case, picture), name in zip(found, names, strict=True)
    ]
    classes = frozenset(settings.classes)
    labelled = [photo for photo in photos if _has_labels(photo, classes, settings.to)]
    predicted = [photo for photo in photos if not photo.is_labelled(classes)]
    summary.num_labelled, summary.num_predicted = len(labelled), len(predicted)
    if settings.to in ("labelstudio", "cvat"):
        _place(folder / "images", places, settings)
        _write_both(folder, photos, settings, served_as)
    else:
        labels = [photo.as_labels(classes) for photo in labelled]
        proposals = [photo.as_prediction(classes) for photo in predicted]
        for part, some in ((REVIEWED, labels), (PREDICTIONS, proposals)):
            if some:
                summary.missing += _write_set(folder / part, some, places, settings)
    record = _record(found, names, settings, summary)
    (folder / EXPORT_FILE).write_bytes(to_json_bytes(record))


def _has_labels(photo: ReviewedPhoto, classes: frozenset[Kind], to: Format) -> bool:
    """Tell whether a format can say what persons said of a photo; some know no gaps."""
    if to in ("yolo", "voc"):
        return photo.is_labelled(classes)
    return bool(photo.labels.labelled & classes)


def _photo(case: Case, picture: Found, name: str) -> ReviewedPhoto:
    one = case.inspection
    labels = LabelledPhoto(
        path=Path(name),
        width=picture.width,
        height=picture.height,
        labelled=frozenset(hazard.value for hazard in case.labelled),
        boxes=case.labels,
        source=one.source,
        tags=tuple(case.reasons),
    )
    checked: frozenset[Kind] = frozenset(hazard.value for hazard in one.checked)
    return ReviewedPhoto(
        labels=labels,
        predictions=case.predictions,
        predicted=frozenset() if one.detections is None else checked,
        model=case.model,
    )


def _place(folder: Path, places: "dict[str, Found]", settings: ExportSettings) -> None:
    folder.mkdir(parents=True)
    for name, picture in places.items():
        place(picture, folder / name, is_copy=settings.copy_pictures)


def _write_both(
    folder: Path, photos: Sequence[ReviewedPhoto], settings: ExportSettings, served_as: str
) -> None:
    if settings.to == "cvat":
        write_cvat(folder, photos, classes=settings.classes, sub_labels=_WORDS)
    else:
        write_label_studio(
            folder, photos, classes=settings.classes, sub_labels=_WORDS, served_as=served_as
        )


def _write_set(
    folder: Path,
    photos: Sequence[LabelledPhoto],
    places: "dict[str, Found]",
    settings: ExportSettings,
) -> list[tuple[str, str]]:
    """Write a data set; give the sources that could not go into it, and why."""
    pictures = folder / PICTURE_FOLDERS.get(settings.to, "images")
    _place(pictures, {photo.file: places[photo.file] for photo in photos}, settings)
    if settings.lessons is not None:
        return write_conversations(folder, photos, settings.lessons)
    write = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}[settings.to]
    write(folder, photos, classes=settings.classes)
    return []


def _record(
    found: Sequence[tuple[Case, Found]],
    names: Sequence[str],
    settings: ExportSettings,
    summary: Exported,
) -> dict[str, Any]:
    """Say what went out and why, for programs and for --force."""
    return {
        "schema": SCHEMA,
        "to": settings.to,
        "only": settings.only,
        "low_score": settings.low_score,
        "categories": list(settings.classes),
        "pictures": [
            {
                "name": name,
                "source": case.inspection.source,
                "sha256": case.inspection.sha256,
                "reasons": list(case.reasons),
                "labeled_categories": sorted(case.labelled),
            }
            for (case, _), name in zip(found, names, strict=True)
        ],
        "missing": [{"source": source, "reason": reason} for source, reason in summary.missing],
    }


def _check_room(out: Path, *, is_forced: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out is {quote(out)}, which is a file; expected a folder.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not is_forced:
        raise ConfigError(
            f"{quote(out)} is not empty; use another --out, or --force to replace an export."
        )
    try:
        is_ours = json.loads((out / EXPORT_FILE).read_text("utf-8"))["schema"] == SCHEMA
    except (OSError, ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise ConfigError(
            f"{quote(out)} holds something else than an export, which --force never replaces; "
            "expected another --out."
        )


@contextmanager
def _new_folder(out: Path, *, is_forced: bool) -> Iterator[Path]:
    """Give a folder to fill, which becomes `out` once it is whole."""
    part = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if is_forced and out.is_dir():
            shutil.rmtree(out)
        part.replace(out)
    except OSError as error:
        raise ConfigError(
            f"The export cannot be written to {quote(out)}: {error.strerror}. Nothing is left of "
            "it there; free room or choose another --out."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
