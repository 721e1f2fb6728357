"""How well the judge answers closed questions about crops, and what its vetoes would cost."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from qianyan.train.bundled.crops import Bytes, Crop, CropBook
from qianyan.train.bundled.sentences import load_questions

Probabilities = npt.NDArray[np.floating]
Ask = Callable[[Sequence[Bytes], str], Probabilities]

NOT_THERE = {"hazard": "look_alike", "head": "not_a_person"}
VETO_AT = 0.9
_HAZARD_CROPS = {"fire": 80, "smoke": 60, "look_alike": 140}
_HEAD_CROPS = {"helmet": 80, "no_helmet": 60, "not_a_person": 100}


def measuring_crops(book: CropBook) -> list[Crop]:
    """Draw the crops that a run is measured on, as inexact as a detector's boxes."""
    hazards = [book.hazard(name) for name, count in _HAZARD_CROPS.items() for _ in range(count)]
    return hazards + [book.head(name) for name, count in _HEAD_CROPS.items() for _ in range(count)]


def measure_judge(crops: Sequence[Crop], ask: Ask) -> dict[str, float]:
    """Give shares of right answers, and of true and false proposals that a veto would remove.

    `ask` gives the probabilities of a question's options, in their order, for many pictures.
    """
    figures: dict[str, float] = {}
    for asked, absent in NOT_THERE.items():
        chosen = [crop for crop in crops if crop.asked == asked]
        meanings = list(load_questions()[asked].options.values())
        probabilities = ask([crop.pixels for crop in chosen], asked)
        told = [meanings[column] for column in probabilities.argmax(axis=1)]
        for meaning in dict.fromkeys(crop.meaning for crop in chosen):
            rows = [row for row, crop in enumerate(chosen) if crop.meaning == meaning]
            right = np.mean([told[row] == meaning for row in rows])
            figures[f"{asked}.{meaning}"] = round(float(right), 3)
        doubt = probabilities[:, meanings.index(absent)]
        is_true = np.array([crop.meaning != absent for crop in chosen])
        figures[f"{asked}.true_vetoed"] = round(float((doubt[is_true] >= VETO_AT).mean()), 3)
        figures[f"{asked}.false_vetoed"] = round(float((doubt[~is_true] >= VETO_AT).mean()), 3)
        figures[f"{asked}.auc"] = round(_area_under_curve(doubt, ~is_true), 3)
    return figures


def _area_under_curve(scores: Probabilities, positive: npt.NDArray[np.bool_]) -> float:
    """Give the chance that a positive scores above a negative, ties counting half."""
    above = scores[positive][:, None] > scores[~positive][None]
    equal = scores[positive][:, None] == scores[~positive][None]
    return float(above.mean() + 0.5 * equal.mean())
