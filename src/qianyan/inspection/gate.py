"""Which findings fail a run: the words of --fail-on."""

from collections.abc import Iterable

from qianyan.errors import ConfigError, quote
from qianyan.inspection.records import Detection, Inspection, SubLabel

LEVELS = (SubLabel.MINOR, SubLabel.MODERATE, SubLabel.SEVERE)
# A bare head weighs as much as a moderate fire.
NO_HELMET_LEVEL = SubLabel.MODERATE
WORDS = (*(level.value for level in LEVELS), SubLabel.NO_HELMET.value, "any")


def parse_fail_on(text: str, option: str = "--fail-on") -> frozenset[str]:
    """Read the words of --fail-on, or of an option like it, separated by commas."""
    words = frozenset(word.strip().replace("-", "_") for word in text.split(",") if word.strip())
    unknown = sorted(words - set(WORDS))
    if unknown or not words:
        raise ConfigError(f"{option} is {quote(text)}; expected {', '.join(WORDS)}.")
    return words


def fails(inspections: Iterable[Inspection], words: frozenset[str]) -> bool:
    """Say whether any finding is at or above what --fail-on names.

    A level takes fire and smoke at or above it, and bare heads up to moderate; `no_helmet` takes
    bare heads alone; `any` takes whatever a person has to look at, the uncertain included.
    """
    return any(
        is_at(found, word)
        for inspection in inspections
        for found in inspection.detections or ()
        for word in words
    )


def is_at(found: Detection, word: str) -> bool:
    """Say whether a finding is what one word of --fail-on takes; see `fails`."""
    if word == "any":
        return found.sub_label is not SubLabel.HELMET
    if word == SubLabel.NO_HELMET.value:
        return found.sub_label is SubLabel.NO_HELMET
    is_bare = found.sub_label is SubLabel.NO_HELMET
    level = NO_HELMET_LEVEL if is_bare else found.sub_label
    return level in LEVELS and LEVELS.index(level) >= LEVELS.index(SubLabel(word))
