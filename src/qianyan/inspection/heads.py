"""Which head belongs to which person: geometry over a detector's proposals, nothing else.

Persons come first. A hard hat in a hand or on the ground lies where no head of that person can
be, so it is not taken for one that is worn; and of two people side by side each keeps their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from qianyan.inputs.crops import upper_body
from qianyan.models.detector import Kind, Proposal

Corners = tuple[float, float, float, float]

# A head's centre lies in the upper part of its person's box. The zone is wide because a bust
# fills half of its box with the head, and reaches above because boxes often begin below the hat.
HEAD_ZONE, ABOVE_ZONE, BESIDE_ZONE = 0.45, 0.12, 0.1
SAME_HEAD_IOU = 0.4
ECHO_SHARE = 0.6
NO_LIMITS: Mapping[str, float] = MappingProxyType({})
# A person of whom only the head was proposed is framed as head and shoulders, in head sizes.
SHOULDERS_WIDE, SHOULDERS_HIGH = 2.2, 2.6


@dataclass(frozen=True)
class Head:
    """A proposed head with the detector's scores for hard hat and for none; 0 if not proposed."""

    box: Corners
    helmet: float
    bare: float

    @property
    def score(self) -> float:
        """How sure the detector is that this is a head."""
        return max(self.helmet, self.bare)

    def stands_alone(self, limits: Mapping[str, float]) -> bool:
        """Say whether the head is certain enough to be a person without a body."""
        return self.helmet >= limits.get("helmet", 0.0) or self.bare >= limits.get("head", 0.0)


@dataclass(frozen=True)
class Figure:
    """A person as proposed; `head` is None where none was proposed for this body.

    `kind` is what was proposed with this score: the body, or a head that stands for its person.
    """

    box: Corners
    score: float
    head: Head | None = None
    kind: Kind = "person"

    @property
    def head_region(self) -> Corners:
        """Where to look at the head: its box, or the top of the body."""
        return self.head.box if self.head is not None else upper_body(self.box)


def find_figures(
    proposals: Sequence[Proposal],
    photo_wh: tuple[int, int],
    *,
    alone: Mapping[str, float] = NO_LIMITS,
) -> list[Figure]:
    """Make persons of person, helmet and head proposals, most certain first.

    Each head goes to at most one person. A head that belongs to nobody is a person of its own,
    unless it is a hard hat lying inside somebody's box below the shoulders, or scores below
    `alone` for its kind: where a body says that there is a head, a weaker one is believed.
    """
    bodies = [proposal for proposal in proposals if proposal.kind == "person"]
    heads = _merge_heads(proposals)
    pairs = sorted(
        (distance, body, head)
        for body, person in enumerate(bodies)
        for head, seen in enumerate(heads)
        if (distance := _head_distance(person.box, seen.box)) is not None
    )
    owner: dict[int, int] = {}
    for _, body, head in pairs:
        if body not in owner and head not in owner.values():
            owner[body] = head
    figures = [
        Figure(person.box, person.score, heads[owner[body]] if body in owner else None)
        for body, person in enumerate(bodies)
    ]
    for head, seen in enumerate(heads):
        is_owned = head in owner.values() or _is_carried(seen, bodies)
        if not is_owned and seen.stands_alone(alone):
            kind: Kind = "helmet" if seen.helmet >= seen.bare else "head"
            figures.append(Figure(_shoulders(seen.box, photo_wh), seen.score, seen, kind))
    figures.sort(key=lambda figure: -figure.score)
    return [figure for index, figure in enumerate(figures) if not _is_echo(figure, figures[:index])]


def _merge_heads(proposals: Sequence[Proposal]) -> list[Head]:
    """Take a helmet and a head proposal in the same place for one head with two scores."""
    heads: list[Head] = []
    ranked = sorted(proposals, key=lambda proposal: -proposal.score)
    for proposal in ranked:
        if proposal.kind not in ("helmet", "head"):
            continue
        helmet = proposal.score if proposal.kind == "helmet" else 0.0
        bare = proposal.score if proposal.kind == "head" else 0.0
        same = next((h for h in heads if iou(h.box, proposal.box) >= SAME_HEAD_IOU), None)
        if same is None:
            heads.append(Head(proposal.box, helmet, bare))
        else:
            merged = Head(same.box, max(same.helmet, helmet), max(same.bare, bare))
            heads[heads.index(same)] = merged
    return heads


def _head_distance(body: Corners, head: Corners) -> float | None:
    """Say how far a head is from the middle of a body's upper edge; None where no head can be."""
    width, height = body[2] - body[0], body[3] - body[1]
    x, y = (head[0] + head[2]) / 2, (head[1] + head[3]) / 2
    across, down = (x - body[0]) / width, (y - body[1]) / height
    if not -BESIDE_ZONE <= across <= 1 + BESIDE_ZONE or not -ABOVE_ZONE <= down <= HEAD_ZONE:
        return None
    if head[2] - head[0] > 1.3 * width:  # a near head before a far body
        return None
    return abs(across - 0.5) + abs((head[1] - body[1]) / height)


def _is_carried(head: Head, bodies: Sequence[Proposal]) -> bool:
    """Tell a hard hat in a hand: below the shoulders of a body and small beside it."""
    x, y = (head.box[0] + head.box[2]) / 2, (head.box[1] + head.box[3]) / 2
    return head.helmet > head.bare and any(
        body.box[0] <= x <= body.box[2]
        and body.box[1] + HEAD_ZONE * (body.box[3] - body.box[1]) < y <= body.box[3]
        for body in bodies
    )


def _is_echo(figure: Figure, better: Sequence[Figure]) -> bool:
    """Tell a body without a head of its own that lies on a more certain figure."""
    return figure.head is None and any(
        overlap(figure.box, other.box) > ECHO_SHARE * min(_area(figure.box), _area(other.box))
        for other in better
    )


def _shoulders(head: Corners, photo_wh: tuple[int, int]) -> Corners:
    """Frame head and shoulders around a head, inside the photo."""
    width, height = head[2] - head[0], head[3] - head[1]
    middle = (head[0] + head[2]) / 2
    return (
        max(middle - SHOULDERS_WIDE * width / 2, 0.0),
        head[1],
        min(middle + SHOULDERS_WIDE * width / 2, float(photo_wh[0])),
        min(head[1] + SHOULDERS_HIGH * height, float(photo_wh[1])),
    )


def overlap(first: Corners, second: Corners) -> float:
    """Shared area of two boxes in the same pixels."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)


def iou(first: Corners, second: Corners) -> float:
    """Intersection over union of two boxes in the same pixels, 0..1."""
    shared = overlap(first, second)
    return shared / (_area(first) + _area(second) - shared)


def _area(box: Corners) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
