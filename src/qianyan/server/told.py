"""What an answer tells beside its text: extracted values, places, sizes, and what was left out.

It is worked out once, when the answer has ended, and rides on the completion, so that every way to
ask (at once, streamed, as a task, in a batch) tells the same.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from qianyan.engine.request import Completion, Finished, Request
from qianyan.errors import InputError, quote
from qianyan.inputs.grounding import find_notation
from qianyan.inputs.media import SeenImage
from qianyan.inputs.sound import HeardAudio
from qianyan.inputs.video import SeenVideo
from qianyan.server.answer import Answer, Event
from qianyan.server.extraction import ExtractionOptions, read_answer
from qianyan.server.ocr_turning import Turn
from qianyan.server.places import CoordinateSpace, read_places
from qianyan.server.searching import SearchingAnswer, TurnsSoFar


@dataclass(frozen=True, kw_only=True)
class Telling:
    """What a request wants told beside the answer's text.

    `turns` asks for a picture whose text does not stand upright to be turned before it is read;
    `turn` says what was done about that.
    """

    shows_image_hw: bool = False
    space: CoordinateSpace | None = None
    extraction: ExtractionOptions | None = None
    turns: bool = False
    turn: Turn | None = None

    def __bool__(self) -> bool:
        """Whether it wants anything."""
        return self != Telling()


def read_space(given: str | None) -> CoordinateSpace | None:
    """Read a request's `coordinate_space`; InputError for one that is not known."""
    if given is None:
        return None
    try:
        return CoordinateSpace(given)
    except ValueError as error:
        raise InputError(
            f"coordinate_space is {quote(given)}; expected one of {', '.join(CoordinateSpace)}."
        ) from error


@dataclass(frozen=True, kw_only=True)
class Told(Completion):
    """A finished answer, and what it tells beside its text.

    `ocr_result` is None where the task has none or the answer was cut; `places` None where none
    were asked for or they cannot be told.
    """

    telling: Telling
    ocr_result: dict[str, Any] | None = None
    places: list[dict[str, Any]] | None = None


def beside(completion: Completion) -> dict[str, Any]:
    """Write what goes for a whole reply: notes where there are any, sizes where asked for."""
    media: dict[str, Sequence[SeenImage | SeenVideo | HeardAudio]] = {
        "picture": completion.images,
        "video": completion.videos,
        "sound": completion.audios,
    }
    notes = [
        *completion.notes,
        *(
            f"{kind} {number}: {note}"
            for kind, seen in media.items()
            for number, one in enumerate(seen, 1)
            for note in one.notes
        ),
    ]
    told: dict[str, Any] = {"notes": notes} if notes else {}
    if isinstance(completion, Told) and completion.telling.shows_image_hw:
        told["images"] = image_sizes(completion)
    return told


def image_sizes(completion: Completion) -> list[dict[str, list[int]]]:
    """Write each picture's own height and width, and those in which the model saw it."""
    return [
        {"image_hw": list(image.seen_wh[::-1]), "original_hw": list(image.photo_wh[::-1])}
        for image in completion.images
    ]


def inside(completion: Completion) -> dict[str, Any]:
    """Write what goes for one answer: places and extracted values, where asked for."""
    if not isinstance(completion, Told):
        return {}
    told: dict[str, Any] = {}
    if completion.telling.space is not None:
        told["places"] = completion.places
    extraction = completion.telling.extraction
    if extraction is not None and (extraction.has_result or completion.ocr_result is not None):
        told["ocr_result"] = completion.ocr_result
    return told


class TellingAnswer:
    """An answer that ends with a `Told`; otherwise as the answer it is made of."""

    def __init__(
        self, answer: Answer | SearchingAnswer, telling: Telling, architecture: str
    ) -> None:
        self._answer = answer
        self._telling = telling
        self._architecture = architecture

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._read()

    @property
    def request(self) -> Request | TurnsSoFar:
        """What is known while it runs."""
        return self._answer.request

    async def begun(self) -> None:
        """Wait for the first token, or for an end without any."""
        await self._answer.begun()

    def leave(self) -> None:
        """End the answer unless it has ended."""
        self._answer.leave()

    async def _read(self) -> AsyncIterator[Event]:
        async for event in self._answer:
            if isinstance(event, Finished):
                told = tell(event.completion, self._telling, self._architecture)
                yield Finished(completion=told)
            else:
                yield event


def tell(completion: Completion, telling: Telling, architecture: str) -> Told:
    """Work out what is told beside an answer; ReplyError where what was promised is not there."""
    given = {one.name: getattr(completion, one.name) for one in fields(Completion)}
    notes = list(completion.notes)
    ocr_result = places = None
    notation = find_notation(architecture)
    if telling.extraction is not None:
        if completion.finish_reason == "length":
            notes.append(_cut_note(telling.extraction))
        elif telling.extraction.has_result and notation is not None:
            ocr_result = read_answer(
                completion.text,
                telling.extraction,
                notation=notation,
                seen_wh=completion.images[0].seen_wh,
                photo_wh=completion.images[0].photo_wh,
            ).ocr_result
    if telling.space is not None and notation is not None:
        if len(completion.images) == 1:
            found = read_places(
                completion.text, completion.images[0], notation=notation, space=telling.space
            )
            places = found.places
            notes += found.notes
            if completion.finish_reason == "length" and not found.is_cut:
                notes.append("places: the answer was cut at its length; there may be more")
        else:
            notes.append(
                f"places: not told, as there are {len(completion.images)} pictures; expected one"
            )
    if telling.turn is not None:
        notes += telling.turn.notes
        ocr_result = None if ocr_result is None else telling.turn.to_sent(ocr_result)
    given["notes"] = tuple(notes)
    return Told(**given, telling=telling, ocr_result=ocr_result, places=places)


def _cut_note(extraction: ExtractionOptions) -> str:
    lost = "so there is no ocr_result" if extraction.has_result else "so it is not all of the text"
    return f"text extraction: the answer was cut at its length, {lost}; raise max_tokens"
