"""A detector proposes, a model judges each crop, and what it vetoes is kept with the reason.

Each proposal is cut out with some surroundings and put to the judge as a closed question that
has "a look-alike" and "not a person" among its answers; one letter is asked for, and its
probability is the score (template B and C of the prompting notes; Flash-Cascade, 2026).

Rules, in the order they are applied:

* fire and smoke: a look-alike is a veto when the judge's share for it reaches `veto_share`: the
  surer the detector, the surer the judge has to be. "Cannot tell" makes the severity uncertain;
  otherwise the box's share of the picture decides it.
* persons: not a person is a veto by the same rule. Between hard hat and none the two opinions
  multiply, and none takes more certainty than worn; what lies between is uncertain, and so is
  what the judge cannot tell.

The score is the judge's probability of what is said; where the judge did not say it (uncertain, or
the detector carried the day), it is the detector's, as the share of such boxes that are right.
Decisions are made on the detector's plain scores.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qianyan.errors import ReplyError, quote
from qianyan.inputs.crops import square_crop
from qianyan.inputs.images import Photo
from qianyan.inspection.heads import NO_LIMITS, Corners, Figure, find_figures, iou
from qianyan.inspection.opinion import TOP_LOGPROBS, Opinion, read_opinion
from qianyan.inspection.prompts import MAX_OBJECTS, ClosedQuestion, load_questions
from qianyan.inspection.records import (
    Box,
    Detection,
    Hazard,
    Look,
    ScoreKind,
    SubLabel,
    Usage,
    Veto,
)
from qianyan.inspection.vision import Ask, Vision
from qianyan.inspection.words import Lang
from qianyan.models.detector import Proposal

Propose = Callable[[NDArray[np.uint8]], Sequence[Proposal]]
Probability = Callable[[str, float], float]

# At this detector score half a share against a candidate is a veto; above it the judge has to be
# surer, the smaller RESOLVE the steeper. Chosen for the bundled pair on labelled photos that the
# detector never saw, drawn scenes and the validation photos.
EVEN_SCORE = {Hazard.FIRE: 0.33, Hazard.SMOKE: 0.30, Hazard.PERSON: 0.5}
RESOLVE = 0.2
# A class that the detector did not propose for a head still has this much of its belief. Its
# scores for the two classes are timid, so that their ratio counts twice.
UNSEEN_SCORE, HEAD_TRUST = 0.04, 2.0
# Saying that somebody wears no hard hat takes more than saying that they wear one.
BARE_SHARE, HELMET_SHARE = 0.6, 0.5
# Severity by the box's share of the picture (a house rule; the judge only votes on what it is).
MINOR_BELOW, MODERATE_UP_TO = 0.01, 0.10
# Crops per subject that are put to the judge at most, for each object that may be reported.
CANDIDATES = 2
# Where crops have to share few visual tokens, they are made smaller down to this side.
LEAST_CROP_SIDE = 224
TOKEN_SIDE = 28
# Flames and smoke have no edges: boxes that overlap more than this mean the same thing.
SAME_THING_IOU = 0.3

# What a safety officer reads first.
URGENCY = (
    SubLabel.SEVERE,
    SubLabel.MODERATE,
    SubLabel.NO_HELMET,
    SubLabel.MINOR,
    SubLabel.UNCERTAIN,
    SubLabel.HELMET,
)

REASONS: dict[Lang, dict[str, str]] = {
    "zh": {
        "look_alike": "复核认为是灯光、反光、夕阳、焊接、蒸汽、雾或类似之物",
        "not_a_person": "复核认为不是人",
    },
    "en": {
        "look_alike": "on a second look a lamp, glare, sunset, welding, steam, fog or the like",
        "not_a_person": "on a second look not a person",
    },
}


@dataclass(frozen=True)
class Candidate:
    """Something proposed, with the region that the judge is to look at; photo pixels."""

    subject: Hazard
    box: Corners
    score: float
    region: Corners
    figure: Figure | None = None

    @property
    def kind(self) -> str:
        """What the detector proposed with this score."""
        return self.subject.value if self.figure is None else self.figure.kind


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """A way to look at photos; without a judge the detector's word stands.

    `probability` turns the detector's score for a kind into how often such boxes are right.
    `crop_side` enlarges crops for judges that see small pictures badly; None leaves the size to
    the judge. `alone` is the score by kind that a proposal needs to stand without a judge, or that
    a head needs to be a person without a body. `visual_tokens` is the most of all crops of a photo.
    `detector_weight` is how much the detector's certainty counts beside the judge's: 1 for judges
    of the detector's own strength, less for those that see far better, 0 to believe them alone.
    """

    propose: Propose
    judge: Vision | None
    lang: Lang
    max_objects: int = MAX_OBJECTS
    crop_side: int | None = None
    alone: Mapping[str, float] = field(default_factory=dict)
    probability: Probability = lambda _, score: score
    detector_weight: float = 1.0
    visual_tokens: int | None = None

    def look(self, photo: Photo) -> Look:
        """Find fire, smoke and persons in a photo."""
        photo_wh = (photo.width, photo.height)
        proposals = self.propose(np.asarray(photo.rgb))
        limit = CANDIDATES * self.max_objects
        candidates = choose(proposals, photo_wh, limit=limit, alone=self.alone)
        if self.judge is None:
            found = [self._as_share(propose_only(one, photo_wh), one) for one in candidates]
            kept, notes = most_urgent(found, self.max_objects)
            return Look(kept, raw=_raw(candidates, ()), notes=notes)
        opinions, usage = self._judge(photo.rgb, candidates, self.judge)
        verdicts = [
            self._unjudged(candidate, photo_wh)
            if opinion is None
            else settle(
                candidate, opinion, photo_wh, lang=self.lang, detector_weight=self.detector_weight
            )
            for candidate, opinion in zip(candidates, opinions, strict=True)
        ]
        settled = list(zip(verdicts, candidates, strict=True))
        found = [self._as_share(one, by) for one, by in settled if isinstance(one, Detection)]
        kept, notes = most_urgent(found, self.max_objects)
        vetoed = tuple(
            replace(one, detection=self._as_share(one.detection, by))
            for one, by in settled
            if isinstance(one, Veto)
        )
        return Look(kept, vetoed, usage, _raw(candidates, opinions), notes + _unread(opinions))

    def _judge(
        self, rgb: Image.Image, candidates: Sequence[Candidate], judge: Vision
    ) -> tuple[list[Opinion | None], Usage]:
        """Put every candidate to the judge, all at once; None for those beyond the visual tokens.

        Raises ReplyError when not a single answer is one of the letters asked for.
        """
        crops = self._crops(rgb, candidates, judge)
        if not crops:
            return [None] * len(candidates), Usage(forwarded_tokens=0)
        asked = {index: _question(candidates[index]) for index in crops}
        answers = judge.ask_many(
            [
                Ask(
                    image=crop,
                    text=asked[index].text(self.lang),
                    max_tokens=1,
                    logprobs=TOP_LOGPROBS,
                )
                for index, crop in crops.items()
            ]
        )
        opinions = {
            index: read_opinion(answer, question)
            for (index, question), answer in zip(asked.items(), answers, strict=True)
        }
        if not any(opinion.shares for opinion in opinions.values()):
            raise ReplyError(
                f"{judge.name} answered {quote(answers[0].text)} to a closed question; expected "
                f"one of the letters {', '.join(next(iter(asked.values())).options)}. Use --look "
                "list, or another model."
            )
        usage = sum((answer.usage for answer in answers), Usage(forwarded_tokens=0))
        return [opinions.get(index) for index in range(len(candidates))], usage

    def _crops(
        self, rgb: Image.Image, candidates: Sequence[Candidate], judge: Vision
    ) -> dict[int, Image.Image]:
        """Cut the candidates out, by index, as far as the visual tokens reach.

        With few tokens crops become smaller first, then fewer: the likeliest of each kind are kept.
        """
        if self.visual_tokens is None:
            return {n: self._crop(rgb, one.region) for n, one in enumerate(candidates)}
        side = self.crop_side
        if side is not None:
            fair = int(TOKEN_SIDE * math.sqrt(self.visual_tokens / max(len(candidates), 1)))
            side = min(max(fair, LEAST_CROP_SIDE), side)
        sized = replace(self, crop_side=side)
        crops: dict[int, Image.Image] = {}
        left = self.visual_tokens
        for index in _by_rank(candidates):
            crop = sized._crop(rgb, candidates[index].region)  # noqa: SLF001  (itself, resized)
            left -= judge.count_tokens(judge.seen_wh(crop.size))
            if left < 0:
                break
            crops[index] = crop
        return crops

    def _as_share(self, detection: Detection, candidate: Candidate) -> Detection:
        """Give a detector's score as the share of such boxes that are right; others stay."""
        if detection.score_kind != "detector":
            return detection
        return replace(detection, score=self.probability(candidate.kind, candidate.score))

    def _unjudged(self, candidate: Candidate, photo_wh: tuple[int, int]) -> Detection | None:
        """Take the detector at its word where it is sure enough without a judge."""
        is_sure = candidate.score >= self.alone.get(candidate.subject.value, 0.0)
        return propose_only(candidate, photo_wh) if is_sure else None

    def _crop(self, rgb: Image.Image, region: Corners) -> Image.Image:
        crop = square_crop(rgb, region)
        if self.crop_side is None or crop.width >= self.crop_side:
            return crop
        return crop.resize((self.crop_side, self.crop_side), Image.Resampling.BICUBIC)


