"""Results files: an Inspection as JSON and back, and the whole run (`qianyan.results/1`).

Words in the file are the run's language; `label_id` and the words' fixed meaning make it readable
again, so that a report can be set anew in another language.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, TypeVar

from qianyan.errors import ConfigError, quote
from qianyan.inspection.records import (
    Alarm,
    Box,
    Detection,
    Failure,
    Hazard,
    Inspection,
    Usage,
    Veto,
)
from qianyan.inspection.words import SUB_LABEL_WORDS, Lang, label_word, sub_label_word

SCHEMA = "qianyan.results/1"
SCORE_DIGITS = 4
_Read = TypeVar("_Read")
MEANING = {word: sub for words in SUB_LABEL_WORDS.values() for sub, word in words.items()}


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a results file says about the run itself; times are ISO 8601 in UTC."""

    id: str
    started_at: str
    finished_at: str
    model: str
    lang: Lang
    version: str


def _detection_record(detection: Detection, lang: Lang) -> dict[str, Any]:
    return {
        "bbox_2d": detection.box.as_list(),
        "label": label_word(detection.label, lang),
        "label_id": detection.label.value,
        "sub_label": sub_label_word(detection.sub_label, lang),
        "score": None if detection.score is None else round(detection.score, SCORE_DIGITS),
        "score_kind": detection.score_kind,
    }


def to_record(inspection: Inspection, lang: Lang) -> dict[str, Any]:
    """Write one picture as the JSON object that results files hold."""
    detections = inspection.detections
    error = inspection.error
    return {
        "source": inspection.source,
        "file": inspection.file,
        "marked_file": inspection.marked_file,
        "sha256": inspection.sha256,
        "width": inspection.width,
        "height": inspection.height,
        "at_s": inspection.at_s,
        "detections": None
        if detections is None
        else [_detection_record(detection, lang) for detection in detections],
        "vetoed": [
            {**_detection_record(veto.detection, lang), "reason": veto.reason}
            for veto in inspection.vetoed
        ],
        "checked": [hazard.value for hazard in inspection.checked],
        "error": None if error is None else {"code": error.code, "message": error.message},
        "timing": {"total_s": round(inspection.total_s, 3)},
        "usage": {
            "prompt_tokens": inspection.usage.prompt_tokens,
            "completion_tokens": inspection.usage.completion_tokens,
            "forwarded_tokens": inspection.usage.forwarded_tokens,
            "visual_tokens": inspection.usage.visual_tokens,
        },
        "raw": inspection.raw,
        "notes": list(inspection.notes),
    }


def _read_detection(record: dict[str, Any]) -> Detection:
    return Detection(
        label=Hazard(record["label_id"]),
        sub_label=MEANING[record["sub_label"]],
        box=Box(*map(index, record["bbox_2d"])),
        score=_optional(float, record["score"]),
        score_kind=record["score_kind"],
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _optional(read: Callable[[Any], _Read], value: Any) -> _Read | None:
    return None if value is None else read(value)


def from_record(record: dict[str, Any]) -> Inspection:
    """Read one picture back from its JSON object; ConfigError when it is not one of ours."""
    try:
        detections = record["detections"]
        error = record["error"]
        return Inspection(
            source=_text(record["source"]),
            detections=None if detections is None else tuple(map(_read_detection, detections)),
            checked=tuple(Hazard(name) for name in record["checked"]),
            error=None if error is None else Failure(error["code"], error["message"]),
            vetoed=tuple(
                Veto(_read_detection(veto), veto["reason"]) for veto in record.get("vetoed", ())
            ),
            file=_optional(_text, record["file"]),
            marked_file=_optional(_text, record["marked_file"]),
            sha256=_optional(_text, record["sha256"]),
            width=_optional(index, record["width"]),
            height=_optional(index, record["height"]),
            at_s=record["at_s"],
            total_s=record["timing"]["total_s"],
            usage=Usage(**record["usage"]),
            raw=record["raw"],
            notes=tuple(record.get("notes", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"A picture in the results is not in the form {SCHEMA}: {quote(error)}."
        ) from error


def to_json(record: dict[str, Any], *, indent: int | None = None) -> str:
    """Write a record as JSON text that any UTF-8 file can hold.

    Names of files need not be text: bytes that are not UTF-8 (old GBK names, say) are kept as the
    escapes that Python reads back.
    """
    text = json.dumps(record, ensure_ascii=False, indent=indent)
    return text if is_text(text) else json.dumps(record, indent=indent)


def is_text(text: str) -> bool:
    """Tell whether a string can be written as UTF-8."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def summarise(inspections: Iterable[Inspection], lang: Lang) -> dict[str, Any]:
    """Count pictures, failures and detections by label and by sub-label."""
    pictures = failed = 0
    by_label: Counter[str] = Counter()
    by_sub_label: Counter[str] = Counter()
    for inspection in inspections:
        pictures += 1
        failed += inspection.error is not None
        for found in inspection.detections or ():
            by_label[found.label.value] += 1
            by_sub_label[f"{found.label.value}/{sub_label_word(found.sub_label, lang)}"] += 1
    return {
        "pictures": pictures,
        "failed": failed,
        "by_label": dict(by_label),
        "by_sub_label": dict(by_sub_label),
    }


def alarm_record(alarm: Alarm) -> dict[str, Any]:
    """Write what was said aloud of a picture."""
    error = alarm.error
    return {
        "text": alarm.text,
        "file": alarm.file,
        "error": None if error is None else {"code": error.code, "message": error.message},
    }


def run_record(
    facts: RunFacts, inspections: Sequence[Inspection], alarms: Mapping[str, Alarm] | None = None
) -> dict[str, Any]:
    """Write a whole run as the object that results.json holds.

    `alarms` are those of a run that speaks, by source: each picture then has an `alarm`, null where
    there was nothing to say.
    """

    def picture_record(inspection: Inspection) -> dict[str, Any]:
        record = to_record(inspection, facts.lang)
        if alarms is None:
            return record
        alarm = alarms.get(inspection.source)
        return record | {"alarm": None if alarm is None else alarm_record(alarm)}

    return {
        "schema": SCHEMA,
        "run": {
            "id": facts.id,
            "started_at": facts.started_at,
            "finished_at": facts.finished_at,
            "model": facts.model,
            "lang": facts.lang,
            "version": facts.version,
        },
        "pictures": [picture_record(inspection) for inspection in inspections],
        "summary": summarise(inspections, facts.lang),
    }


def read_run(path: Path) -> tuple[RunFacts, tuple[Inspection, ...]]:
    """Load a results.json; ConfigError with a sentence when it is not one."""
    try:
        whole = json.loads(path.read_text("utf-8"))
        if whole["schema"] != SCHEMA:
            raise ConfigError(
                f"{path.name} has schema {quote(whole['schema'])}; expected {SCHEMA}."
            )
        facts = RunFacts(**whole["run"])
        pictures = whole["pictures"]
    except OSError as error:
        raise ConfigError(
            f"{quote(path.name)} cannot be opened; expected the results.json of a finished run."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{quote(path.name)} is not a results file; expected JSON in the form {SCHEMA}."
        ) from error
    return facts, tuple(from_record(record) for record in pictures)
