"""How good is the bundled detector alone, before any judge?

    python benchmarks/bundled_detector.py --photos FOLDER --scenes 500

Prints, and writes as JSON: per picture, how many with fire or smoke are found and how many
without raise a false alarm, at several thresholds, at the calibrated one and at the one that just
keeps false alarms to a share (chosen on the same pictures, so a little flattering); box F1 at IoU
0.5, of heads also at 0.3; how far scores as shares are from what is right; heads matched at IoU 0.3
and told apart; time per picture. FOLDER holds labelled photos (see
qianyan.train.bundled.photos) whose `val` split nobody trained or chose thresholds on. Without it
only drawn scenes with unseen seeds are measured.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from qianyan.models.detector import KINDS, Detector, DetectorConfig, Kind, load_detector
from qianyan.train.bundled.calibration import FITS, calibration_error
from qianyan.train.bundled.detector_scores import (
    ALARM_BUDGET,
    Judged,
    alarm_rate,
    box_score,
    head_score,
    judge_photos,
    judge_scenes,
    threshold_for,
)
from qianyan.train.bundled.photos import read_photos

AIMS: dict[Kind, float] = {"fire": 0.05, "smoke": 0.1}  # false alarms per picture
LADDER = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6)


def margin(share: float, count: int) -> float:
    """Half the width of a 95 % interval of a share (normal approximation)."""
    return 1.96 * (share * (1 - share) / max(count, 1)) ** 0.5


def measure(name: str, judged: list[Judged], config: DetectorConfig) -> dict[str, object]:
    """Print the tables of one set of pictures and return them."""
    thresholds = config.thresholds
    result: dict[str, object] = {"pictures": len(judged)}
    print(f"\n{name}: {len(judged)} pictures")
    print("kind    threshold  found            false alarms     (share of pictures, ± 95 %)")
    for kind in ALARM_BUDGET:
        rates = []
        at_aim = threshold_for(judged, kind, false_alarms=AIMS[kind])
        marks = {
            at_aim: f" <- at most {AIMS[kind]} false alarms",
            thresholds[kind]: " <- calibrated",
        }
        for threshold in (*LADDER, at_aim, thresholds[kind]):
            rate = alarm_rate(judged, kind, threshold)
            rates.append(asdict(rate))
            found = f"{rate.recall:.3f} ± {margin(rate.recall, rate.with_kind):.3f}"
            false = f"{rate.false_alarms:.3f} ± {margin(rate.false_alarms, rate.without_kind):.3f}"
            print(
                f"{kind:<7} {threshold:<9.2f}  {found:<15}  {false:<15}{marks.get(threshold, '')}"
            )
        print(f"        ({rate.with_kind} pictures with {kind}, {rate.without_kind} without)")
        result[kind] = rates
    print("kind    threshold  right missed false  F1 at IoU 0.5  at 0.3  calibration error")
    for kind in KINDS:
        score = box_score(judged, kind, thresholds[kind])
        loose = box_score(judged, kind, thresholds[kind], overlap=FITS["head"])
        error = calibration_error(judged, kind, config)
        result[f"{kind}_boxes"] = asdict(score) | {
            "f1": score.f1,
            "f1_at_0.3": loose.f1,
            "calibration_error": error,
        }
        counts = f"{score.right:>5} {score.missed:>6} {score.false:>5}"
        values = f"{score.f1 or 0.0:<13.3f}  {loose.f1 or 0.0:.3f}   {error:.3f}"
        print(f"{kind:<7} {thresholds[kind]:<9.2f}  {counts}  {values}")
    heads = head_score(judged, min(thresholds["helmet"], thresholds["head"]))
    result["heads"] = asdict(heads)
    print(
        f"hard hats: {heads.helmets} labelled, {heads.helmets_found} found, "
        f"{heads.helmets_right} of these called hard hat"
    )
    print(
        f"bare heads: {heads.bare} labelled, {heads.bare_found} found, "
        f"{heads.bare_right} of these called bare"
    )
    return result


def milliseconds(detector: Detector) -> float:
    """Median time of one picture of 960 x 720."""
    picture = np.random.default_rng(0).integers(0, 255, (720, 960, 3), dtype=np.uint8)
    times = []
    for _ in range(15):
        started = time.perf_counter()
        detector.propose(picture)
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))


def main() -> None:
    bundled = Path(str(files("qianyan") / "assets" / "bundled" / "detector"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=bundled)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--scenes", type=int, default=500)
    options = parser.parse_args()
    detector = load_detector(options.model)
    config = detector.config
    result: dict[str, object] = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in detector.parameters()),
        "thresholds": config.thresholds,
        "calibration": config.calibration,
        "image_size": config.image_size,
        "median_ms": round(milliseconds(detector), 1),
    }
    print(f"{result['parameters']} parameters, {result['median_ms']} ms a picture (960 x 720)")
    if options.photos:
        judged = judge_photos(detector, read_photos(options.photos, "val"))
        result["photos"] = measure("Photos", judged, config)
    result["scenes"] = measure("Drawn scenes", judge_scenes(detector, options.scenes), config)
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    target = Path(__file__).parent / "results" / f"{day}-bundled-detector-{platform.node()}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten: {target.name}")


if __name__ == "__main__":
    main()