def choose(
    proposals: Sequence[Proposal],
    photo_wh: tuple[int, int],
    *,
    limit: int,
    alone: Mapping[str, float] = NO_LIMITS,
) -> list[Candidate]:
    """Make candidates of proposals: for each subject the `limit` likeliest, fire first."""
    chosen: list[Candidate] = []
    for hazard in (Hazard.FIRE, Hazard.SMOKE):
        mine: list[Proposal] = []
        for one in sorted(proposals, key=lambda proposal: -proposal.score):
            if one.kind == hazard.value and all(
                iou(one.box, b.box) <= SAME_THING_IOU for b in mine
            ):
                mine.append(one)
        chosen += [Candidate(hazard, one.box, one.score, one.box) for one in mine[:limit]]
    return chosen + [
        Candidate(Hazard.PERSON, figure.box, figure.score, figure.head_region, figure)
        for figure in find_figures(proposals, photo_wh, alone=alone)[:limit]
    ]


def _by_rank(candidates: Sequence[Candidate]) -> list[int]:
    """Order candidates so that the first of each subject comes before the second of any."""
    ranks: Counter[Hazard] = Counter()
    ranked = []
    for index, candidate in enumerate(candidates):
        ranked.append((ranks[candidate.subject], index))
        ranks[candidate.subject] += 1
    return [index for _, index in sorted(ranked)]


