"""What looking at a picture costs: seconds in hand, and tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from qianyan.inspection.evaluation.outcomes import PictureOutcome
from qianyan.inspection.evaluation.rates import rounded
from qianyan.inspection.records import Usage


@dataclass(frozen=True)
class Cost:
    """What one picture took: seconds, and tokens; None where an endpoint does not say."""

    mean_s: float | None = None
    median_s: float | None = None
    p95_s: float | None = None
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    forwarded_tokens: float | None = None
    visual_tokens: float | None = None

    def as_record(self) -> dict[str, float | None]:
        """Write every figure."""
        return {name: rounded(getattr(self, name)) for name in self.__dataclass_fields__}


def cost_of(looked: Sequence[PictureOutcome]) -> Cost:
    """Count what the pictures that have a verdict took."""
    if not looked:
        return Cost()
    seconds = [one.total_s for one in looked]
    whole = sum((one.usage for one in looked), Usage(forwarded_tokens=0))
    number = len(looked)
    forwarded = whole.forwarded_tokens
    return Cost(
        mean_s=fmean(seconds),
        median_s=median(seconds),
        p95_s=float(np.quantile(seconds, 0.95)),
        prompt_tokens=whole.prompt_tokens / number,
        completion_tokens=whole.completion_tokens / number,
        forwarded_tokens=None if forwarded is None else forwarded / number,
        visual_tokens=whole.visual_tokens / number,
    )
