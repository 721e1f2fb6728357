"""What a run says in sentences: the verdict on all pictures, and one sentence per finding.

The verdict never says that a place is safe: where nothing was found it says so, with what was
looked for. Pictures that could not be inspected are part of it. Nothing uncertain is counted as a
hazard, and nothing uncertain is hidden.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qianyan.inspection.records import SUB_LABELS, Detection, Hazard, Inspection, SubLabel
from qianyan.inspection.reporting.report_words import (
    CHECK_WORDS,
    PLACE_WORDS,
    REPORT_WORDS,
    SCORE_WORDS,
    SENTENCES,
)
from qianyan.inspection.words import Lang, label_word, sub_label_word

Tone = Literal["alarm", "review", "none", "failed"]
MOST_OF_PICTURE = 0.5  # a box of a larger share has no place worth naming


@dataclass(frozen=True)
class Verdict:
    """The first thing a report says: one sentence, those that qualify it, and how loud it is."""

    tone: Tone
    headline: str
    details: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.headline, *self.details))


def is_review(detection: Detection) -> bool:
    """Say whether a person has to look again before this may count as a hazard."""
    return detection.sub_label is SubLabel.UNCERTAIN


def is_hazard(detection: Detection) -> bool:
    """Say whether this counts as a hazard: fire and smoke of any size, a bare head."""
    return detection.sub_label not in {SubLabel.UNCERTAIN, SubLabel.HELMET}


def say(sentence: str, lang: Lang, **gaps: object) -> str:
    """Fill a sentence; `{s}` is the English plural of `{n}`."""
    return SENTENCES[lang][sentence].format(**gaps, s="" if gaps.get("n") == 1 else "s")


def give_verdict(inspections: Sequence[Inspection], lang: Lang) -> Verdict:
    """Sum a run up for a person who reads one sentence."""
    total = len(inspections)
    looked = [inspection for inspection in inspections if inspection.detections is not None]
    if not looked:
        return Verdict("failed", say("all_failed" if total else "no_pictures", lang, n=total), ())
    found = [detection for one in looked for detection in one.detections or ()]
    hazards = [detection for detection in found if is_hazard(detection)]
    reviews = [detection for detection in found if is_review(detection)]
    scope = _scope(looked, lang)
    failed = total - len(looked)
    tone: Tone = "alarm" if hazards else "review" if reviews or failed else "none"
    if hazards:
        headline = say("hazards", lang, n=len(hazards), what=_groups(hazards, lang))
    elif reviews:
        headline = say("reviews", lang, n=len(reviews), what=_groups(reviews, lang))
    elif failed:
        headline = say("nothing_in_some", lang, scope=scope, n=failed)
    else:
        headline = say("nothing", lang, scope=scope)
    details = []
    if hazards and reviews:
        details.append(say("more_reviews", lang, n=len(reviews), what=_groups(reviews, lang)))
    if failed and (hazards or reviews):
        details.append(say("some_failed", lang, n=failed, total=total))
    if hazards or reviews:
        details.append(say("scope_detail", lang, scope=scope[0].upper() + scope[1:]))
    num_helmets = sum(detection.sub_label is SubLabel.HELMET for detection in found)
    num_vetoed = sum(len(one.vetoed) for one in looked)
    details += [say("helmets", lang, n=num_helmets)] if num_helmets else []
    details += [say("vetoed", lang, n=num_vetoed)] if num_vetoed else []
    return Verdict(tone, headline, tuple(details))


def _scope(looked: Sequence[Inspection], lang: Lang) -> str:
    """Say what was looked for, and in how many pictures where that was not in all of them."""
    counts = {hazard: sum(hazard in one.checked for one in looked) for hazard in Hazard}
    parts = [
        CHECK_WORDS[lang][hazard]
        if num == len(looked)
        else say("scope_part", lang, what=CHECK_WORDS[lang][hazard], n=num)
        for hazard, num in counts.items()
        if num
    ]
    what = REPORT_WORDS[lang]["separator"].join(parts)
    return say("scope" if parts else "scope_empty", lang, what=what, n=len(looked))


def _groups(detections: Sequence[Detection], lang: Lang) -> str:
    """Count detections by hazard and, for fire and smoke, by severity, worst first."""
    separator = REPORT_WORDS[lang]["separator"]
    counts = Counter((detection.label, detection.sub_label) for detection in detections)
    parts = []
    for hazard in (Hazard.FIRE, Hazard.SMOKE):
        by_severity = {
            sub_label: counts[hazard, sub_label]
            for sub_label in (SubLabel.SEVERE, SubLabel.MODERATE, *SUB_LABELS[hazard])
            if counts[hazard, sub_label]
        }
        words = {sub_label: sub_label_word(sub_label, lang) for sub_label in by_severity}
        which = separator.join(
            words[sub_label] if len(by_severity) == 1 else say("group_part", lang, which=word, n=n)
            for (sub_label, n), word in zip(by_severity.items(), words.values(), strict=True)
        )
        if by_severity:
            num = sum(by_severity.values())
            parts.append(say("group", lang, what=label_word(hazard, lang), n=num, which=which))
    for sub_label, sentence in (
        (SubLabel.NO_HELMET, "group_no_helmet"),
        (SubLabel.UNCERTAIN, "group_head_unsure"),
    ):
        if num := counts[Hazard.PERSON, sub_label]:
            parts.append(say(sentence, lang, n=num))
    return separator.join(parts)


def describe(detection: Detection, photo_wh: tuple[int, int], lang: Lang) -> str:
    """Say one finding as a sentence: what, where, how large, how sure."""
    what = finding_name(detection, lang)
    share = detection.box.area / (photo_wh[0] * photo_wh[1])
    percent = round(100 * share)
    return say(
        "finding",
        lang,
        what=what[0].upper() + what[1:],
        where=place_word(detection, photo_wh, lang),
        share=say("share" if percent else "share_small", lang, percent=percent),
        score=_score_sentence(detection, lang),
    )


def finding_name(detection: Detection, lang: Lang) -> str:
    """Say what was found in running text: `火灾（严重）`, `fire (severe)`."""
    words = label_word(detection.label, lang), sub_label_word(detection.sub_label, lang)
    return f"{words[0]}（{words[1]}）" if lang == "zh" else f"{words[0]} ({words[1]})"


def place_word(detection: Detection, photo_wh: tuple[int, int], lang: Lang) -> str:
    """Say where in the picture a finding lies, by the ninth that holds its centre."""
    box = detection.box
    width, height = photo_wh
    if box.area > MOST_OF_PICTURE * width * height:
        return PLACE_WORDS[lang][-1]
    column = min(3 * (box.x1 + box.x2) // (2 * width), 2)
    row = min(3 * (box.y1 + box.y2) // (2 * height), 2)
    return PLACE_WORDS[lang][3 * row + column]


def score_text(detection: Detection, lang: Lang) -> str:
    """Say a score with its source, or that there is none."""
    if detection.score is None:
        return REPORT_WORDS[lang]["none"]
    percent = f"{round(detection.score * 100)}%"
    kind = SCORE_WORDS[lang].get(detection.score_kind or "", "")
    return f"{percent} {kind}".strip()


def _score_sentence(detection: Detection, lang: Lang) -> str:
    if detection.score is None:
        return say("score_none", lang)
    kind = SCORE_WORDS[lang].get(detection.score_kind or "", REPORT_WORDS[lang]["none"])
    return say("score", lang, percent=round(detection.score * 100), kind=kind)
