"""Finished runs on real pictures, and statements about them, as files."""

import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from qianyan.inspection.exporting.reviews import SCHEMA
from qianyan.inspection.records import (
    Box,
    Detection,
    Failure,
    Hazard,
    Inspection,
    ScoreKind,
    SubLabel,
    Veto,
)
from qianyan.inspection.results import RunFacts, run_record

ALL = tuple(Hazard)
FACTS = RunFacts(
    id="1", started_at="2026-11-24T08:00:00+00:00", finished_at="2026-11-24T08:01:00+00:00",
    model="a-model", lang="zh", version="0.1.0",
)  # fmt: skip
FIRE = Detection(Hazard.FIRE, SubLabel.SEVERE, Box(10, 5, 30, 25), 0.9, "logprob")
WORKER = Detection(Hazard.PERSON, SubLabel.HELMET, Box(40, 10, 60, 49), 0.8, "logprob")


def found(label: Hazard, sub_label: SubLabel, *box: int, score: float | None = 0.9) -> Detection:
    kind: ScoreKind | None = None if score is None else "logprob"
    return Detection(label, sub_label, Box(*box), score, kind)


def inspection(name: str, *detections: Detection, **more: Any) -> Inspection:
    whole = {"file": f"images/{name}", "width": 100, "height": 50, "sha256": name, **more}
    return Inspection(f"site/{name}", tuple(detections), ALL, **whole)


def unreadable(name: str) -> Inspection:
    failure = Failure("unreadable_reply", "The reply is no list.")
    return replace(inspection(name), detections=None, error=failure)


def vetoed(name: str, *vetoes: Detection) -> Inspection:
    return inspection(name, vetoed=tuple(Veto(one, "no_fire") for one in vetoes))


def write_results(folder: Path, inspections: Sequence[Inspection], *, red: int = 0) -> Path:
    """Draw each picture in a colour of its own, from `red` on, and results.json beside images/."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    whole = []
    for index, one in enumerate(inspections, start=red):
        path = folder / str(one.file)
        if not path.exists():
            Image.new("RGB", (one.width or 100, one.height or 50), (index, 90, 9)).save(path)
        whole.append(replace(one, sha256=sha256(path.read_bytes()).hexdigest()))
    record = run_record(FACTS, whole)
    (folder / "results.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    return folder


def picture_id(folder: Path, name: str) -> str:
    return sha256((folder / "images" / name).read_bytes()).hexdigest()


def say(folder: Path, name: str, verdict: str, box: Detection | None = None, **more: Any) -> None:
    """Add a statement about a picture of a run to the reviews beside its results."""
    statement = {"schema": SCHEMA, "sha256": picture_id(folder, name), "verdict": verdict, **more}
    if box is not None:
        statement |= {"label_id": box.label.value, "bbox_2d": box.box.as_list()}
    with (folder / "reviews.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(statement, ensure_ascii=False) + "\n")
