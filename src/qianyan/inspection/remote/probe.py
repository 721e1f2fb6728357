"""Find out how an endpoint's model counts coordinates: show it what we know, see what it says.

Coloured rectangles at known places, in pictures of different shapes, are sent as they are; each way
of reading the numbers that come back (pixels of the picture sent, pixels after a hidden resizing,
thousandths, fractions, y before x) is scored by its mean IoU with the truth. The same questions
show whether log-probabilities and schemas are supported, and which sizes are accepted.
"""

import json
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from PIL import Image, ImageDraw

from qianyan.errors import ReplyError
from qianyan.inputs.grounding import HYPOTHESES, Notation, to_photo_box
from qianyan.inputs.images import smart_resize
from qianyan.inspection.answer_items import Item, read_listing
from qianyan.inspection.records import Box
from qianyan.inspection.remote.chat_endpoint import ChatEndpoint, Patience, RefusedError
from qianyan.inspection.remote.completions import to_body, to_data_url
from qianyan.inspection.remote.profile import MIN_IOU, EndpointProfile, guess_profile
from qianyan.inspection.remote.vision import RemoteVision
from qianyan.inspection.vision import Answer, Ask

BUDGETS = (1280, 768, 512, 256)
"""Picture sizes in tokens, the first of which that is accepted is measured."""
LARGER_SIZES = ((1680, 924), (2548, 1428))
HIDDEN_LIMITS = (16_384, 5_120, 2_560, 2_048, 1_280, 1_024, 768, 512, 256)
"""Tokens to which servers are known to shrink pictures."""
FACTORS = (28, 32)
CLEARLY_BETTER = 0.02
"""A reading that fits better by less than this is not preferred to a more usual one."""
MAX_TOKENS = 400
_REFUSED_SIZE_STATUS = frozenset({400, 413, 422})

