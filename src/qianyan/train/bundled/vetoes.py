"""What the judge's vetoes are worth: a detector's proposals with and without a second look.

Recall and false alarms are counted per picture for fire and smoke, and per head for people. The
veto threshold is chosen on the photos that were held out of training; the table for the model
card is made from the validation photos.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from qianyan.inputs.crops import square_crop
from qianyan.labels.photos import LabelledPhoto
from qianyan.models.detector import KINDS, Kind, Proposal, load_detector
from qianyan.models.registry import load_model
from qianyan.train.bundled.crops import CROP_SIDE, Bytes
from qianyan.train.bundled.judge_folder import patch_config
from qianyan.train.bundled.labelled import (
    Box,
    LabelledPicture,
    area,
    boxes_of,
    overlap,
    photo_pictures,
)
from qianyan.train.bundled.lessons import Packer, letter_probabilities
from qianyan.train.bundled.photos import read_photos, split_held_out
from qianyan.train.bundled.sentences import Language, load_questions

VETO_THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
MATCH_OVERLAP = 0.3  # of the union, for heads: hats and heads are boxed differently
MOST_PER_KIND = 10

Propose = Callable[[np.ndarray], Iterable[Proposal]]
Ask = Callable[[Sequence[Bytes], str], np.ndarray]
Slice = Literal["held_out", "val"]


@dataclass(frozen=True)
class Judged:
    """One proposal with the judge's doubt: the probability that there is nothing of the sort.

    `is_true` says whether the labels show it there; for heads None where the labels do not tell.
    `right_headgear` says whether the judge names the headgear of a true head.
    """

    picture: int
    kind: Kind
    score: float
    doubt: float
    is_true: bool | None
    right_headgear: bool | None = None


def judge_proposals(
    pictures: Sequence[LabelledPicture], propose: Propose, ask: Ask
) -> Iterator[Judged]:
    """Put the likeliest proposals of every picture to the judge, labels beside the answers."""
    questions = load_questions()
    for index, picture in enumerate(pictures):
        proposals = sorted(propose(np.asarray(picture.image)), key=lambda each: -each.score)
        for asked, kinds in (("hazard", ("fire", "smoke")), ("head", ("helmet", "head"))):
            chosen = [
                proposal
                for kind in kinds
                if kind in picture.looked_for
                for proposal in [p for p in proposals if p.kind == kind][:MOST_PER_KIND]
            ]
            if not chosen:
                continue
            meanings = list(questions[asked].options.values())
            seen = [_seen(picture, proposal.box) for proposal in chosen]
            absent = "look_alike" if asked == "hazard" else "not_a_person"
            for proposal, row in zip(chosen, ask(seen, asked), strict=True):
                shares = dict(zip(meanings, row.tolist(), strict=True))
                is_true, worn = _truth(picture, proposal)
                right = (
                    None
                    if worn is None
                    else shares[worn] == max(shares["helmet"], shares["no_helmet"])
                )
                yield Judged(index, proposal.kind, proposal.score, shares[absent], is_true, right)


def hazard_rates(
    judged: Iterable[Judged],
    pictures: Sequence[LabelledPicture],
    kind: Kind,
    *,
    score_at: float,
    veto_at: float | None,
) -> tuple[float, float]:
    """Give recall and false-alarm rate per picture; without `veto_at` the detector alone."""
    alarmed = {
        each.picture
        for each in judged
        if each.kind == kind
        and each.score >= score_at
        and (veto_at is None or each.doubt < veto_at)
    }
    checked = [i for i, picture in enumerate(pictures) if kind in picture.looked_for]
    burning = {i for i in checked if boxes_of(pictures[i], kind)}
    calm = set(checked) - burning
    return len(alarmed & burning) / max(1, len(burning)), len(alarmed & calm) / max(1, len(calm))


def head_rates(
    judged: Iterable[Judged], *, score_at: dict[str, float], veto_at: float
) -> tuple[float, float]:
    """Give the shares of true and of false head proposals that the judge vetoes."""
    shares = []
    seen = [each for each in judged if each.kind in ("helmet", "head")]
    for truth in (True, False):
        chosen = [
            each for each in seen if each.is_true is truth and each.score >= score_at[each.kind]
        ]
        vetoed = sum(each.doubt >= veto_at for each in chosen)
        shares.append(vetoed / max(1, len(chosen)))
    return shares[0], shares[1]


def veto_table(
    photos_dir: Path, detector_dir: Path, judge_dir: Path, *, part: Slice, language: Language = "zh"
) -> list[str]:
    """Measure both models on a slice of photos: lines of text with and without judging."""
    pictures = photo_pictures(_photos(photos_dir, part))
    detector = load_detector(detector_dir)
    limits = detector.config.thresholds
    low: dict[str, float] = {kind: 0.5 * limits[kind] for kind in KINDS}
    ask = load_asker(judge_dir, language)
    judged = list(judge_proposals(pictures, lambda rgb: detector.propose(rgb, threshold=low), ask))
    lines = []
    for kind in ("fire", "smoke"):
        for factor in (0.5, 0.75, 1.0):
            rates = [
                (f"{veto_at}" if veto_at else "none", *hazard_rates(
                    judged, pictures, kind, score_at=factor * limits[kind], veto_at=veto_at
                ))
                for veto_at in (None, *VETO_THRESHOLDS)
            ]  # fmt: skip
            lines.append(
                f"{part} {kind} score>={factor * limits[kind]:.3f}: "
                + " | ".join(f"veto {name}: {hit:.3f}/{false:.3f}" for name, hit, false in rates)
            )
    for veto_at in VETO_THRESHOLDS:
        true_lost, false_lost = head_rates(judged, score_at=limits, veto_at=veto_at)
        lines.append(f"{part} heads veto {veto_at}: true {true_lost:.3f} false {false_lost:.3f}")
    for kind in ("helmet", "head"):
        matched = [each for each in judged if each.kind == kind and each.is_true]
        right = [bool(each.right_headgear) for each in matched if each.score >= limits[kind]]
        lines.append(f"{part} {kind} proposals, headgear right: {sum(right)} of {len(right)}")
    return lines


def load_asker(judge_dir: Path, language: Language) -> Ask:
    """Load the judge as a function of crops and a question's name, in float32."""
    tokenizer = Tokenizer.from_file(str(judge_dir / "tokenizer.json"))
    packer = Packer(load_model(judge_dir, dtype="float32"), tokenizer, patch_config())
    questions = load_questions()

    def ask(seen: Sequence[Bytes], asked: str) -> np.ndarray:
        question = questions[asked]
        return letter_probabilities(packer, seen, question.words(language), list(question.options))

    return ask