def settle(
    candidate: Candidate,
    opinion: Opinion,
    photo_wh: tuple[int, int],
    *,
    lang: Lang,
    detector_weight: float = 1.0,
) -> Detection | Veto:
    """Decide on one candidate, given what the judge makes of it."""
    if candidate.subject is Hazard.PERSON:
        against = "not_a_person"
        sub_label = _head_state(candidate, opinion, detector_weight)
        meanings: tuple[str, ...] = (sub_label.value,)
    else:
        against = "look_alike"
        is_unclear = opinion.best in (None, "uncertain")
        sub_label = SubLabel.UNCERTAIN if is_unclear else severity(candidate.box, photo_wh)
        meanings = (candidate.subject.value, "both")
    if opinion.share(against) >= veto_share(candidate, detector_weight):
        sure = f" ({round(opinion.share(against) * 100)}%)" if opinion.is_weighed else ""
        return Veto(propose_only(candidate, photo_wh), REASONS[lang][against] + sure)
    if opinion.is_weighed and opinion.best in meanings:
        return _detection(candidate, sub_label, photo_wh, opinion.share(*meanings), "logprob")
    return _detection(candidate, sub_label, photo_wh, candidate.score, "detector")


def veto_share(candidate: Candidate, detector_weight: float) -> float:
    """Say which share against a candidate rejects it; more for what the detector is surer of."""
    distance = _log_odds(candidate.score) - _log_odds(EVEN_SCORE[candidate.subject])
    return 1 / (1 + math.exp(-detector_weight * distance / RESOLVE))


def _log_odds(share: float) -> float:
    share = min(max(share, 0.001), 0.999)
    return math.log(share / (1 - share))


def propose_only(candidate: Candidate, photo_wh: tuple[int, int]) -> Detection:
    """Take the detector at its word."""
    if candidate.subject is Hazard.PERSON:
        sub_label = _proposed_head_state(candidate)
    else:
        sub_label = severity(candidate.box, photo_wh)
    return _detection(candidate, sub_label, photo_wh, candidate.score, "detector")


def severity(box: Corners, photo_wh: tuple[int, int]) -> SubLabel:
    """Grade fire or smoke by the share of the picture that its box covers."""
    share = (box[2] - box[0]) * (box[3] - box[1]) / (photo_wh[0] * photo_wh[1])
    if share < MINOR_BELOW:
        return SubLabel.MINOR
    return SubLabel.MODERATE if share <= MODERATE_UP_TO else SubLabel.SEVERE


