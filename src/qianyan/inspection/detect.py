"""A model lists what it sees; its answer becomes detections in photo pixels, or an error.

An empty list is a statement ("nothing found"); everything else that cannot be read is a ReplyError.
What is left out on the way (unknown labels, boxes without an area, repeats) is counted in notes.
Models that mark places instead of writing JSON are asked for one kind of thing at a time.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from PIL import Image

from qianyan.errors import ReplyError
from qianyan.inputs.grounding import Markup, Notation, to_photo_box
from qianyan.inputs.images import Photo
from qianyan.inspection.answer_items import Item, Listing, Numbers, read_listing
from qianyan.inspection.prompts import (
    MAX_OBJECTS,
    USUAL_FORM,
    ListingForm,
    listing_parts,
    listing_schema,
)
from qianyan.inspection.records import Box, Detection, Hazard, Look, SubLabel, Usage
from qianyan.inspection.references import REFERENCES, read_reference
from qianyan.inspection.repetition import LabelledBox, ends_in_loop, is_repeating
from qianyan.inspection.synonyms import find_label, find_sub_label
from qianyan.inspection.vision import Answer, Ask, TokenScore, Vision
from qianyan.inspection.words import Lang

TOKENS_PER_OBJECT = 60
TOKENS_BESIDES = 100
TOKENS_PER_BOX = 30  # of a model that spells each digit and writes no keys
MIN_AREA_PX = 4
WHOLE_FRAME = 0.98
SAME_OBJECT_IOU = 0.7
FAR_OUTSIDE = 2.0
"""Multiple of the picture's far edge beyond which a coordinate is a slip, not an overshoot."""
TOP_LOGPROBS = 5
# A second try has to leave the loop: warmer, and less willing to say the same again.
RETRY_TEMPERATURE = 0.5
RETRY_PRESENCE_PENALTY = 1.5


@dataclass(frozen=True)
class Space:
    """Where the numbers of a model's boxes live, and the photo they are to be brought to."""

    notation: Notation
    seen_wh: tuple[int, int]
    photo_wh: tuple[int, int]


@dataclass(frozen=True)
class Glance:
    """A picture, or a part of one, and the most visual tokens it may take; None as usual."""

    image: Image.Image
    visual_tokens: int | None = None


@dataclass(frozen=True)
class Unread:
    """An answer that cannot be read: why, and what it cost."""

    error: ReplyError
    usage: Usage

    @property
    def raw(self) -> str | None:
        """What the model said."""
        return self.error.raw


@dataclass(frozen=True, kw_only=True)
class Lister:
    """Has a model list the hazards in pictures; `visual_tokens` bounds each picture's size."""

    vision: Vision
    lang: Lang
    max_objects: int = MAX_OBJECTS
    visual_tokens: int | None = None
    form: ListingForm = USUAL_FORM

    def look(self, photo: Photo) -> Look:
        """Ask about one photo; raises as `detect` does."""
        (look,) = self.list_all([Glance(photo.rgb, self.visual_tokens)])
        if isinstance(look, Unread):
            raise look.error
        return look

    def list_all(self, glances: Sequence[Glance]) -> list[Look | Unread]:
        """Ask about several pictures at once; detections are in the pixels of each.

        An answer that cannot be read is given back as such, never as a look that found nothing.
        Raises what `Vision.ask_many` raises when there is no answer.
        """
        questions = [self._questions(glance) for glance in glances]
        answers = iter(self.vision.ask_many([one.ask for asked in questions for one in asked]))
        return [self._read(asked, [next(answers) for _ in asked]) for asked in questions]

    def seen_wh(self, photo_wh: tuple[int, int], visual_tokens: int | None) -> tuple[int, int]:
        """Tell in which size a picture is seen within so many tokens; None as usual."""
        return self.vision.seen_wh(photo_wh, visual_tokens)

    def count_tokens(self, seen_wh: tuple[int, int]) -> int:
        """Count the visual tokens of a picture that is seen in this size."""
        return self.vision.count_tokens(seen_wh)

    def _questions(self, glance: Glance) -> "list[_Question]":
        if self.vision.markup is Markup.REF:
            return _reference_questions(glance, self.lang, max_objects=self.max_objects)
        return [self._listing_question(glance)]

    def _listing_question(self, glance: Glance) -> "_Question":
        """Ask for everything at once, in JSON."""
        notation = self.vision.notation
        prompt = listing_parts(
            lang=self.lang,
            notation=notation,
            seen_wh=self.vision.seen_wh(glance.image.size, glance.visual_tokens),
            max_objects=self.max_objects,
            form=self.form,
        )
        ask = Ask(
            image=glance.image,
            text=prompt.after,
            before=prompt.before,
            visual_tokens=glance.visual_tokens,
            max_objects=self.max_objects,
            schema=listing_schema(
                lang=self.lang,
                notation=notation,
                max_objects=self.max_objects,
                answer=self.form.answer,
            ),
            max_tokens=TOKENS_PER_OBJECT * self.max_objects + TOKENS_BESIDES,
            logprobs=TOP_LOGPROBS,
        )
        return _Question(ask, read_listing)

    def _read(self, questions: "Sequence[_Question]", answers: Sequence[Answer]) -> Look | Unread:
        """Make a look of the answers about one picture, or say why there is none."""
        try:
            looks = [
                _look(question, answer, self.vision, max_objects=self.max_objects)
                for question, answer in zip(questions, answers, strict=True)
            ]
        except ReplyError as error:
            return Unread(error, _sum_usage([answer.usage for answer in answers]))
        return looks[0] if len(looks) == 1 else _join(looks, max_objects=self.max_objects)


