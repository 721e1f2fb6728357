"""Two evaluations of the same pictures: is one better, or could chance have made the difference?

Pictures as a whole are compared by McNemar's exact test (Psychometrika 1947): only pictures that
one got right and the other wrong say anything. F1 is compared by drawing the pictures again, the
same ones for both. Many comparisons make small p-values by chance, so what is said in words goes by
Holm's adjustment over all of them (Scandinavian Journal of Statistics 1979).
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from qianyan.errors import ConfigError, quote
from qianyan.inspection.evaluation.bootstrap import draw_pictures, drawn_f1, interval_of
from qianyan.inspection.evaluation.figures import ALL_KINDS
from qianyan.inspection.evaluation.outcomes import IMAGE_KINDS, PictureOutcome
from qianyan.inspection.evaluation.rates import Estimate, Rate, rounded
from qianyan.labels.matching import BoxCounts
from qianyan.labels.photos import Kind

SCHEMA = "qianyan.eval/1"
LEVEL = 0.05
Measure = Literal["recall", "false_alarms", "f1"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure of both evaluations on the pictures that both looked at.

    `better` and `worse` count pictures that are right here alone and there alone; for F1, which is
    no figure of single pictures, `difference` has an interval instead.
    """

    kind: Kind
    measure: Measure
    here: float
    there: float
    p: float
    p_adjusted: float = 1.0
    better: int | None = None
    worse: int | None = None
    difference: Estimate

    @property
    def is_more_than_chance(self) -> bool:
        """Whether chance alone would hardly make such a difference anywhere among all compared."""
        return self.p_adjusted < LEVEL

    @property
    def is_better(self) -> bool:
        """Whether this evaluation is the better of the two."""
        apart = self.here - self.there
        return apart < 0 if self.measure == "false_alarms" else apart > 0

    def as_record(self) -> dict[str, Any]:
        """Write the comparison as JSON values."""
        return {
            "kind": self.kind,
            "measure": self.measure,
            "here": rounded(self.here),
            "there": rounded(self.there),
            "difference": self.difference.as_record(),
            "better": self.better,
            "worse": self.worse,
            "p": rounded(self.p),
            "p_adjusted": rounded(self.p_adjusted),
            "more_than_chance": self.is_more_than_chance,
        }


@dataclass(frozen=True)
class Comparison:
    """All figures that both evaluations have, over the pictures that both looked at."""

    model: str
    """The model of the other evaluation."""
    against: str
    pictures: int
    only_here: int
    only_there: int
    differences: tuple[Difference, ...]

    def as_record(self) -> dict[str, Any]:
        """Write the comparison as JSON values."""
        return {
            "against": self.against,
            "model": self.model,
            "pictures": self.pictures,
            "only_here": self.only_here,
            "only_there": self.only_there,
            "differences": [one.as_record() for one in self.differences],
        }


@dataclass(frozen=True)
class Earlier:
    """What an eval.json says of its pictures, and the model that looked."""

    file: str
    model: str
    outcomes: tuple[PictureOutcome, ...]


def read_evaluation(path: Path) -> Earlier:
    """Load an eval.json; ConfigError with a sentence when it is not one."""
    try:
        whole = json.loads(path.read_text("utf-8"))
        if whole["schema"] != SCHEMA:
            raise ConfigError(
                f"{quote(path)} has schema {quote(whole['schema'])}; expected {SCHEMA}."
            )
        return Earlier(
            str(path),
            str(whole["run"]["model"]),
            tuple(PictureOutcome.from_record(record) for record in whole["pictures"]),
        )
    except OSError as error:
        raise ConfigError(
            f"{quote(path)} cannot be opened; expected the eval.json of another evaluation."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{quote(path)} is not an evaluation; expected JSON in the form {SCHEMA}."
        ) from error


def compare(outcomes: Sequence[PictureOutcome], earlier: Earlier) -> Comparison:
    """Compare an evaluation with an earlier one of the same pictures and labels.

    Raises ConfigError where no picture is in both, or their labels are not the same.
    """
    here = {(one.file, one.sha256): one for one in outcomes if one.error is None}
    there = {(one.file, one.sha256): one for one in earlier.outcomes if one.error is None}
    both = [(here[key], there[key]) for key in here if key in there]
    if not both:
        raise ConfigError(
            "The two evaluations have no picture in common; expected the same pictures."
        )
    for one, other in both:
        _check_labels(one, other)
    differences = [*_by_picture(both), *_by_box(both)]
    return Comparison(
        earlier.model, earlier.file, len(both), len(here) - len(both), len(there) - len(both),
        tuple(_adjust(differences)),
    )  # fmt: skip


Both = Sequence[tuple[PictureOutcome, PictureOutcome]]


def _check_labels(one: PictureOutcome, other: PictureOutcome) -> None:
    shown = [{kind: image.present for kind, image in each.images.items()} for each in (one, other)]
    boxes = [
        {kind: counts.right + counts.missed for kind, counts in each.boxes.items()}
        for each in (one, other)
    ]
    if shown[0] != shown[1] or boxes[0] != boxes[1]:
        raise ConfigError(
            f"{quote(one.file)} was labelled otherwise in the other evaluation; expected both to "
            "be scored against the same labels. Score the other results again."
        )


def _by_picture(both: Both) -> Iterator[Difference]:
    measures: tuple[tuple[Measure, bool], ...] = (("recall", True), ("false_alarms", False))
    for kind in IMAGE_KINDS:
        for measure, is_present in measures:
            pairs = [
                (one.images[kind], other.images[kind])
                for one, other in both
                if kind in one.images and one.images[kind].present is is_present
            ]
            if not pairs:
                continue
            better = sum(one.is_right and not other.is_right for one, other in pairs)
            worse = sum(other.is_right and not one.is_right for one, other in pairs)
            here = Rate(sum(one.reported for one, _ in pairs), len(pairs)).value or 0.0
            there = Rate(sum(other.reported for _, other in pairs), len(pairs)).value or 0.0
            yield Difference(
                kind=kind,
                measure=measure,
                here=here,
                there=there,
                p=mcnemar(better, worse),
                better=better,
                worse=worse,
                difference=Estimate(here - there),
            )


def _by_box(both: Both) -> Iterator[Difference]:
    weights = draw_pictures(len(both))
    for kind in ALL_KINDS:
        counts = [
            [each.boxes.get(kind, BoxCounts()) for each in side] for side in zip(*both, strict=True)
        ]
        here, there = (sum(side, BoxCounts()).f1 for side in counts)
        if here is None or there is None:
            continue
        drawn = drawn_f1(counts[0], weights) - drawn_f1(counts[1], weights)
        drawn = drawn[drawn == drawn]
        least = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        yield Difference(
            kind=kind,
            measure="f1",
            here=here,
            there=there,
            p=min(1.0, 2 * (least + 1) / (len(drawn) + 1)),
            difference=Estimate(here - there, interval_of(drawn)),
        )


def mcnemar(better: int, worse: int) -> float:
    """Give the two-sided exact probability of pictures falling apart at least as unevenly."""
    number = better + worse
    tail = sum(math.comb(number, count) for count in range(min(better, worse) + 1))
    return min(1.0, float(2 * tail / 2**number))


def _adjust(differences: Sequence[Difference]) -> Iterator[Difference]:
    """Adjust the p-values for their number (Holm), keeping the order."""
    order = sorted(range(len(differences)), key=lambda index: differences[index].p)
    adjusted: dict[int, float] = {}
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * differences[index].p))
        adjusted[index] = highest
    for index, one in enumerate(differences):
        yield replace(one, p_adjusted=adjusted[index])