def most_urgent(
    found: Sequence[Detection], limit: int
) -> tuple[tuple[Detection, ...], tuple[str, ...]]:
    """Keep at most `limit` detections, most urgent first; a note says how many were left out.

    Fire comes before smoke and smoke before persons, so that a crowd never hides a fire.
    """
    ranked = sorted(found, key=_urgency)
    if len(ranked) <= limit:
        return tuple(ranked), ()
    return tuple(ranked[:limit]), (f"{len(ranked) - limit} more found: only {limit} are kept",)


def _urgency(detection: Detection) -> tuple[int, int, float]:
    return (
        list(Hazard).index(detection.label),
        URGENCY.index(detection.sub_label),
        -(detection.score or 0.0),
    )


def _head_state(candidate: Candidate, opinion: Opinion, detector_weight: float) -> SubLabel:
    """Decide between hard hat and none from what judge and detector believe together."""
    if opinion.best in (None, "uncertain"):
        return SubLabel.UNCERTAIN
    head = candidate.figure.head if candidate.figure is not None else None
    seen = (head.helmet, head.bare) if head is not None else (0.0, 0.0)
    trust = HEAD_TRUST * detector_weight
    helmet = opinion.share("helmet") * max(seen[0], UNSEEN_SCORE) ** trust
    bare = opinion.share("no_helmet") * max(seen[1], UNSEEN_SCORE) ** trust
    if bare >= BARE_SHARE * (helmet + bare):
        return SubLabel.NO_HELMET
    return SubLabel.HELMET if helmet > HELMET_SHARE * (helmet + bare) else SubLabel.UNCERTAIN


def _proposed_head_state(candidate: Candidate) -> SubLabel:
    head = candidate.figure.head if candidate.figure is not None else None
    if head is None or head.helmet == head.bare:
        return SubLabel.UNCERTAIN
    return SubLabel.HELMET if head.helmet > head.bare else SubLabel.NO_HELMET


def _detection(
    candidate: Candidate,
    sub_label: SubLabel,
    photo_wh: tuple[int, int],
    score: float,
    score_kind: ScoreKind,
) -> Detection:
    box = whole_pixels(candidate.box, photo_wh)
    return Detection(candidate.subject, sub_label, box, min(max(score, 0.0), 1.0), score_kind)


def whole_pixels(box: Corners, photo_wh: tuple[int, int]) -> Box:
    """Round a box outwards to whole pixels inside the photo, at least one pixel wide and high."""
    x1 = min(max(math.floor(box[0]), 0), photo_wh[0] - 1)
    y1 = min(max(math.floor(box[1]), 0), photo_wh[1] - 1)
    x2 = max(min(math.ceil(box[2]), photo_wh[0]), x1 + 1)
    y2 = max(min(math.ceil(box[3]), photo_wh[1]), y1 + 1)
    return Box(x1, y1, x2, y2)


def _question(candidate: Candidate) -> ClosedQuestion:
    return load_questions()["head" if candidate.subject is Hazard.PERSON else "hazard"]


def _unread(opinions: Sequence[Opinion | None]) -> tuple[str, ...]:
    unread = sum(opinion is not None and not opinion.shares for opinion in opinions)
    unasked = sum(opinion is None for opinion in opinions)
    notes = [f"the second look gave no readable answer for {unread} of them"] if unread else []
    if unasked:
        notes.append(f"{unasked} proposals not judged: the visual tokens were spent")
    return tuple(notes)


def _raw(candidates: Sequence[Candidate], opinions: Sequence[Opinion | None]) -> str:
    """Keep what both said, for those who want to see why: one JSON list."""
    rows: list[dict[str, Any]] = []
    for index, candidate in enumerate(candidates):
        row: dict[str, Any] = {
            "subject": candidate.subject.value,
            "box": [round(corner) for corner in candidate.box],
            "detector": round(candidate.score, 3),
        }
        if candidate.figure is not None and candidate.figure.head is not None:
            head = candidate.figure.head
            row["head"] = [round(corner) for corner in head.box]
            row["head_detector"] = {"helmet": round(head.helmet, 3), "bare": round(head.bare, 3)}
        opinion = opinions[index] if opinions else None
        if opinion is not None:
            row["judge"] = {name: round(p, 3) for name, p in opinion.shares.items()}
        rows.append(row)
    return json.dumps(rows, separators=(",", ":"))
