"""What a model should have said about a labelled photo: the questions of an inspection, answered.

Only kinds that somebody looked for are asked about; people need their heads labelled as well, or a
sub-label that says whether they wear a hard hat. How severe a fire or smoke is, where the labels do
not say, follows from how much of the picture it takes: the same rule everywhere is better than
none.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qianyan.errors import InputError, quote
from qianyan.inputs.grounding import Markup, Notation, find_markup, find_notation, to_model_box
from qianyan.inspection.heads import Head, find_figures
from qianyan.inspection.prompts import MAX_OBJECTS, listing_prompt
from qianyan.inspection.records import SUB_LABELS, Hazard, SubLabel
from qianyan.inspection.references import REFERENCES, Reference
from qianyan.inspection.words import Lang, label_word, sub_label_word
from qianyan.labels.photos import Corners, LabelledBox, LabelledPhoto
from qianyan.models.detector import Proposal

# The side of a square as large as the box, as a share of the picture's.
MODERATE_FROM, SEVERE_FROM = 0.2, 0.4
Size = tuple[int, int]
Turn = tuple[str, str]
"""A question and its answer."""
Teacher = Callable[[LabelledPhoto, Size], list[Turn]]
"""Gives the turns about a photo that the model sees in a size (width, height)."""

_ONLY: dict[Lang, str] = {
    "zh": "这次只找：{names}。",
    "en": "This time look for {names} only.",
}


@dataclass(frozen=True)
class Taught:
    """One thing that a photo shows, as an inspection would report it."""

    hazard: Hazard
    sub_label: SubLabel
    box: Corners


def find_teacher(architecture: str, *, lang: Lang) -> Teacher:
    """Find how a model class, as config.json names it, is taught to inspect.

    Raises InputError for one whose boxes nobody knows how to write.
    """
    notation = find_notation(architecture)
    if notation is None:
        raise InputError(
            f"How {quote(architecture)} writes boxes is not known; expected one of the Qwen-VL "
            "models, or conversations as JSON lines."
        )
    if find_markup(architecture) is Markup.REF:
        return lambda photo, seen_wh: list(_references(photo, seen_wh, notation, lang))
    return lambda photo, seen_wh: [_listing(photo, seen_wh, notation, lang)]


def things_in(photo: LabelledPhoto) -> tuple[list[Taught], set[Hazard]]:
    """Give what a photo shows, largest first, and the hazards that its labels tell about.

    Raises InputError where they tell about none.
    """
    known = {hazard for hazard in (Hazard.FIRE, Hazard.SMOKE) if hazard.value in photo.labelled}
    things = [
        Taught(Hazard(each.kind), _severity(each, photo), each.box)
        for each in photo.of_kind("fire", "smoke")
    ]
    people = _people(photo)
    if people is not None:
        known.add(Hazard.PERSON)
        things += people
    if not known:
        raise InputError(
            f"The labels of {quote(photo.file)} tell about neither fire nor smoke nor people with "
            "their heads; expected at least one of them."
        )
    return sorted(things, key=lambda thing: -_area(thing.box)), known


def _stated(sub_label: str | None, hazard: Hazard, photo: LabelledPhoto) -> SubLabel:
    if sub_label not in SUB_LABELS[hazard]:
        raise InputError(
            f"The labels of {quote(photo.file)} say {quote(sub_label)} beside a {hazard}; expected "
            f"{', '.join(SUB_LABELS[hazard])}."
        )
    return SubLabel(sub_label)


def _severity(label: LabelledBox, photo: LabelledPhoto) -> SubLabel:
    if label.sub_label is not None:
        return _stated(label.sub_label, Hazard(label.kind), photo)
    side = math.sqrt(_area(label.box) / (photo.width * photo.height))
    if side >= SEVERE_FROM:
        return SubLabel.SEVERE
    return SubLabel.MODERATE if side >= MODERATE_FROM else SubLabel.MINOR


def _people(photo: LabelledPhoto) -> list[Taught] | None:
    """Give people with what the labels say of their heads; None where they do not tell of all."""
    persons = photo.of_kind("person")
    is_stated = all(each.sub_label is not None for each in persons)
    if photo.labelled >= {"person", "helmet", "head"} and not (persons and is_stated):
        return _with_heads(photo)
    if "person" not in photo.labelled or not is_stated:
        return None
    return [
        Taught(Hazard.PERSON, _stated(each.sub_label, Hazard.PERSON, photo), each.box)
        for each in persons
    ]


def _with_heads(photo: LabelledPhoto) -> list[Taught]:
    """Bring heads and bodies together as an inspection does."""
    proposals = [
        Proposal(each.kind, each.head_box or each.box, 1.0)
        for each in photo.of_kind("person", "helmet", "head")
    ]
    figures = find_figures(proposals, (photo.width, photo.height))
    return [Taught(Hazard.PERSON, _headgear(one.head), one.box) for one in figures]


def _headgear(head: Head | None) -> SubLabel:
    if head is None:
        return SubLabel.UNCERTAIN
    return SubLabel.HELMET if head.helmet > head.bare else SubLabel.NO_HELMET


def _listing(photo: LabelledPhoto, seen_wh: Size, notation: Notation, lang: Lang) -> Turn:
    """Ask for everything at once, in JSON; for less where the labels tell less."""
    things, known = things_in(photo)
    question = listing_prompt(lang=lang, notation=notation, seen_wh=seen_wh)
    if len(known) < len(Hazard):
        names = ("、" if lang == "zh" else ", ").join(
            label_word(hazard, lang) for hazard in Hazard if hazard in known
        )
        question += "\n" + _ONLY[lang].format(names=names)
    items = [
        {
            "bbox_2d": list(_written(thing.box, photo, seen_wh, notation)),
            "label": label_word(thing.hazard, lang),
            "sub_label": sub_label_word(thing.sub_label, lang),
        }
        for thing in things[:MAX_OBJECTS]
    ]
    return question, json.dumps(items, ensure_ascii=False, separators=(",", ":"))


def _references(
    photo: LabelledPhoto, seen_wh: Size, notation: Notation, lang: Lang
) -> Iterator[Turn]:
    """Ask for one kind at a time, to be boxed in running text (Qwen-VL)."""
    things, known = things_in(photo)
    for reference in REFERENCES:
        if reference.hazard in known:
            yield (
                reference.question(lang),
                _boxed(reference, things, photo, seen_wh, notation, lang),
            )


def _boxed(
    reference: Reference,
    things: list[Taught],
    photo: LabelledPhoto,
    seen_wh: Size,
    notation: Notation,
    lang: Lang,
) -> str:
    boxes = [
        _written(thing.box, photo, seen_wh, notation)
        for thing in things
        if thing.hazard is reference.hazard and reference.sub_label in (None, thing.sub_label)
    ]
    written = "".join(
        f"<box>({x1},{y1}),({x2},{y2})</box>" for x1, y1, x2, y2 in boxes[:MAX_OBJECTS]
    )
    return f"<ref>{reference.names[lang]}</ref>{written}" if written else reference.nothing(lang)


def _written(box: Corners, photo: LabelledPhoto, seen_wh: Size, notation: Notation) -> Corners:
    return to_model_box(
        box, notation=notation, seen_wh=seen_wh, photo_wh=(photo.width, photo.height)
    )


def _area(box: Corners) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
