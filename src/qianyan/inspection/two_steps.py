"""Look twice: at the whole photo in few visual tokens, then at the parts that matter at full size.

The time of a look is nearly proportional to the visual tokens. Most photos have nothing in them, or
nothing that a small picture does not show; for the others the parts are chosen by `parts.py` and
asked about in one batch, with the same question. Both looks together take no more visual tokens
than one at the usual size.

What a part's answer does, in photo pixels:

* it replaces label, box and head state of the finding that it was chosen for. The severity of fire
  and smoke is that of the first look: in a part everything is large;
* a finding that lies wholly in its part and is not in the answer is vetoed, and kept as such;
* what is new is added, unless it repeats what is known or is a piece of it, cut off by the edge.

An answer about a part that cannot be read changes nothing and is noted.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from qianyan.inputs.images import Photo
from qianyan.inspection.cascade import most_urgent, severity
from qianyan.inspection.detect import Glance, Unread
from qianyan.inspection.parts import PART_TOKENS, SECOND_LOOK_TOKENS, Part, Showing, choose_parts
from qianyan.inspection.prompts import MAX_OBJECTS
from qianyan.inspection.records import Box, Detection, Hazard, Look, SubLabel, Veto
from qianyan.inspection.words import Lang

FIRST_LOOK_TOKENS = 512
"""Visual tokens of the first look: a photo of 4:3 as 728 x 532 pixels.

About half of a usual look: of what is found in less, too much is lost for good (decision 0017).
"""
SAME_IOU = 0.3  # a box drawn in a small picture is coarse
REPEAT_IOU = 0.5
PIECE_SHARE = 0.6
EDGE_PX = 4  # a box that ends so near an inner edge of its part may go on behind it

REASONS: dict[Lang, str] = {
    "zh": "放大后再看，此处没有发现",
    "en": "on a second look, enlarged, nothing there",
}


class Seer(Protocol):
    """Lists the hazards in pictures, and knows in which size it sees them."""

    def list_all(self, glances: Sequence[Glance]) -> list[Look | Unread]:
        """Ask about several pictures at once; detections are in the pixels of each."""

    def seen_wh(self, photo_wh: tuple[int, int], visual_tokens: int | None) -> tuple[int, int]:
        """Tell in which size a picture is seen within so many tokens; None as usual."""

    def count_tokens(self, seen_wh: tuple[int, int]) -> int:
        """Count the visual tokens of a picture that is seen in this size."""


@dataclass(frozen=True, kw_only=True)
class TwoSteps:
    """A way to look at photos with a model that lists; see the module."""

    seer: Seer
    lang: Lang
    max_objects: int = MAX_OBJECTS
    visual_tokens: int = FIRST_LOOK_TOKENS

    def look(self, photo: Photo) -> Look:
        """Look once, and where it matters once more.

        Raises ReplyError when the answer about the whole photo cannot be read, and what
        `Vision.ask_many` raises when there is no answer.
        """
        (first,) = self.seer.list_all([Glance(photo.rgb, self.visual_tokens)])
        if isinstance(first, Unread):
            raise first.error
        parts, num_left_out = choose_parts(first.detections, self._showing(photo))
        glances = [_cut(photo, part) for part in parts]
        answers = self.seer.list_all(glances) if glances else []
        joined = _Joined(first.detections, (photo.width, photo.height), self.lang)
        for part, answer in zip(parts, answers, strict=True):
            if isinstance(answer, Look):
                joined.take(part, answer.detections)
        kept, beyond = most_urgent(joined.findings, self.max_objects)
        if not beyond:
            kept = tuple(joined.findings)
        return Look(
            kept,
            tuple(joined.vetoed),
            usage=sum((answer.usage for answer in answers), first.usage),
            raw=_raw(first, parts, answers),
            notes=(*first.notes, *_notes(parts, answers, num_left_out), *beyond),
        )

    def _showing(self, photo: Photo) -> Showing:
        """Say how the photo was shown, and what is left of the tokens of one usual look."""
        photo_wh = (photo.width, photo.height)
        shown_wh = self.seer.seen_wh(photo_wh, self.visual_tokens)
        usual = self.seer.count_tokens(self.seer.seen_wh(photo_wh, None))
        left = usual - self.seer.count_tokens(shown_wh)
        return Showing(
            photo_wh,
            shown_wh,
            self.seer.seen_wh,
            self.seer.count_tokens,
            min(left, SECOND_LOOK_TOKENS),
        )


class _Joined:
    """What is known of a photo as the answers about its parts come in."""

    def __init__(self, first: Sequence[Detection], photo_wh: tuple[int, int], lang: Lang) -> None:
        self.vetoed: list[Veto] = []
        self._first: list[Detection | None] = list(first)
        self._added: list[Detection] = []
        self._photo_wh = photo_wh
        self._lang = lang

    @property
    def findings(self) -> list[Detection]:
        """Those of the first look that stand, corrected, and then the new ones."""
        return [one for one in self._first if one is not None] + self._added

    def take(self, part: Part, seen: Sequence[Detection]) -> None:
        """Take one part's answer, with boxes in its own pixels."""
        rest = [self._place(found, part.region) for found in seen]
        for target in part.targets:
            was = self._first[target]
            assert was is not None  # noqa: S101  (a finding is the target of one part)
            now = _find(was, rest)
            if now is not None:
                rest.remove(now)
                self._first[target] = self._correct(was, now, part.region)
            elif part.region.overlap(was.box) == was.box.area:
                self._first[target] = None
                self.vetoed.append(Veto(was, REASONS[self._lang]))
        for found in sorted(rest, key=lambda one: _is_cut(one.box, part.region, self._photo_wh)):
            self._add(found, is_cut=_is_cut(found.box, part.region, self._photo_wh))

    def _place(self, found: Detection, region: Box) -> Detection:
        """Bring a finding from a part's pixels to the photo's."""
        x, y, box = region.x1, region.y1, found.box
        return replace(found, box=Box(box.x1 + x, box.y1 + y, box.x2 + x, box.y2 + y))

    def _correct(self, was: Detection, now: Detection, region: Box) -> Detection:
        """Believe the closer look, but for the box where the part cut it off."""
        box = was.box if _is_cut(now.box, region, self._photo_wh) else now.box
        known = now if now.score is not None else was
        return replace(
            now,
            box=box,
            sub_label=self._grade(replace(now, box=box), was),
            score=known.score,
            score_kind=known.score_kind,
        )

    def _grade(self, now: Detection, was: Detection | None = None) -> SubLabel:
        """Say how severe a fire is in the whole photo; the closer look only says that it is one."""
        if now.label is Hazard.PERSON:
            return now.sub_label
        if was is not None and was.label is now.label and was.sub_label is not SubLabel.UNCERTAIN:
            return was.sub_label
        if now.sub_label is SubLabel.UNCERTAIN:
            return SubLabel.UNCERTAIN
        box = now.box
        return severity((box.x1, box.y1, box.x2, box.y2), self._photo_wh)

    def _add(self, found: Detection, *, is_cut: bool) -> None:
        """Add what is new."""
        is_piece = is_cut or found.label is not Hazard.PERSON  # flames have no edges
        for known in self.findings:
            if known.label is found.label and (
                known.box.iou(found.box) > REPEAT_IOU
                or (is_piece and _piece_share(known.box, found.box) > PIECE_SHARE)
            ):
                return
        self._added.append(replace(found, sub_label=self._grade(found)))


