"""The words people read, in Chinese and English; ids stay the same in every language."""

from typing import Literal

from qianyan.inspection.records import Detection, Hazard, SubLabel

Lang = Literal["zh", "en"]

LABELS: dict[Lang, dict[Hazard, str]] = {
    "zh": {Hazard.FIRE: "火灾", Hazard.SMOKE: "烟雾", Hazard.PERSON: "人员"},
    "en": {Hazard.FIRE: "fire", Hazard.SMOKE: "smoke", Hazard.PERSON: "person"},
}

SUB_LABEL_WORDS: dict[Lang, dict[SubLabel, str]] = {
    "zh": {
        SubLabel.MINOR: "轻微",
        SubLabel.MODERATE: "中等",
        SubLabel.SEVERE: "严重",
        SubLabel.HELMET: "佩戴安全帽",
        SubLabel.NO_HELMET: "未佩戴安全帽",
        SubLabel.UNCERTAIN: "不确定",
    },
    "en": {
        SubLabel.MINOR: "minor",
        SubLabel.MODERATE: "moderate",
        SubLabel.SEVERE: "severe",
        SubLabel.HELMET: "helmet",
        SubLabel.NO_HELMET: "no helmet",
        SubLabel.UNCERTAIN: "uncertain",
    },
}

# For pictures too small for more: what matters in as few letters as possible.
SHORT_WORDS: dict[Lang, dict[SubLabel, str]] = {
    "zh": {SubLabel.HELMET: "戴帽", SubLabel.NO_HELMET: "未戴帽", SubLabel.UNCERTAIN: "人员?"},
    "en": {SubLabel.HELMET: "hat", SubLabel.NO_HELMET: "no hat", SubLabel.UNCERTAIN: "person?"},
}


def label_word(label: Hazard, lang: Lang) -> str:
    """Say a hazard in the user's language."""
    return LABELS[lang][label]


def sub_label_word(sub_label: SubLabel, lang: Lang) -> str:
    """Say a sub-label in the user's language."""
    return SUB_LABEL_WORDS[lang][sub_label]


def caption(detection: Detection, lang: Lang) -> str:
    """Say a detection in a few words: label, sub-label and, where known, the score in percent."""
    words = name(detection, lang)
    return words if detection.score is None else f"{words} {round(detection.score * 100)}%"


def name(detection: Detection, lang: Lang) -> str:
    """Say what a detection is: label and sub-label."""
    return f"{label_word(detection.label, lang)} {sub_label_word(detection.sub_label, lang)}"


def short_caption(detection: Detection, lang: Lang) -> str:
    """Say a detection in one word: the hazard, or what a person has on the head."""
    if detection.label is Hazard.PERSON:
        return SHORT_WORDS[lang].get(detection.sub_label, label_word(detection.label, lang))
    return label_word(detection.label, lang)
