"""How good a detector is: found and false alarms per picture, helmets right, boxes right.

Pictures are counted for a kind only when somebody labelled them for it. A false alarm is any
proposal of a kind above the threshold in a picture that is known not to show it.
"""

from dataclasses import dataclass

import numpy as np

from qianyan.labels.matching import BoxCounts, match_boxes
from qianyan.labels.photos import LabelledBox, LabelledPhoto
from qianyan.models.detector import KINDS, Detector, Kind, Proposal
from qianyan.train.bundled.scene_store import scene_boxes
from qianyan.train.bundled.scenes import UNSEEN_FROM, draw_scene

LOWEST = 0.02  # proposals are collected from here on, thresholds chosen above
MEASURED_FROM = UNSEEN_FROM + 500_000_000
CALIBRATED_FROM = UNSEEN_FROM + 600_000_000  # other scenes, to choose thresholds on
SCENE_THRESHOLD = 0.3
BUDGET_SHARE = 0.75  # of ALARM_BUDGET, used when choosing: a small set of pictures errs
F1_SLACK = 0.02  # given away for finding more, since a judge can still say no
ALARM_BUDGET: dict[Kind, float] = {"fire": 0.1, "smoke": 0.2}  # per picture, before any judge


@dataclass(frozen=True)
class Judged:
    """One picture's proposals beside what is known about it."""

    proposals: tuple[Proposal, ...]
    boxes: tuple[LabelledBox, ...]
    labelled: frozenset[Kind]


@dataclass(frozen=True)
class AlarmRate:
    """Of pictures with a kind, the share found; of pictures without, the share of false alarms."""

    threshold: float
    recall: float
    false_alarms: float
    with_kind: int
    without_kind: int


def judge_photos(detector: Detector, photos: list[LabelledPhoto]) -> list[Judged]:
    """Run the detector over photos, keeping even weak proposals."""
    return [
        Judged(tuple(detector.propose(p.read(), threshold=LOWEST)), p.boxes, p.labelled)
        for p in photos
    ]


def judge_scenes(
    detector: Detector,
    count: int,
    *,
    first: int = MEASURED_FROM,
    width: int = 480,
    height: int = 360,
) -> list[Judged]:
    """Run the detector over drawn scenes of `count` seeds that no training has seen."""
    judged = []
    for index in range(count):
        scene = draw_scene(first + index, width=width, height=height)
        found = detector.propose(scene.rgb, threshold=LOWEST)
        judged.append(Judged(tuple(found), scene_boxes(scene), frozenset(KINDS)))
    return judged


def _peaks(judged: list[Judged], kind: Kind) -> tuple[list[float], list[float]]:
    """The best score of a kind in each picture that shows it, and in each that does not."""
    present: list[float] = []
    absent: list[float] = []
    for each in judged:
        if kind in each.labelled:
            best = max((p.score for p in each.proposals if p.kind == kind), default=0.0)
            (present if any(b.kind == kind for b in each.boxes) else absent).append(best)
    return present, absent


def alarm_rate(judged: list[Judged], kind: Kind, threshold: float) -> AlarmRate:
    """Count found pictures and false alarms of one kind at one threshold."""
    present, absent = (np.array(scores) for scores in _peaks(judged, kind))
    recall = float((present >= threshold).mean()) if present.size else float("nan")
    alarms = float((absent >= threshold).mean()) if absent.size else float("nan")
    return AlarmRate(threshold, recall, alarms, present.size, absent.size)


def threshold_for(judged: list[Judged], kind: Kind, *, false_alarms: float) -> float:
    """Find the lowest threshold that keeps false alarms per picture at or under a share."""
    _, absent = _peaks(judged, kind)
    for threshold in np.arange(LOWEST, 0.96, 0.01).tolist():
        if sum(score >= threshold for score in absent) <= false_alarms * len(absent):
            return round(float(threshold), 2)
    return 0.96