def _photos(photos_dir: Path, part: Slice) -> list[LabelledPhoto]:
    if part == "val":
        return read_photos(photos_dir, "val")
    return split_held_out(read_photos(photos_dir, "train"))[1]


def _seen(picture: LabelledPicture, box: Box) -> Bytes:
    """Cut a proposal out as inspection does, at the size the judge sees."""
    crop = square_crop(picture.image, box)
    return np.asarray(crop.resize((CROP_SIDE, CROP_SIDE), patch_config().resample))


def _truth(picture: LabelledPicture, proposal: Proposal) -> tuple[bool | None, str | None]:
    """Say whether the labels show the proposal's subject there, and a head's headgear."""
    if proposal.kind in ("fire", "smoke"):
        return any(overlap(proposal.box, box) > 0 for box in boxes_of(picture, proposal.kind)), None
    worn: tuple[tuple[Kind, str], ...] = (("helmet", "helmet"), ("head", "no_helmet"))
    for kind, meaning in worn:
        for box in boxes_of(picture, kind):
            shared = overlap(proposal.box, box)
            if shared >= MATCH_OVERLAP * (area(proposal.box) + area(box) - shared):
                return True, meaning
    people = boxes_of(picture, "person", "helmet", "head")
    if "person" not in picture.looked_for and picture.boxes:
        return None, None
    return (None if any(overlap(proposal.box, box) > 0 for box in people) else False), None
