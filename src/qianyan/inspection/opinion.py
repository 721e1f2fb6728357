"""A closed question's answer as probabilities: one letter asked for, all letters weighed.

p is the softmax over the option letters of the first token's log-probabilities; tokens that are
no option ("The", a space) are left out of the sum.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from qianyan.inspection.prompts import ClosedQuestion
from qianyan.inspection.vision import Answer

LETTER = re.compile(r"\W*([A-Z])(?![A-Za-z])")  # "(B)", "**A** ...", never the C of "Certainly"
TOP_LOGPROBS = 10  # enough to hold all five letters of a model that has understood the question


@dataclass(frozen=True)
class Opinion:
    """What a judge makes of one crop, as shares of the options' meanings.

    `is_weighed` says that the shares come from log-probabilities; otherwise the judge named one
    letter and gave no probability. `shares` is empty where the answer was none of the letters.
    """

    shares: Mapping[str, float]
    is_weighed: bool
    reply: str

    @property
    def best(self) -> str | None:
        """The likeliest meaning, or None where the answer could not be read."""
        return max(self.shares, key=lambda meaning: self.shares[meaning], default=None)

    def share(self, *meanings: str) -> float:
        """Sum the shares of these meanings."""
        return sum(self.shares.get(meaning, 0.0) for meaning in meanings)


def read_opinion(answer: Answer, question: ClosedQuestion) -> Opinion:
    """Read the answer to a closed question."""
    weights = dict.fromkeys(question.options, 0.0)
    for text, logprob in (answer.tokens[0].top if answer.tokens else {}).items():
        letter = text.strip()
        if letter in weights:
            weights[letter] += math.exp(logprob)
    total = sum(weights.values())
    if total > 0:
        shares = {question.options[letter]: p / total for letter, p in weights.items()}
        return Opinion(shares, is_weighed=True, reply=answer.text)
    named = LETTER.match(answer.text)
    meaning = question.options.get(named[1]) if named else None
    shares = {meaning: 1.0} if meaning is not None else {}
    return Opinion(shares, is_weighed=False, reply=answer.text)