_COLOURS = {"red": (230, 30, 30), "green": (20, 160, 60), "blue": (40, 80, 230)}
_COLOUR_WORDS = {"red": ("red", "红"), "green": ("green", "绿"), "blue": ("blue", "蓝")}
# Parts of width and height. No place is its own mirror image, thousandth or swap of axes.
_PLACES = {
    "red": (0.08, 0.12, 0.30, 0.27),
    "green": (0.55, 0.08, 0.66, 0.45),
    "blue": (0.62, 0.60, 0.93, 0.82),
}
_PROMPT = """\
Locate every coloured rectangle in the image: one red, one green, one blue. \
Report all bbox coordinates in JSON format, no explanation: \
[{"bbox_2d":[x1,y1,x2,y2],"label":"red"}]"""
_SCHEMA_PROMPT = "Which colour is the largest rectangle in the image?"
# No model answers this of its own accord: whoever does was held to the schema.
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"enum": ["qa-17", "qa-42"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Reading:
    """One way to read a model's numbers; `max_pixels` is a limit the server may shrink to."""

    notation: Notation
    factor: int
    max_pixels: int

    @property
    def kind(self) -> tuple[int | None, bool]:
        """What tells it from other readings once pictures are sent in sizes that are kept."""
        return self.notation.span, self.notation.is_yx

    def seen_wh(self, sent_wh: tuple[int, int]) -> tuple[int, int]:
        """Tell which picture's pixels the model would count."""
        if self.notation in {Notation.SENT_PIXELS, Notation.SENT_PIXELS_YX}:
            return sent_wh
        height, width = smart_resize(
            sent_wh[1],
            sent_wh[0],
            factor=self.factor,
            min_pixels=4 * self.factor**2,
            max_pixels=self.max_pixels,
        )
        return width, height


@dataclass(frozen=True)
class Trial:
    """One test picture and what the model said about it; no items when that was unreadable."""

    sent_wh: tuple[int, int]
    items: tuple[Item, ...]
    answer: Answer
    elapsed_s: float


@dataclass
class _Measured:
    """What the probe has learnt so far."""

    trials: list[Trial] = field(default_factory=list)
    refused_pixels: int | None = None
    refusal: RefusedError | None = None


def probe(
    base_url: str,
    model: str | None = None,
    api_key: str | None = None,
    *,
    patience: Patience | None = None,
) -> EndpointProfile:
    """Measure an endpoint's model; without `model` its first one. Saves nothing.

    The profile's `can_place_boxes` is False when no reading fits: then boxes must not be drawn.

    Raises:
        EndpointError: the endpoint cannot be reached, or takes no picture at all.
    """
    with_name = model or ChatEndpoint(base_url, api_key, patience=patience).first_model()
    guess = guess_profile(base_url.strip().rstrip("/"), with_name)
    vision = RemoteVision(base_url, with_name, api_key, profile=guess, patience=patience)
    measured = _measure(vision)
    best, iou, next_iou = _best_reading(measured.trials, guess.factor)
    largest = max(trial.sent_wh[0] * trial.sent_wh[1] for trial in measured.trials)
    if iou >= MIN_IOU:
        largest = _try_larger(vision, best, measured, largest)
    factor = best.factor
    usual = measured.trials[0]
    limit = min(1280 * factor**2, best.max_pixels, _accepted_limit(measured, factor))
    return replace(
        vision.profile,
        notation=best.notation,
        factor=factor,
        max_pixels=limit,
        min_pixels=min(256 * factor**2, limit),
        has_schema=_has_schema(vision),
        has_logprobs=any(trial.answer.tokens is not None for trial in measured.trials),
        has_stream=_has_stream(vision),
        source="probed",
        iou=round(iou, 3),
        next_iou=round(next_iou, 3),
        largest_fitting_pixels=largest if iou >= MIN_IOU else None,
        refused_pixels=measured.refused_pixels,
        latency_s=round(statistics.median(trial.elapsed_s for trial in measured.trials), 2),
        tokens_per_picture=usual.answer.usage.prompt_tokens or None,
        num_asked=len(measured.trials),
        num_unreadable=sum(not trial.items for trial in measured.trials),
        probed_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def draw_test_picture(width: int, height: int) -> Image.Image:
    """Draw the three rectangles on grey."""
    image = Image.new("RGB", (width, height), (128, 128, 128))
    pen = ImageDraw.Draw(image)
    for colour, box in true_boxes(width, height).items():
        pen.rectangle((box.x1, box.y1, box.x2 - 1, box.y2 - 1), fill=_COLOURS[colour])
    return image


def true_boxes(width: int, height: int) -> dict[str, Box]:
    """Tell where the rectangles of a test picture are."""
    return {
        colour: Box(round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height))
        for colour, (x1, y1, x2, y2) in _PLACES.items()
    }


def trial_sizes(budget: int) -> list[tuple[int, int]]:
    """Give (width, height) of the test pictures: lying, standing, and an odd one that is larger.

    The first two are multiples of 28 within `budget` tokens, which servers leave as they are; the
    third shows what a server does to others. For 1280 tokens: 1316x728, 728x1316, 1500x900.
    """
    width = int((budget * 1.81) ** 0.5 - 1e-9) * 28
    height = budget * 784 // width // 28 * 28
    return [(width, height), (height, width), (round(width * 1.14), round(height * 1.236))]


def _measure(vision: RemoteVision) -> _Measured:
    """Ask about the test pictures, in the largest of the sizes that the endpoint takes."""
    measured = _Measured()
    for budget in BUDGETS:
        for width, height in trial_sizes(budget):
            trial = _try(vision, width, height, measured)
            if trial is not None:
                measured.trials.append(trial)
        if measured.trials:
            return measured
    assert measured.refusal is not None  # noqa: S101  (every trial was refused)
    raise measured.refusal


def _try(vision: RemoteVision, width: int, height: int, measured: _Measured) -> Trial | None:
    """Ask about one test picture; None, and a note of the size, when it is refused."""
    ask = Ask(
        image=draw_test_picture(width, height), text=_PROMPT, max_tokens=MAX_TOKENS, logprobs=5
    )
    started = time.monotonic()
    try:
        answer = vision.ask_unresized(ask)
    except RefusedError as error:
        if error.status not in _REFUSED_SIZE_STATUS:
            raise
        smallest = measured.refused_pixels or width * height
        measured.refused_pixels, measured.refusal = min(smallest, width * height), error
        return None
    elapsed_s = time.monotonic() - started
    try:
        items = read_listing(answer.text).items
    except ReplyError:
        items = ()
    return Trial((width, height), items, answer, elapsed_s)


def _best_reading(trials: Sequence[Trial], factor: int) -> tuple[Reading, float, float]:
    """Find the reading that fits best, its mean IoU, and that of the best one of another kind.

    Readings come in order of how usual they are; a later one must be clearly better.
    """
    readings = _readings(factor)
    fits = {reading: _fit(reading, trials) for reading in readings}
    best = readings[0]
    for reading in readings[1:]:
        if fits[reading] > fits[best] + CLEARLY_BETTER:
            best = reading
    others = [fit for reading, fit in fits.items() if reading.kind != best.kind]
    return best, fits[best], max(others)


def _readings(factor: int) -> list[Reading]:
    """List all readings, the family's own factor and the mildest hidden limit first."""
    factors = sorted(FACTORS, key=lambda one: one != factor)
    readings: list[Reading] = []
    for notation in HYPOTHESES:
        is_resized = notation in {Notation.RESIZED_PIXELS, Notation.RESIZED_PIXELS_YX}
        readings += [
            Reading(notation, one, limit * one**2)
            for limit in (HIDDEN_LIMITS if is_resized else HIDDEN_LIMITS[:1])
            for one in (factors if is_resized else factors[:1])
        ]
    return readings


def _fit(reading: Reading, trials: Sequence[Trial]) -> float:
    """Average the IoU over all rectangles of all pictures; what was not found counts as 0."""
    scores = []
    for trial in trials:
        for colour, truth in true_boxes(*trial.sent_wh).items():
            boxes = _boxes_of_colour(colour, reading, trial)
            scores.append(max((box.iou(truth) for box in boxes), default=0.0))
    return statistics.fmean(scores)


def _boxes_of_colour(colour: str, reading: Reading, trial: Trial) -> list[Box]:
    """Place the boxes that the model named by a colour."""
    boxes = []
    for item in trial.items:
        label = (item.label or "").lower()
        if not any(word in label for word in _COLOUR_WORDS[colour]):
            continue
        for numbers in item.boxes:
            corners = numbers and to_photo_box(
                numbers,
                notation=reading.notation,
                seen_wh=reading.seen_wh(trial.sent_wh),
                photo_wh=trial.sent_wh,
            )
            if corners:
                boxes.append(Box(*corners))
    return boxes


def _try_larger(vision: RemoteVision, best: Reading, measured: _Measured, largest: int) -> int:
    """Ask about larger pictures until one is refused or its boxes no longer fit."""
    for width, height in LARGER_SIZES:
        if measured.refused_pixels is not None and width * height >= measured.refused_pixels:
            break
        trial = _try(vision, width, height, measured)
        if trial is None or _fit(best, [trial]) < MIN_IOU:
            break
        largest = max(largest, width * height)
    return largest


def _accepted_limit(measured: _Measured, factor: int) -> int:
    """Give the largest area that is safe to send: no refused one, and none beyond those tried."""
    if measured.refused_pixels is None:
        return 1280 * factor**2
    areas = [trial.sent_wh[0] * trial.sent_wh[1] for trial in measured.trials]
    return max((area for area in areas if area < measured.refused_pixels), default=min(areas))


def _has_schema(vision: RemoteVision) -> bool:
    """Ask a question whose schema allows only answers that no model would give by itself."""
    answer = vision.ask(
        Ask(
            image=draw_test_picture(448, 448),
            text=_SCHEMA_PROMPT,
            schema=_SCHEMA,
            max_tokens=32,
        )
    )
    try:
        said = json.loads(answer.text)
    except ValueError:
        return False
    return isinstance(said, dict) and said.get("colour") in _SCHEMA["properties"]["colour"]["enum"]


def _has_stream(vision: RemoteVision) -> bool:
    """Ask for the rectangles once more and see whether the answer comes in more than one piece."""
    profile = replace(vision.profile, has_schema=False, has_stream=True)
    picture = draw_test_picture(448, 448)
    picture_url = to_data_url(picture)
    ask = Ask(image=picture, text=_PROMPT, max_tokens=MAX_TOKENS, max_objects=1)
    try:
        with closing(vision.endpoint.stream(to_body(ask, picture_url, profile))) as deltas:
            return sum(1 for _ in islice((one for one in deltas if one.text), 2)) == 2
    except RefusedError:
        return False
