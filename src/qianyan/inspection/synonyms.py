"""What models call the things they were asked for: known words in, our closed sets out.

A word outside the lists is unknown, and so is one that names two things. Negations are not read as
what they negate: "no fire" and "未见火灾" are unknown labels.
"""

import re

from qianyan.inspection.records import SUB_LABELS, Hazard, SubLabel

_LABELS: dict[Hazard, str] = {
    Hazard.FIRE: "fire fires flame flames openflame blaze burning "
    "火灾 火 火焰 明火 火情 着火 起火 燃烧",
    Hazard.SMOKE: "smoke smokes smokeplume 烟雾 烟 浓烟 黑烟 白烟 烟气",
    Hazard.PERSON: "person persons people human man woman worker workers pedestrian "
    "人员 人 人物 工人 工作人员 施工人员 行人 男人 女人",
}
_SUB_LABELS: dict[SubLabel, str] = {
    SubLabel.MINOR: "minor slight light mild small low 轻微 轻度 轻 小 较小",
    SubLabel.MODERATE: "moderate medium middle 中等 中度 中 一般",
    SubLabel.SEVERE: "severe serious heavy major large high critical 严重 重度 重 大 较大 剧烈",
    SubLabel.HELMET: "helmet withhelmet wearinghelmet wearingahelmet helmeton helmetworn hardhat "
    "withhardhat wearinghardhat wearingahardhat hardhatworn wearingasafetyhelmet safetyhelmet "
    "佩戴安全帽 戴安全帽 已佩戴安全帽 已戴安全帽 戴着安全帽 有安全帽 正确佩戴安全帽 佩戴 已佩戴",
    SubLabel.NO_HELMET: "nohelmet withouthelmet withoutahelmet notwearinghelmet nothelmet "
    "notwearingahelmet helmetmissing missinghelmet helmetoff nohardhat withouthardhat "
    "withoutahardhat notwearinghardhat notwearingahardhat nosafetyhelmet barehead bareheaded "
    "未佩戴安全帽 未戴安全帽 没戴安全帽 没有戴安全帽 没有佩戴安全帽 不戴安全帽 无安全帽 "
    "未正确佩戴安全帽 未佩戴 未戴",
    SubLabel.UNCERTAIN: "uncertain unknown unsure unclear undetermined cannottell notsure "
    "不确定 未知 不明 不清楚 看不清 无法判断 无法确定",
}
_LABEL_OF_WORD = {word: hazard for hazard, words in _LABELS.items() for word in words.split()}
_SUB_LABEL_OF_WORD = {word: one for one, words in _SUB_LABELS.items() for word in words.split()}
# A label may carry more than its own: "person (no helmet)", "人员-未佩戴安全帽".
_BETWEEN_PARTS = re.compile(r"[()（）\[\]【】:：/|,，、;；]|-(?=\D)|\s-\s")
MAX_WORD_CHARS = 80


def find_label(word: str) -> tuple[Hazard, SubLabel | None] | None:
    """Find what a label names, and the sub-label where the word says that too; None if unknown.

    A word for head protection alone names the person who wears it or does not, except the bare
    "helmet", which may be the thing itself.
    """
    plain = _plain(word)
    if plain in _LABEL_OF_WORD:
        return _LABEL_OF_WORD[plain], None
    alone = _SUB_LABEL_OF_WORD.get(plain)
    if alone is SubLabel.NO_HELMET or (
        alone is SubLabel.HELMET and plain.startswith(("wearing", "with", "佩", "戴", "已", "正"))
    ):
        return Hazard.PERSON, alone
    parts = [_plain(part) for part in _BETWEEN_PARTS.split(word[:MAX_WORD_CHARS])]
    hazards = {_LABEL_OF_WORD[part] for part in parts if part in _LABEL_OF_WORD}
    if len(hazards) != 1:
        return None
    hazard = hazards.pop()
    rest = [part for part in parts if part and part not in _LABEL_OF_WORD]
    if not rest:
        return hazard, None
    if len(rest) == 1 and _SUB_LABEL_OF_WORD.get(rest[0]) in SUB_LABELS[hazard]:
        return hazard, _SUB_LABEL_OF_WORD[rest[0]]
    return None


def find_sub_label(word: str, hazard: Hazard) -> SubLabel | None:
    """Find what a sub-label says about a hazard; None if unknown, or said of another hazard."""
    sub_label = _SUB_LABEL_OF_WORD.get(_plain(word))
    return sub_label if sub_label in SUB_LABELS[hazard] else None


def _plain(word: str) -> str:
    """Reduce a word to what is compared: lower case, no spaces, no joining marks."""
    return re.sub(r"[\s_\-.。'\"“”]+", "", word[:MAX_WORD_CHARS]).lower()
