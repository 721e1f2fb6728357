"""How good are the bundled models, and what does judging add? One table, without and with it.

    python benchmarks/bundled_accuracy.py [--photos FOLDER] [--scenes 500] [--model bundled]

Photos are a folder with images/ and annotations_val.json (COCO-like, see labels/reading.py).
Without --photos those under QIANYAN_SHARED are used, and without either, drawn scenes alone.
Scenes have seeds that training never uses. Writes benchmarks/results/<date>-bundled.json.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from qianyan import __version__
from qianyan.inputs.images import Photo, read_image
from qianyan.inspection.evaluation.figures import Figures, score
from qianyan.inspection.evaluation.rates import Rate
from qianyan.inspection.inspector import LookSettings, find_pair, open_look
from qianyan.inspection.records import Hazard, Inspection
from qianyan.inspection.service import LookAt
from qianyan.labels.photos import KINDS, Kind, LabelledBox, LabelledPhoto
from qianyan.labels.reading import read_coco
from qianyan.train.bundled.scenes import UNSEEN_FROM, Scene, draw_scene

REPOSITORY = Path(__file__).resolve().parent.parent
FIRST_SEED = UNSEEN_FROM + 500_000_000  # away from the seeds of the example pictures
SCENE_WH = (640, 480)
# The detector at its own thresholds; what it proposes to the judge; what the judge leaves.
WAYS = ("detector alone", "proposed", "judged")


@dataclass(frozen=True)
class Measured:
    """One way to look over one set of pictures."""

    evaluation: Figures
    seconds: float
    vetoed: int


def photos_of(folder: Path) -> list[tuple[LabelledPhoto, Path]]:
    """Pair validation labels with their files."""
    return [(one, one.path) for one in read_coco(folder / "annotations_val.json")]


def scene_labels(scene: Scene) -> LabelledPhoto:
    """Write what was painted as labels; heads become labels of their own."""
    boxes: list[LabelledBox] = []
    for thing in scene.objects:
        boxes.append(LabelledBox(thing.kind, thing.box, sub_label=thing.sub_label))
        if thing.head_box is not None:
            kind: Kind = "helmet" if thing.sub_label == "helmet" else "head"
            boxes.append(LabelledBox(kind, thing.head_box))
    height, width = scene.rgb.shape[:2]
    return LabelledPhoto(Path("scene"), width, height, frozenset(KINDS), tuple(boxes))


def read_photos(folder: Path) -> Iterator[tuple[LabelledPhoto, Photo]]:
    for labels, path in photos_of(folder):
        yield labels, read_image(path.read_bytes())


def draw_scenes(number: int) -> Iterator[tuple[LabelledPhoto, Photo]]:
    width, height = SCENE_WH
    for index in range(number):
        scene = draw_scene(FIRST_SEED + index, width=width, height=height)
        yield scene_labels(scene), Photo(Image.fromarray(scene.rgb))


def measure(pictures: Iterator[tuple[LabelledPhoto, Photo]], look: LookAt) -> Measured:
    """Look at every picture and score what was said; drawing and reading are not timed."""
    pairs: list[tuple[LabelledPhoto, Inspection]] = []
    seconds, vetoed = 0.0, 0
    for labels, photo in pictures:
        started = time.perf_counter()
        found = look(photo)
        seconds += time.perf_counter() - started
        vetoed += len(found.vetoed)
        pairs.append(
            (labels, Inspection(source="", detections=found.detections, checked=tuple(Hazard)))
        )
    return Measured(score(pairs).figures, seconds, vetoed)


def rows(measured: Measured) -> dict[str, Rate | float | None]:
    """Name the figures of one column."""
    result = measured.evaluation
    named: dict[str, Rate | float | None] = {}
    for hazard in Hazard:
        named[f"{hazard.value}: pictures found"] = result.images[hazard].recall
        named[f"{hazard.value}: false alarms"] = result.images[hazard].false_alarms
        named[f"{hazard.value}: box F1 at IoU 0.5"] = result.boxes[hazard].f1.value
        named[f"{hazard.value}: sub-label right"] = result.sub_label_right[hazard]
    named["heads: person reported"] = result.heads.found
    named["heads: right of those"] = result.heads.right
    named["heads: uncertain of those"] = result.heads.uncertain
    named["bare heads: right of all"] = result.heads.bare_recall
    named["bare heads: false alarms"] = result.images["head"].false_alarms
    named["seconds a picture"] = measured.seconds / max(result.pictures, 1)
    return named


def show(title: str, columns: Mapping[str, Measured]) -> None:
    """Print a table with one column for each way to look."""
    print(f"\n{title}: {next(iter(columns.values())).evaluation.pictures} pictures")
    print(f"{'':30}" + "".join(f"{way:>26}" for way in columns))
    tables = [rows(measured) for measured in columns.values()]
    for name in tables[0]:
        cells = [cell(table[name]) for table in tables]
        if any(text != "-" for text in cells):
            print(f"{name:30}" + "".join(f"{text:>26}" for text in cells))


def cell(value: Rate | float | None) -> str:
    """Set a figure: a share with its counts, or a plain number."""
    if isinstance(value, Rate):
        if value.value is None or value.interval is None:
            return "-"
        low, high = value.interval
        return f"{value.value:.3f} {value.hits}/{value.total} [{low:.2f},{high:.2f}]"
    return "-" if value is None else f"{value:.3f}"


def machine() -> dict[str, Any]:
    """Say what this was measured on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0].partition(":")[2].strip() if models else name
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str:
    """Name the commit that was measured, or say that it is not known."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607  (the git of whoever measures)
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or "unknown"


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def ways_to_look(settings: LookSettings) -> dict[str, LookAt]:
    """Open the pair three times: without judge, with the judge's proposals unjudged, with both."""
    judged = open_look(replace(settings, look="cascade"))
    if judged.cascade is None:
        raise SystemExit(f"{settings.model} is no pair of detector and judge")
    alone = open_look(replace(settings, look="detector")).look
    unjudged = replace(judged.cascade, judge=None).look
    return dict(zip(WAYS, (alone, unjudged, judged.look), strict=True))


def parse() -> argparse.Namespace:
    shared = os.environ.get("QIANYAN_SHARED")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(shared) / "data" / "dev" if shared else None
    parser.add_argument("--photos", type=Path, default=default)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results")
    return parser.parse_args()


def main() -> int:
    options = parse()
    settings = LookSettings(model=options.model, lang="en")
    looks = ways_to_look(settings)
    sets: dict[str, Any] = {}
    if options.photos is not None:
        sets["photos"] = lambda: read_photos(options.photos)
    sets["scenes"] = lambda: draw_scenes(options.scenes)
    record: dict[str, Any] = {}
    for title, pictures in sets.items():
        columns = {way: measure(pictures(), looks[way]) for way in WAYS}
        show(title, columns)
        record[title] = {
            way: {
                **measured.evaluation.as_record(),
                "seconds": round(measured.seconds, 2),
                "vetoed": measured.vetoed,
            }
            for way, measured in columns.items()
        }
    pair = find_pair(options.model)
    whole = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "version": __version__,
        "machine": machine(),
        "model": options.model if options.model == "bundled" else "other",
        "model_bytes": {name: size_bytes(pair / name) for name in ("detector", "judge")}
        if pair
        else {},
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "results": record,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{datetime.now(UTC):%Y-%m-%d}-bundled.json"
    file.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    print(f"\nwritten to {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
