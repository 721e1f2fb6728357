"""The values of an inspection: frozen, complete when made, checked at the edge only.

Boxes are always pixels of the original photo, whatever notation the model spoke.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

ScoreKind = Literal["logprob", "agreement", "detector"]


class Hazard(StrEnum):
    """What is looked for; the values are the stable `label_id` of results files."""

    FIRE = "fire"
    SMOKE = "smoke"
    PERSON = "person"


class SubLabel(StrEnum):
    """What is said about a hazard; severity for fire and smoke, head protection for persons."""

    MINOR = "minor"
    MODERATE = "moderate"
    SEVERE = "severe"
    HELMET = "helmet"
    NO_HELMET = "no_helmet"
    UNCERTAIN = "uncertain"


SEVERITIES = (SubLabel.MINOR, SubLabel.MODERATE, SubLabel.SEVERE, SubLabel.UNCERTAIN)
HEAD_STATES = (SubLabel.HELMET, SubLabel.NO_HELMET, SubLabel.UNCERTAIN)
SUB_LABELS: dict[Hazard, tuple[SubLabel, ...]] = {
    Hazard.FIRE: SEVERITIES,
    Hazard.SMOKE: SEVERITIES,
    Hazard.PERSON: HEAD_STATES,
}


@dataclass(frozen=True)
class Box:
    """A rectangle in original-photo pixels; x1 < x2, y1 < y2, inside the photo."""

    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.x2 - self.x1

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.y2 - self.y1

    @property
    def area(self) -> int:
        """Area in square pixels."""
        return self.width * self.height

    def iou(self, other: "Box") -> float:
        """Intersection over union with another box of the same photo, 0..1."""
        return self.overlap(other) / (self.area + other.area - self.overlap(other))

    def overlap(self, other: "Box") -> int:
        """Shared area in square pixels."""
        width = min(self.x2, other.x2) - max(self.x1, other.x1)
        height = min(self.y2, other.y2) - max(self.y1, other.y1)
        return max(width, 0) * max(height, 0)

    def as_list(self) -> list[int]:
        """[x1, y1, x2, y2], as results files write it."""
        return [self.x1, self.y1, self.x2, self.y2]


@dataclass(frozen=True)
class Detection:
    """One thing found in a photo; `score` is None where the model gives none."""

    label: Hazard
    sub_label: SubLabel
    box: Box
    score: float | None = None
    score_kind: ScoreKind | None = None


@dataclass(frozen=True)
class Veto:
    """A proposal that a second look rejected, kept with the reason."""

    detection: Detection
    reason: str


@dataclass(frozen=True)
class Usage:
    """Tokens spent on one photo; `forwarded_tokens` is None where an endpoint does not say.

    `visual_tokens` are those of the prompts' tokens that show pictures, by the sizes we show.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    forwarded_tokens: int | None = None
    visual_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        known = self.forwarded_tokens is not None and other.forwarded_tokens is not None
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            forwarded_tokens=(self.forwarded_tokens or 0) + (other.forwarded_tokens or 0)
            if known
            else None,
            visual_tokens=self.visual_tokens + other.visual_tokens,
        )


@dataclass(frozen=True)
class Failure:
    """Why a photo has no verdict: a stable code and one sentence."""

    code: str
    message: str


@dataclass(frozen=True)
class Alarm:
    """What is said aloud of one photo; `file` is None where `error` says why it is not spoken."""

    text: str
    file: str | None = None
    error: Failure | None = None

    def __post_init__(self) -> None:
        if (self.file is None) == (self.error is None):
            raise ValueError("an Alarm has either a file or an error, and exactly one")


@dataclass(frozen=True)
class Look:
    """What one way of looking said about one photo (a listing model, or detector and judge)."""

    detections: tuple[Detection, ...]
    vetoed: tuple[Veto, ...] = ()
    usage: Usage = field(default_factory=lambda: Usage(forwarded_tokens=0))
    raw: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """The verdict on one photo; `detections` is None where `error` says why there is none."""

    source: str
    detections: tuple[Detection, ...] | None
    checked: tuple[Hazard, ...]
    error: Failure | None = None
    vetoed: tuple[Veto, ...] = ()
    file: str | None = None
    marked_file: str | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    at_s: float | None = None
    total_s: float = 0.0
    usage: Usage = field(default_factory=Usage)
    raw: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.detections is None) == (self.error is None):
            raise ValueError("an Inspection has either detections or an error, and exactly one")
