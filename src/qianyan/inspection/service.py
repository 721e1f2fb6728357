"""The story of one picture: bytes in, a verdict out; and `inspect`, the same from Python."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

from qianyan.errors import InputError, MediaError, QianyanError, ReplyError, quote
from qianyan.inputs.fetch import FetchLimits, fetch
from qianyan.inputs.images import ImageLimits, Photo, read_image
from qianyan.inspection.inspector import LookSettings, OpenLook, open_look
from qianyan.inspection.line import PICTURES_AHEAD, Turn, work_in_line
from qianyan.inspection.records import Failure, Hazard, Inspection, Look
from qianyan.inspection.sources import Source, is_url, list_sources

LookAt = Callable[[Photo], Look]

CHECKED = tuple(Hazard)
# Longer strips are crops of panoramas and banners, in which detectors and models see nothing
# reliably; the models' own limit is 200:1.
INSPECTION_LIMITS = ImageLimits(max_ratio=20)


@dataclass(frozen=True)
class Seen:
    """A verdict with the photo it is about; `photo` is None where it could not be read."""

    inspection: Inspection
    photo: Photo | None


def inspect_photo(source: str, data: bytes, look: LookAt) -> Seen:
    """Read the picture, look at it, and say what was found.

    What cannot be read, understood or answered becomes the verdict's `error`; one bad picture
    never stops a round.
    """
    started = time.monotonic()
    photo = None
    try:
        photo = read_image(data, limits=INSPECTION_LIMITS)
        found = look(photo)
    except QianyanError as error:
        verdict = failed(source, error)
    else:
        verdict = Inspection(
            source=source,
            detections=found.detections,
            checked=CHECKED,
            vetoed=found.vetoed,
            usage=found.usage,
            raw=found.raw,
            notes=photo.notes + found.notes,
        )
    return Seen(
        replace(
            verdict,
            sha256=hashlib.sha256(data).hexdigest(),
            width=photo.width if photo else None,
            height=photo.height if photo else None,
            total_s=time.monotonic() - started,
        ),
        photo,
    )


def failed(source: str, error: QianyanError) -> Inspection:
    """Write down why there is no verdict on a picture."""
    verdict = without_verdict(source, Failure(error.code, str(error)))
    return replace(verdict, raw=error.raw) if isinstance(error, ReplyError) else verdict


def without_verdict(source: str, failure: Failure) -> Inspection:
    """Make the verdict of a picture that could not be looked at."""
    return Inspection(source=source, detections=None, checked=CHECKED, error=failure)


def read_source(source: str, limits: FetchLimits) -> bytes:
    """Bring a picture's bytes from a file or URL."""
    return fetch(source if is_url(source) else Path(source), limits=limits, allow_files=True).data


def inspect_source(source: str, look: LookAt, limits: FetchLimits) -> Inspection:
    """Fetch one picture and inspect it, keeping nothing but the verdict."""
    try:
        data = read_source(source, limits)
    except MediaError as error:
        return failed(source, error)
    return inspect_photo(source, data, look).inspection


@overload
def inspect(source: str | Path, **settings: Any) -> Inspection: ...


@overload
def inspect(source: Sequence[str | Path], **settings: Any) -> list[Inspection]: ...


def inspect(
    source: str | Path | Sequence[str | Path], **settings: Any
) -> Inspection | list[Inspection]:
    """Look for hazards in one picture, or in a list of files, folders, globs and URLs.

    Nothing is written. A picture that cannot be inspected has `error` set and `detections` None.
    Settings are those of `LookSettings`: model, base_url, api_key, device, dtype, quantize, lang,
    look, max_objects, max_pixels, visual_tokens, prompt_order, answer_form, workers, batch,
    allow_hosts. The model stays loaded between calls.

    Raises:
        ConfigError: a setting says something impossible.
        CheckpointError, EndpointError: the model cannot be used.

    Example:
        for found in qianyan.inspect("site.jpg", lang="en").detections or (): print(found)
    """
    chosen = LookSettings.from_options(settings)
    is_single = isinstance(source, str | Path)
    given = [source] if isinstance(source, str | Path) else list(source)
    entries = list_sources([str(one) for one in given]).entries
    if is_single and [entry.name for entry in entries] != [str(source)]:
        raise InputError(
            f"{quote(source)} stands for {len(entries)} pictures; put it in a list to get a list."
        )
    opened = _kept_look(chosen)

    def look_at(entry: Source, turn: Turn) -> Inspection:  # noqa: ARG001  (nobody claims a picture)
        if entry.failure is not None:
            return without_verdict(entry.name, entry.failure)
        return inspect_source(entry.name, opened.look, chosen.fetch_limits)

    in_hand = chosen.workers if opened.batch is None else opened.batch.size + PICTURES_AHEAD
    at_once = min(in_hand, len(entries)) or 1
    verdicts = [verdict for _, verdict in work_in_line(entries, look_at, at_once=at_once)]
    return verdicts[0] if is_single else verdicts


@lru_cache(maxsize=1)
def _kept_look(settings: LookSettings) -> OpenLook:
    """Keep the last model loaded: it takes far longer to open than to use."""
    return open_look(settings)
