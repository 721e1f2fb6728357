"""How long does `qianyan inspect` take on labelled photos, now and in another form of the program?

    python benchmarks/inspect_photos.py PHOTOS [--against SRC] [--every 4] [--batch auto]

PHOTOS is a folder with images/ and annotations_val.json (COCO-like, see labels/reading.py). Each
run is a fresh process that inspects the validation photos with the bundled pair, from the first
import to the report. With --against, the `src` folder of another checkout (`git worktree add PATH
COMMIT`), both forms take turns, and their findings are compared. Prints, and writes as JSON, the
medians, the ratio, and how far scores differ.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from qianyan.labels.reading import read_coco

REPOSITORY = Path(__file__).resolve().parent.parent
SAME_SCORE = 2e-4
"""Scores are written with four digits; packed with others, a sum may end in another last bit."""


def val_photos(folder: Path, every: int) -> list[Path]:
    """Name every n-th validation photo."""
    return [one.path for one in read_coco(folder / "annotations_val.json")][::every]


def run(source: Path, photos: list[Path], options: list[str], out: Path) -> dict[str, float]:
    """Inspect the photos in a process of its own; give its seconds, wall and processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(  # noqa: S603  (our own program)
        [sys.executable, "-m", "qianyan", "inspect", "-", "--out", str(out), "--overwrite",
         "--quiet", *options],
        input="\n".join(map(str, photos)),
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(source)},
    )  # fmt: skip
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(f"{source} ended with {done.returncode}")
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 3), "processor_seconds": round(busy, 2)}


def findings(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text("utf-8").splitlines()]


def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """Say how many pictures have the same findings, and by how much scores of the same differ."""
    same, farthest = 0, 0.0
    for mine, other in zip(ours, theirs, strict=True):
        pairs = list(zip(mine["detections"] or (), other["detections"] or (), strict=False))
        is_same = mine["source"] == other["source"] and len(mine["detections"] or ()) == len(
            other["detections"] or ()
        )
        for one, two in pairs:
            names = ("bbox_2d", "label_id", "sub_label")
            is_same = is_same and all(one[name] == two[name] for name in names)
        if is_same:
            gaps = [abs((one["score"] or 0) - (two["score"] or 0)) for one, two in pairs]
            farthest = max([farthest, *gaps])
        same += is_same and farthest <= SAME_SCORE
    return {
        "pictures": len(ours),
        "with_same_findings": same,
        "farthest_score": round(farthest, 6),
    }


def commit(source: Path) -> str:
    done = subprocess.run(  # noqa: S603
        ["git", "-C", str(source), "rev-parse", "--short", "HEAD"],  # noqa: S607
        check=False,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or "unknown"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--against", type=Path, help="src of another checkout")
    parser.add_argument("--every", type=int, default=1, help="every n-th photo only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", default="auto")
    parser.add_argument("--out", type=Path, help="folder of the JSON; none is written without")
    return parser.parse_args()


def main() -> int:
    options = parse()
    photos = val_photos(options.photos, options.every)
    forms = {"now": (REPOSITORY / "src", ["--batch", options.batch])}
    if options.against is not None:
        forms["against"] = (options.against.resolve(), [])
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in forms}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(options.rounds):
            for name, (source, more) in forms.items():
                runs[name].append(run(source, photos, more, Path(scratch) / name))
                print(f"{name:8} {runs[name][-1]}", file=sys.stderr, flush=True)
        results = {name: findings(Path(scratch) / name) for name in forms}
    now = datetime.now(UTC)
    medians = {
        name: {key: statistics.median(one[key] for one in those) for key in those[0]}
        for name, those in runs.items()
    }
    figures: dict[str, Any] = {
        "when": now.isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "photos": len(photos),
        "batch": options.batch,
        "commits": {name: commit(source) for name, (source, _) in forms.items()},
        "medians": medians,
        "runs": runs,
    }
    if options.against is not None:
        figures["ratio"] = round(medians["now"]["seconds"] / medians["against"]["seconds"], 3)
        figures["findings"] = compare(results["now"], results["against"])
    print(json.dumps(figures, indent=1))
    if options.out is not None:
        name = f"{now:%Y-%m-%d}-inspect-photos-{len(photos)}.json"
        (options.out / name).write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