def detect(
    photo: Photo, vision: Vision, *, lang: Lang = "zh", max_objects: int = MAX_OBJECTS
) -> Look:
    """Ask a model to list all hazards in a photo.

    An answer that runs in a loop is asked for once more, warmer; the better one counts.

    Raises:
        ReplyError: the answer cannot be read; never taken for "nothing found".
        QianyanError: there is no answer.
    """
    return Lister(vision=vision, lang=lang, max_objects=max_objects).look(photo)


@dataclass(frozen=True)
class _Question:
    """What a model is asked, and how its answer is taken apart."""

    ask: Ask
    read: Callable[[str], Listing]


def _reference_questions(glance: Glance, lang: Lang, *, max_objects: int) -> list[_Question]:
    """Ask for one kind of thing at a time, to be boxed in running text."""
    max_tokens = TOKENS_PER_BOX * max_objects + TOKENS_BESIDES
    return [
        _Question(
            Ask(
                image=glance.image,
                text=reference.question(lang),
                visual_tokens=glance.visual_tokens,
                max_tokens=max_tokens,
            ),
            partial(read_reference, reference=reference, lang=lang),
        )
        for reference in REFERENCES
    ]


def _look(question: _Question, answer: Answer, vision: Vision, *, max_objects: int) -> Look:
    """Read an answer; one that runs in a loop is asked for once more."""
    first = _Try.of(answer, question, vision.notation, max_objects=max_objects)
    if not first.is_loop:
        return first.look()
    again = replace(
        question.ask,
        temperature=RETRY_TEMPERATURE,
        presence_penalty=RETRY_PRESENCE_PENALTY,
        seed=0,
    )
    second = _Try.of(vision.ask(again), question, vision.notation, max_objects=max_objects)
    chosen = second if second.beats(first) else first
    look = chosen.look()
    return replace(
        look,
        usage=first.answer.usage + second.answer.usage,
        notes=(*look.notes, "the answer ran in a loop; the model was asked once more"),
    )


def _join(looks: Sequence[Look], *, max_objects: int) -> Look:
    """Make one look of the answers to several questions."""
    counts: Counter[str] = Counter()
    kept = _merge_repeats([one for look in looks for one in look.detections], counts)
    if len(kept) > max_objects:
        counts[f"beyond the limit of {max_objects} left out"] += len(kept) - max_objects
    return Look(
        tuple(kept[:max_objects]),
        usage=_sum_usage([look.usage for look in looks]),
        raw="\n".join(look.raw or "" for look in looks),
        notes=(
            *(note for look in looks for note in look.notes),
            *(f"{number} {what}" for what, number in counts.items()),
        ),
    )


