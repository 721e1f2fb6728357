"""From a run to what its report prints: plain strings, numbers and lists for the template.

Strings that come from outside (names, messages, reasons, settings) pass `Script.write`, which makes
them printable with the fonts at hand and able to break across lines. Our own words do not need it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from qianyan.inspection.records import SUB_LABELS, Detection, Hazard, Inspection
from qianyan.inspection.reporting.annotate import tag_colour
from qianyan.inspection.reporting.fonts import FONT_FILE, missing_glyphs, writable
from qianyan.inspection.reporting.report_words import (
    CHECK_WORDS,
    FAILURE_WORDS,
    NOTE_WORDS,
    REPORT_WORDS,
)
from qianyan.inspection.verdict import (
    describe,
    finding_name,
    give_verdict,
    is_hazard,
    is_review,
    place_word,
    say,
    score_text,
)
from qianyan.inspection.words import Lang, label_word, sub_label_word

LONG_RUN = 14  # characters without a break after which a line may break anyway
BREAK = "\u200b"  # zero-width space
SHORT_NAME = 36  # characters of a name in lists; its section shows it whole
NUMBER_PREFIX = "AQJC"

Printed = str | int | float | bool | None | Sequence["Printed"] | Mapping[str, "Printed"]


@dataclass(frozen=True)
class ReportPicture:
    """One inspected picture and its files; a path is None where there is no file."""

    inspection: Inspection
    original_path: Path | None = None
    marked_path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything a report says; times are aware and printed in the zone they carry.

    `settings` are printed as they are, in order. `fonts` are further font files for characters
    that the bundled font lacks.
    """

    run_id: str
    started_at: datetime
    finished_at: datetime
    model: str
    lang: Lang
    version: str
    pictures: tuple[ReportPicture, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    fonts: tuple[Path, ...] = ()

    @property
    def number(self) -> str:
        """The report's number: day and four digits of the run's fingerprint."""
        fingerprint = sha256(self.run_id.encode()).hexdigest()[:4].upper()
        return f"{NUMBER_PREFIX}-{self.started_at:%Y%m%d}-{fingerprint}"


@dataclass(frozen=True)
class Figure:
    """A scaled picture file beside the template, with its size in pixels."""

    name: str
    width: int
    height: int


@dataclass(frozen=True)
class Figures:
    """The figures of one picture; None where a file is missing or not shown."""

    original: Figure | None = None
    marked: Figure | None = None


class Script:
    """Makes foreign text printable with the fonts at hand, and remembers what it had to spell."""

    def __init__(self, fonts: Sequence[Path]) -> None:
        self.fonts = (FONT_FILE, *fonts)
        self.spelt: set[str] = set()
        self._written: dict[str, str] = {}

    def write(self, text: str) -> str:
        """Return text that prints literally, breaks across lines and shows no empty boxes."""
        if text not in self._written:
            flat = " ".join(text.split())
            self.spelt |= set.intersection(*(missing_glyphs(flat, font) for font in self.fonts))
            self._written[text] = breakable(writable(flat, self.fonts))
        return self._written[text]


def breakable(text: str) -> str:
    """Let long runs without spaces break: after signs, and at the latest every LONG_RUN letters."""
    runs = re.sub(r"(?<=[/\\_\-.,:;=&?%@+])(?=[^\s/\\_\-.,:;=&?%@+])", BREAK, text)
    return re.sub(rf"([!-~]{{{LONG_RUN}}})(?=[!-~])", rf"\1{BREAK}", runs)


def shortened(name: str) -> str:
    """Leave out the middle of a long name; its end tells pictures of one folder apart."""
    if len(name) <= SHORT_NAME:
        return name
    return f"{name[: SHORT_NAME // 3]}…{name[-(SHORT_NAME * 2 // 3) :]}"


def report_content(
    data: ReportData, figures: Sequence[Figures], script: Script
) -> dict[str, Printed]:
    """Lay out a run as the template expects it; `figures` go with `data.pictures` in order."""
    lang = data.lang
    numbered = list(enumerate(zip(data.pictures, figures, strict=True), start=1))
    inspections = [picture.inspection for picture in data.pictures]
    verdict = give_verdict(inspections, lang)
    entries = [
        _entry(number, picture.inspection, shown, lang=lang, script=script)
        for number, (picture, shown) in numbered
    ]
    failed = [one for one, seen in zip(entries, inspections, strict=True) if seen.error]
    looked = [one for one, seen in zip(entries, inspections, strict=True) if not seen.error]
    looked.sort(key=lambda one: not one["findings"])
    return {
        "lang": lang,
        "w": REPORT_WORDS[lang],
        "number": data.number,
        "verdict": {
            "tone": verdict.tone,
            "headline": verdict.headline,
            "details": verdict.details,
        },
        "facts": _facts(data, script),
        "tiles": _tiles(inspections, lang),
        "statistics": _statistics(inspections, lang),
        "hazards": _hazards(inspections, lang, script),
        "sections": [one for one in looked if one["findings"] or one["marked"]],
        "quiet": [one for one in looked if not one["findings"] and not one["marked"]],
        "failed": failed,
        "method": _method(data, script),
    }


def _facts(data: ReportData, script: Script) -> list[Printed]:
    words = REPORT_WORDS[data.lang]
    return [
        [words["time"], _period(data.started_at, data.finished_at)],
        [words["pictures"], str(len(data.pictures))],
        [words["model"], script.write(data.model)],
        [words["program"], f"qianyan {data.version}"],
    ]


def _period(started_at: datetime, finished_at: datetime) -> str:
    """Say from when to when, with the day once where it is the same."""
    is_same_day = started_at.date() == finished_at.date()
    end = f"{finished_at:%H:%M:%S}" if is_same_day else f"{finished_at:%Y-%m-%d %H:%M:%S}"
    offset = f"{finished_at:%z}"
    zone = f" (UTC{offset[:3]}:{offset[3:5]})" if offset else ""
    return f"{started_at:%Y-%m-%d %H:%M:%S} – {end}{zone}"


def _tiles(inspections: Sequence[Inspection], lang: Lang) -> list[Printed]:
    """Count pictures, each once: worst finding first."""
    words = REPORT_WORDS[lang]
    counts = dict.fromkeys(("hazard", "review", "none", "failed"), 0)
    for one in inspections:
        if one.detections is None:
            counts["failed"] += 1
        elif any(map(is_hazard, one.detections)):
            counts["hazard"] += 1
        elif any(map(is_review, one.detections)):
            counts["review"] += 1
        else:
            counts["none"] += 1
    tiles: list[Printed] = [{"tone": "all", "n": len(inspections), "word": words["tile_all"]}]
    return tiles + [
        {"tone": tone, "n": count, "word": words[f"tile_{tone}"]} for tone, count in counts.items()
    ]


def _statistics(inspections: Sequence[Inspection], lang: Lang) -> list[Printed]:
    """Count findings by label and sub-label, zeros shown; what was not looked for says so."""
    looked = [one for one in inspections if one.detections is not None]
    rows: list[Printed] = []
    for hazard in Hazard:
        num_looked = sum(hazard in one.checked for one in looked)
        per_picture = [
            [found.sub_label for found in one.detections or () if found.label is hazard]
            for one in looked
        ]
        found = [sub_label for sub_labels in per_picture for sub_label in sub_labels]
        is_counted = bool(num_looked or found)
        rows.append(
            {
                "label": label_word(hazard, lang),
                "counts": [
                    {"word": sub_label_word(sub_label, lang), "n": found.count(sub_label)}
                    for sub_label in SUB_LABELS[hazard]
                ]
                if is_counted
                else [],
                "total": len(found),
                "pictures": sum(map(bool, per_picture)),
                "looked": num_looked,
            }
        )
    return rows


def _hazards(inspections: Sequence[Inspection], lang: Lang, script: Script) -> list[Printed]:
    """List what somebody has to act on or look at again, in picture order."""
    return [
        {
            "picture": number,
            "name": script.write(shortened(one.source)),
            "what": finding_name(found, lang),
            "colour": _colour(found),
            "where": place_word(found, _photo_wh(one), lang),
            "score": score_text(found, lang),
        }
        for number, one in enumerate(inspections, start=1)
        for found in one.detections or ()
        if is_hazard(found) or is_review(found)
    ]


def _photo_wh(inspection: Inspection) -> tuple[int, int]:
    """Take the picture's size, or the least that holds its boxes where results lack it."""
    boxes = [found.box for found in inspection.detections or ()]
    boxes += [veto.detection.box for veto in inspection.vetoed]
    width = inspection.width or max((box.x2 for box in boxes), default=1)
    return width, inspection.height or max((box.y2 for box in boxes), default=1)


def _colour(detection: Detection) -> str:
    red, green, blue = tag_colour(detection)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _entry(
    number: int, inspection: Inspection, shown: Figures, *, lang: Lang, script: Script
) -> dict[str, Printed]:
    """Say all about one picture."""
    words = REPORT_WORDS[lang]
    photo_wh = _photo_wh(inspection)
    notes = [NOTE_WORDS.get(note, note) if lang == "zh" else note for note in inspection.notes]
    checked = [CHECK_WORDS[lang][hazard] for hazard in inspection.checked]
    return {
        "number": number,
        "name": script.write(inspection.source),
        "facts": _picture_facts(inspection, lang),
        "sha256": inspection.sha256,
        "checked": words["separator"].join(checked) or words["none"],
        "original": _figure(shown.original),
        "marked": _figure(shown.marked),
        "findings": [
            {
                "sentence": describe(found, photo_wh, lang),
                "colour": _colour(found),
                "label": label_word(found.label, lang),
                "sub_label": sub_label_word(found.sub_label, lang),
                "box": ", ".join(map(str, found.box.as_list())),
                "score": score_text(found, lang),
            }
            for found in inspection.detections or ()
        ],
        "vetoed": [
            {
                "what": finding_name(veto.detection, lang),
                "box": ", ".join(map(str, veto.detection.box.as_list())),
                "score": score_text(veto.detection, lang),
                "reason": script.write(veto.reason),
            }
            for veto in inspection.vetoed
        ],
        "notes": [script.write(note) for note in notes],
        "error": _error(inspection, lang, script),
    }


def _picture_facts(inspection: Inspection, lang: Lang) -> list[str]:
    facts = []
    if inspection.width and inspection.height:
        facts.append(say("size", lang, width=inspection.width, height=inspection.height))
    if inspection.at_s is not None:
        facts.append(say("at", lang, seconds=f"{inspection.at_s:.1f}"))
    return facts


def _figure(figure: Figure | None) -> Printed:
    if figure is None:
        return None
    return {"file": figure.name, "width": figure.width, "height": figure.height}


def _error(inspection: Inspection, lang: Lang, script: Script) -> Printed:
    if inspection.error is None:
        return None
    code = inspection.error.code
    word = FAILURE_WORDS.get(code, code) if lang == "zh" else code.replace("_", " ")
    return {"code": script.write(word), "message": script.write(inspection.error.message)}


def _method(data: ReportData, script: Script) -> list[Printed]:
    """Say what was looked for, with what, and what that does not cover."""
    lang, words = data.lang, REPORT_WORDS[data.lang]
    inspections = [picture.inspection for picture in data.pictures]
    looked = [one for one in inspections if one.detections is not None]
    scope = [
        f"{CHECK_WORDS[lang][hazard]}{words['colon']}"
        + say("methods", lang, n=sum(hazard in one.checked for one in looked))
        for hazard in Hazard
    ]
    rows: list[Printed] = [
        [words["checked"], words["semicolon"].join(scope)],
        [words["model"], script.write(data.model)],
        [words["program"], f"qianyan {data.version}"],
        [words["run"], script.write(data.run_id)],
    ]
    rows += [[script.write(name), script.write(value)] for name, value in data.settings.items()]
    rows += [
        [words["scores"], words["scores_text"]],
        [words["vetoes"], words["vetoes_text"]],
        [words["limits"], words["limits_text"]],
    ]
    if script.spelt:
        codes = " ".join(sorted(f"U+{ord(char):04X}" for char in script.spelt)[:40])
        rows.append([words["glyphs"], words["glyphs_text"] + codes])
    return rows