def _find(was: Detection, seen: Sequence[Detection]) -> Detection | None:
    """Find what a closer look says at the place of a finding: the same kind, else another."""
    there = [
        one
        for one in seen
        if one.box.iou(was.box) > SAME_IOU or _piece_share(one.box, was.box) > PIECE_SHARE
    ]
    return max(
        there,
        key=lambda one: (one.label is was.label, one.box.iou(was.box)),
        default=None,
    )


def _piece_share(one: Box, other: Box) -> float:
    """Say how much of the smaller of two boxes lies in the other."""
    return one.overlap(other) / min(one.area, other.area)


def _is_cut(box: Box, region: Box, photo_wh: tuple[int, int]) -> bool:
    """Tell whether a box ends where its part does although the photo goes on."""
    return (
        (region.x1 > 0 and box.x1 - region.x1 < EDGE_PX)
        or (region.y1 > 0 and box.y1 - region.y1 < EDGE_PX)
        or (region.x2 < photo_wh[0] and region.x2 - box.x2 < EDGE_PX)
        or (region.y2 < photo_wh[1] and region.y2 - box.y2 < EDGE_PX)
    )


def _cut(photo: Photo, part: Part) -> Glance:
    region = part.region
    return Glance(photo.rgb.crop((region.x1, region.y1, region.x2, region.y2)), PART_TOKENS)


def _notes(
    parts: Sequence[Part], answers: Sequence[Look | Unread], num_left_out: int
) -> tuple[str, ...]:
    """Say that there was a second look, and what it did not see."""
    unread = sum(isinstance(answer, Unread) for answer in answers)
    notes = [f"looked twice: {len(parts)} parts at full size"] if parts else []
    if unread:
        notes.append(f"the second look gave no readable answer for {unread} of them")
    if num_left_out:
        notes.append(f"{num_left_out} more parts left out: the visual tokens were spent")
    return tuple(notes)


def _raw(first: Look, parts: Sequence[Part], answers: Sequence[Look | Unread]) -> str:
    """Keep all answers, word for word: one JSON object."""
    rows: list[dict[str, Any]] = [
        {"part": part.name, "region": part.region.as_list(), "raw": answer.raw}
        for part, answer in zip(parts, answers, strict=True)
    ]
    return json.dumps({"first": first.raw, "parts": rows}, ensure_ascii=False)