def _sum_usage(usages: Sequence[Usage]) -> Usage:
    return sum(usages[1:], usages[0])


def parse_detections(
    reply: str,
    *,
    notation: Notation,
    seen_wh: tuple[int, int],
    photo_wh: tuple[int, int],
    max_objects: int = MAX_OBJECTS,
    tokens: Sequence[TokenScore] | None = None,
) -> tuple[tuple[Detection, ...], tuple[str, ...]]:
    """Read a model's whole answer into detections in photo pixels, with notes on what was left out.

    Args:
        reply: the answer, a JSON array of {"bbox_2d": [...], "label": ..., "sub_label": ...}, in
            any of the damaged forms that models produce.
        notation: what the numbers of a box mean.
        seen_wh: size of the picture that the model saw.
        photo_wh: size of the original photo.
        max_objects: detections beyond this number are left out.
        tokens: the answer's tokens, from which scores are made where they are known.

    Raises:
        ReplyError: the answer is not such an array, was cut before its first object, or none of
            its objects is usable.
    """
    space = Space(notation, seen_wh, photo_wh)
    return _to_detections(read_listing(reply), reply, space, max_objects=max_objects, tokens=tokens)


def score_of(
    spans: Sequence[tuple[int, int]], reply: str, tokens: Sequence[TokenScore]
) -> float | None:
    """Take the geometric mean of the probabilities of the tokens that spell these places.

    Tokens that a grammar forced, having no alternative, say nothing and are left out. None when
    the tokens do not spell the answer.
    """
    if not spans:
        return None
    spelled = b"".join(token.data for token in tokens)
    offset = spelled.find(reply.encode())
    if offset < 0:
        return None
    places = [
        (offset + len(reply[:start].encode()), offset + len(reply[:end].encode()))
        for start, end in spans
    ]
    logprobs, at = [], 0
    for token in tokens:
        end = at + len(token.data)
        was_free = token.logprob < 0 or len(token.top) != 1
        if was_free and any(at < stop and start < end for start, stop in places):
            logprobs.append(token.logprob)
        at = end
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else None


@dataclass(frozen=True)
class _Try:
    """One answer: read, or the reason why it cannot be."""

    answer: Answer
    detections: tuple[Detection, ...] = ()
    notes: tuple[str, ...] = ()
    error: ReplyError | None = None
    is_loop: bool = False

    @classmethod
    def of(
        cls,
        answer: Answer,
        question: _Question,
        notation: Notation,
        *,
        max_objects: int,
    ) -> "_Try":
        """Read an answer and notice whether it runs in a loop."""
        is_long = answer.finish_reason == "length"
        is_enough = answer.finish_reason == "enough"
        is_loop = is_long and ends_in_loop(answer.text)
        try:
            read = question.read(answer.text)
            is_loop = is_loop or is_repeating(_labelled_boxes(read))
            detections, notes = _to_detections(
                replace(read, is_cut=is_long or (read.is_cut and not is_enough)),
                answer.text,
                Space(notation, answer.seen_wh, question.ask.image.size),
                max_objects=max_objects,
                tokens=answer.tokens,
            )
        except ReplyError as error:
            error.raw = answer.text
            return cls(answer, error=error, is_loop=is_loop)
        return cls(answer, detections, notes, is_loop=is_loop)

    def beats(self, other: "_Try") -> bool:
        """Tell whether this second answer is the better one."""
        if self.error is not None:
            return other.error is not None
        return other.error is not None or not self.is_loop

    def look(self) -> Look:
        """Give the result, or raise the reason why there is none."""
        if self.error is not None:
            raise self.error
        return Look(
            self.detections, usage=self.answer.usage, raw=self.answer.text, notes=self.notes
        )


def _labelled_boxes(read: Listing) -> list[LabelledBox]:
    """Write the boxes down in order, for the loop detector."""
    return [(item.label or "", box) for item in read.items for box in item.boxes if box is not None]


