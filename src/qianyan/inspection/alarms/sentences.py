"""What an alarm says: one sentence about one picture, put together by rule.

No model has a word in it, so that nothing is said that was not found. Nothing found is nothing
said; a picture that could not be judged is said, as silence would pass for a clean one. Numbers
are words, as they are to be read aloud.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qianyan.inspection.gate import is_at
from qianyan.inspection.records import Detection, Hazard, Inspection, SubLabel
from qianyan.inspection.verdict import is_hazard, is_review
from qianyan.inspection.words import Lang

DIGITS = "零一二三四五六七八九"
ENGLISH = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
INSIDE = tuple("上下内外里中旁边侧前后处口间")
"""What a Chinese name of a place ends with that needs no 有 behind it: 塔吊下一人…"""
THINGS = (Hazard.FIRE, Hazard.SMOKE)


@dataclass(frozen=True, kw_only=True)
class AlarmForm:
    """How alarms are worded, and what they are about.

    `levels` are words of --fail-on; None takes every fire and smoke, the uncertain as possible
    ones, and bare heads. With `max_objects` findings there may be more, so that numbers are said as
    the least.
    """

    lang: Lang
    levels: frozenset[str] | None = None
    max_objects: int | None = None


@dataclass(frozen=True)
class _Found:
    """What an alarm is about: how many of each, and what is severe among it."""

    certain: dict[Hazard, int]
    severe: dict[Hazard, int]
    possible: tuple[Hazard, ...]
    num_bare: int
    num_unclear: int
    is_least: bool

    @property
    def is_doubtful(self) -> bool:
        return bool(self.possible or self.num_unclear)


def alarm_sentence(inspection: Inspection, form: AlarmForm, place: str = "") -> str | None:
    """Say what was found in a picture, and where; None where there is nothing to say.

    `place` stands in the sentence as it is: 3 号塔吊下, Warehouse 2.
    """
    if inspection.detections is None:
        return _not_judged(form.lang, place)
    wanted = [one for one in inspection.detections if _is_wanted(one, form.levels)]
    if not wanted:
        return None
    is_least = form.max_objects is not None and len(inspection.detections) >= form.max_objects
    found = _count(wanted, is_least=is_least)
    return _in_chinese(found, place) if form.lang == "zh" else _in_english(found, place)


def _is_wanted(found: Detection, levels: frozenset[str] | None) -> bool:
    if levels is None:
        return is_hazard(found) or (is_review(found) and found.label in THINGS)
    return any(is_at(found, level) for level in levels)


def _count(wanted: Sequence[Detection], *, is_least: bool) -> _Found:
    def count(label: Hazard, *sub_labels: SubLabel) -> int:
        return sum(one.label is label and one.sub_label in sub_labels for one in wanted)

    certain = {
        label: sum(one.label is label and is_hazard(one) for one in wanted) for label in THINGS
    }
    return _Found(
        certain={label: number for label, number in certain.items() if number},
        severe={label: count(label, SubLabel.SEVERE) for label in THINGS},
        # Of what is there for certain, that there may be more of it says nothing.
        possible=tuple(
            label for label in THINGS if count(label, SubLabel.UNCERTAIN) and not certain[label]
        ),
        num_bare=count(Hazard.PERSON, SubLabel.NO_HELMET),
        num_unclear=count(Hazard.PERSON, SubLabel.UNCERTAIN),
        is_least=is_least,
    )


def _not_judged(lang: Lang, place: str) -> str:
    if lang == "zh":
        return f"{f'{place}的画面' if place else '有一张图片'}未能判断，请人工查看"
    return _beginning(place, "the picture could not be judged; please look yourself")


def chinese_number(number: int) -> str:
    """Say a number as it counts things: 一, 两, 三, 十二; digits from a hundred on."""
    if number == 2:
        return "两"
    if number < 10:
        return DIGITS[number]
    tens, ones = divmod(number, 10)
    if tens >= 10:
        return str(number)
    return f"{DIGITS[tens] if tens > 1 else ''}十{DIGITS[ones] if ones else ''}"


def _in_chinese(found: _Found, place: str) -> str:
    words = {Hazard.FIRE: "明火", Hazard.SMOKE: "烟雾"}
    least = "至少" if found.is_least else ""

    def counted(number: int, noun: str) -> str:
        return f"{least}{chinese_number(number)}{noun}"

    certain = "和".join(
        counted(number, f"处{words[label]}") if number > 1 else words[label]
        for label, number in found.certain.items()
    )
    clauses = [f"{'有' if place else '发现'}{certain}"] if certain else []
    clauses += ["火势严重"] if found.severe[Hazard.FIRE] else []
    clauses += ["烟雾浓重"] if found.severe[Hazard.SMOKE] else []
    if found.possible:
        clauses.append(f"疑似有{'和'.join(words[label] for label in found.possible)}")
    for number, what in (
        (found.num_bare, "人未戴安全帽"),
        (found.num_unclear, "人是否戴安全帽看不清"),
    ):
        if number:
            has = "另有" if clauses else "发现" if not place else ""
            has = has or ("" if place.endswith(INSIDE) else "有")
            clauses.append(f"{has}{counted(number, what)}")
    clauses += ["请核实"] if found.is_doubtful else []
    said = "，".join(clauses)
    return place + (f"至少有{said[3:]}" if said.startswith("有至少") else said)


def _in_english(found: _Found, place: str) -> str:
    things = [
        _thing(label, number, found.severe[label], is_least=found.is_least)
        for label, number in found.certain.items()
    ]
    things += [f"possible {label.value}" for label in found.possible]
    least = "at least " if found.is_least else ""
    for number, one, more in (
        (found.num_bare, "without a hard hat", "without hard hats"),
        (found.num_unclear, "who may have no hard hat", "who may have no hard hats"),
    ):
        if number:
            who = "person" if number == 1 else "people"
            what = one if number == 1 else more
            things.append(f"{least}{english_number(number)} {who} {what}")
    listed = " and ".join(part for part in (", ".join(things[:-1]), things[-1]) if part)
    return _beginning(place, listed + ("; please check" if found.is_doubtful else ""))


def english_number(number: int) -> str:
    """Say a number in a word up to ten."""
    return ENGLISH[number] if number < len(ENGLISH) else str(number)


def _thing(label: Hazard, number: int, num_severe: int, *, is_least: bool) -> str:
    if number == 1:
        return f"severe {label.value}" if num_severe else label.value
    what = "fires" if label is Hazard.FIRE else "clouds of smoke"
    said = f"{'at least ' if is_least else ''}{english_number(number)} "
    if num_severe in (0, number):
        return said + ("severe " if num_severe else "") + what
    return said + f"{what}, {english_number(num_severe)} of them severe"


def _beginning(place: str, words: str) -> str:
    return f"{place}: {words}" if place else words[0].upper() + words[1:]