def box_score(
    judged: list[Judged], kind: Kind, threshold: float, *, overlap: float = 0.5
) -> BoxCounts:
    """Compare boxes of one kind over pictures labelled for it."""
    counts = BoxCounts()
    for each in judged:
        if kind not in each.labelled:
            continue
        found = [p for p in each.proposals if p.kind == kind and p.score >= threshold]
        wanted = [b for b in each.boxes if b.kind == kind]
        pairs = len(_pair(found, wanted, overlap=overlap))
        counts += BoxCounts(pairs, len(wanted) - pairs, len(found) - pairs)
    return counts


def _pair(
    proposals: list[Proposal], boxes: list[LabelledBox], *, overlap: float
) -> list[tuple[int, int]]:
    return match_boxes([p.box for p in proposals], [b.box for b in boxes], overlap=overlap)


def choose_thresholds(photos: list[Judged], scenes: list[Judged]) -> dict[str, float]:
    """Choose a score for each kind above which a proposal is believed.

    For fire and smoke the lowest that keeps false alarms well within ALARM_BUDGET, on photos and
    on scenes; for the others the lowest whose F1 over both is nearly the best. Use pictures that
    were not trained on, and not those that results are reported on.
    """
    chosen: dict[str, float] = {}
    for kind in KINDS:
        if kind in ALARM_BUDGET:
            budget = BUDGET_SHARE * ALARM_BUDGET[kind]
            chosen[kind] = max(
                threshold_for(j, kind, false_alarms=budget) for j in (photos, scenes)
            )
        else:
            ladder = [round(0.1 + 0.02 * index, 2) for index in range(35)]
            both = [*photos, *scenes]
            scores = [box_score(both, kind, threshold).f1 or 0.0 for threshold in ladder]
            enough = max(scores) - F1_SLACK
            chosen[kind] = next(t for t, f1 in zip(ladder, scores, strict=True) if f1 >= enough)
    return chosen


@dataclass(frozen=True)
class HeadScore:
    """Heads that were found, and of those how many were told rightly apart."""

    helmets: int
    helmets_found: int
    helmets_right: int
    bare: int
    bare_found: int
    bare_right: int


def head_score(judged: list[Judged], threshold: float, *, overlap: float = 0.3) -> HeadScore:
    """Match heads regardless of kind, then ask whether the better-scored kind is the right one."""
    counts = {"helmet": [0, 0, 0], "head": [0, 0, 0]}
    for each in judged:
        if not {"helmet", "head"} <= each.labelled:
            continue
        heads = [b for b in each.boxes if b.kind in counts]
        found = [p for p in each.proposals if p.kind in counts and p.score >= threshold]
        for head in heads:
            counts[head.kind][0] += 1
        for index, other in _pair(found, heads, overlap=overlap):
            kind = heads[other].kind
            counts[kind][1] += 1
            counts[kind][2] += int(found[index].kind == kind)
    return HeadScore(*counts["helmet"], *counts["head"])


def score_photos(detector: Detector, photos: list[LabelledPhoto]) -> str:
    """Summarise a detector on photos in one line for a training's log."""
    judged = judge_photos(detector, photos)
    parts = []
    for alarm, budget in ALARM_BUDGET.items():
        limit = threshold_for(judged, alarm, false_alarms=budget)
        rate = alarm_rate(judged, alarm, limit)
        parts.append(f"{alarm}={rate.recall:.3f}@{rate.false_alarms:.3f}(>{limit:.2f})")
    heads = head_score(judged, 0.25)
    parts.append(f"helmets={heads.helmets_right}/{heads.helmets_found}/{heads.helmets}")
    parts.append(f"bare={heads.bare_right}/{heads.bare_found}/{heads.bare}")
    parts += [f"{kind}_f1={_f1(judged, kind, 0.3):.2f}" for kind in KINDS]
    return " ".join(parts)


def score_scenes(detector: Detector, count: int) -> str:
    """Summarise a detector on unseen drawn scenes in one line."""
    judged = judge_scenes(detector, count)
    return " ".join(f"drawn_{k}_f1={_f1(judged, k, SCENE_THRESHOLD):.2f}" for k in KINDS)


def _f1(judged: list[Judged], kind: Kind, threshold: float) -> float:
    return box_score(judged, kind, threshold).f1 or 0.0