def _to_detections(
    read: Listing,
    reply: str,
    space: Space,
    *,
    max_objects: int,
    tokens: Sequence[TokenScore] | None,
) -> tuple[tuple[Detection, ...], tuple[str, ...]]:
    """Judge each object, merge repeats, keep the first `max_objects`; count all that goes."""
    counts: Counter[str] = Counter()
    judged = []
    for item in read.items:
        score = score_of(item.spans, reply, tokens) if tokens else None
        judged += _judge(item, space, score, counts)
    if read.items and not judged:
        reasons = "; ".join(f"{number} {what}" for what, number in counts.items())
        raise ReplyError(
            f"None of the {len(read.items)} objects in the model's answer can be used: {reasons}."
        )
    kept = _merge_repeats(judged, counts)
    if len(kept) > max_objects:
        counts[f"beyond the limit of {max_objects} left out"] += len(kept) - max_objects
    notes = [f"{number} {what}" for what, number in counts.items()]
    if read.is_cut:
        notes.insert(0, f"the answer was cut; {len(judged)} objects were read")
    return tuple(kept[:max_objects]), tuple(notes)


def _judge(item: Item, space: Space, score: float | None, counts: Counter[str]) -> list[Detection]:
    """Turn one listed object into detections; usually one, none when it is unusable."""
    named = find_label(item.label or "")
    if named is None:
        counts["with an unknown label left out"] += max(len(item.boxes), 1)
        return []
    hazard, implied = named
    sub_label = find_sub_label(item.sub_label, hazard) if item.sub_label else implied
    if item.sub_label and sub_label is None:
        sub_label = implied
        counts["with an unknown sub-label read as uncertain"] += implied is None
    detections = []
    for numbers in item.boxes:
        box = _place(numbers, hazard, space, counts)
        if box is not None:
            detections.append(
                Detection(
                    label=hazard,
                    sub_label=sub_label or SubLabel.UNCERTAIN,
                    box=box,
                    score=score,
                    score_kind=None if score is None else "logprob",
                )
            )
    return detections


def _place(
    numbers: Numbers | None, hazard: Hazard, space: Space, counts: Counter[str]
) -> Box | None:
    """Bring a box to the photo, or count why it cannot be."""
    if numbers is None:
        counts["without four numbers as a box left out"] += 1
        return None
    reach = _reach(numbers, space)
    if reach > FAR_OUTSIDE:
        counts["with a box far outside the picture left out"] += 1
        return None
    corners = to_photo_box(
        numbers, notation=space.notation, seen_wh=space.seen_wh, photo_wh=space.photo_wh
    )
    if corners is None or (box := Box(*corners)).area < MIN_AREA_PX:
        counts["with a box of no size left out"] += 1
        return None
    if reach > 1.0:
        counts["reaching outside the picture, clipped"] += 1
    if box.area > WHOLE_FRAME * space.photo_wh[0] * space.photo_wh[1]:
        if hazard is Hazard.PERSON:  # a habit of models that saw no one in particular
            counts["person as large as the whole picture left out"] += 1
            return None
        counts[f"{hazard.value} as large as the whole picture"] += 1
    return box


def _reach(numbers: Numbers, space: Space) -> float:
    """Measure how far out the farthest coordinate lies; 1 is the picture's edge."""
    far = space.notation.far_corner(space.seen_wh)
    if space.notation.is_yx:
        far = far[::-1]
    return max(
        max(number / far[index % 2], 1 - number / far[index % 2])
        for index, number in enumerate(numbers)
    )


def _merge_repeats(detections: Sequence[Detection], counts: Counter[str]) -> list[Detection]:
    """Keep one of several detections of the same object; contradicting ones become uncertain."""
    kept: list[Detection] = []
    for detection in detections:
        same = next(
            (
                index
                for index, other in enumerate(kept)
                if other.label is detection.label and other.box.iou(detection.box) > SAME_OBJECT_IOU
            ),
            None,
        )
        if same is None:
            kept.append(detection)
            continue
        counts["repeating another left out"] += 1
        said = {kept[same].sub_label, detection.sub_label} - {SubLabel.UNCERTAIN}
        if len(said) > 1:
            counts["contradicting its repeat, read as uncertain"] += 1
            kept[same] = replace(kept[same], sub_label=SubLabel.UNCERTAIN)
    return kept
