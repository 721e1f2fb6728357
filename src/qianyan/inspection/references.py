"""Ask the first Qwen-VL for hazards: one kind at a time, boxed in its own words.

Qwen-VL was trained to answer a phrase with `<ref>phrase</ref><box>(x1,y1),(x2,y2)</box>` and keeps
to no longer form. It says nothing about severity, so fire and smoke stay uncertain; people are
asked for twice, with and without a hard hat, and whoever is named both ways becomes uncertain.
"Nothing there" is a word the question agrees on. Prose without a box is an unreadable answer: a
model that talks instead of looking has not said that the place is safe.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qianyan.errors import ReplyError
from qianyan.inputs.marked_places import strip_marks
from qianyan.inspection.answer_items import Item, Listing, read_marked_items
from qianyan.inspection.records import Hazard, SubLabel
from qianyan.inspection.synonyms import find_label
from qianyan.inspection.words import Lang, label_word, sub_label_word

_QUESTION: dict[Lang, str] = {
    "zh": "框出图中所有的{name}。如果图中没有{name}，只回答：{nothing}",
    "en": "Box every {name} in the picture. If there is no {name}, answer only: {nothing}",
}
_NOTHING: dict[Lang, str] = {"zh": "没有", "en": "none"}
_NO: dict[Lang, str] = {"zh": "没有", "en": "no "}
_AROUND = " \t\r\n`'\"“”.。!！,，*"
MAX_STATEMENT_CHARS = 80


@dataclass(frozen=True)
class Reference:
    """One thing to be boxed: the phrase for it, and what a box of it means."""

    hazard: Hazard
    sub_label: SubLabel | None
    names: Mapping[Lang, str]

    def question(self, lang: Lang) -> str:
        """Word the question."""
        return _QUESTION[lang].format(name=self.names[lang], nothing=self.nothing(lang))

    @staticmethod
    def nothing(lang: Lang) -> str:
        """Give the agreed word for a picture without any."""
        return _NOTHING[lang]


REFERENCES = (
    Reference(Hazard.FIRE, None, {"zh": "火焰", "en": "flame"}),
    Reference(Hazard.SMOKE, None, {"zh": "烟雾", "en": "smoke"}),
    Reference(
        Hazard.PERSON, SubLabel.HELMET, {"zh": "戴着安全帽的人", "en": "person wearing a hard hat"}
    ),
    Reference(
        Hazard.PERSON,
        SubLabel.NO_HELMET,
        {"zh": "没有戴安全帽的人", "en": "person without a hard hat"},
    ),
)


def read_reference(reply: str, reference: Reference, *, lang: Lang) -> Listing:
    """Read the answer to one question.

    Raises ReplyError when it neither boxes anything nor says, in the agreed word alone, that there
    is nothing to box.
    """
    marked = read_marked_items(reply)
    if marked.items:
        return replace(
            marked, items=tuple(_named(item, reference, lang=lang) for item in marked.items)
        )
    if marked.is_cut:
        raise ReplyError(
            f"The model's answer of {len(reply)} characters was cut before its first box was "
            "complete."
        )
    if not _states_nothing(reply, reference, lang=lang):
        raise ReplyError(
            f"The model's answer of {len(reply)} characters about {reference.names['en']} holds no "
            f"box; expected boxes, or {_NOTHING[lang]} when there is nothing to box."
        )
    return Listing(())


def _named(item: Item, reference: Reference, *, lang: Lang) -> Item:
    """Give an item our words for what was asked; a name that means something else is kept.

    The probabilities of an echoed phrase say nothing about what was seen: no spans.
    """
    name = item.label
    if name is not None and not _is_echo(name, reference):
        named = find_label(name)
        if named is None or named[0] is not reference.hazard:
            return replace(item, spans=())
    sub_label = reference.sub_label
    return Item(
        label_word(reference.hazard, lang),
        None if sub_label is None else sub_label_word(sub_label, lang),
        item.boxes,
    )


def _is_echo(name: str, reference: Reference) -> bool:
    """Tell whether a name repeats the question's phrase, perhaps with words around it."""
    plain = _plain(name)
    return any(_plain(phrase) in plain for phrase in reference.names.values())


def _states_nothing(reply: str, reference: Reference, *, lang: Lang) -> bool:
    if len(reply) > MAX_STATEMENT_CHARS:
        return False
    said = _plain(strip_marks(reply))
    nothing, name = _NOTHING[lang], reference.names[lang]
    return said in {_plain(nothing), _plain(_NO[lang] + name)}


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(_AROUND)
