"""A round over many pictures: each looked at once, written down at once, and resumable.

A run ends in one of three ways. It has been through every picture: results.json and report.pdf
are written. It was asked to stop: the picture in hand is finished and kept, nothing else is
written, and --resume goes on. Or the endpoint failed ENOUGH_FAILURES pictures in a row: the run
stops like that and raises, instead of failing a thousand more.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Literal

from qianyan.errors import EndpointError, MediaError, quote
from qianyan.inputs.fetch import FetchLimits
from qianyan.inputs.images import decoded_bytes
from qianyan.inspection.folder import ResultsFolder, file_names, with_suffix
from qianyan.inspection.line import Room, Turn, work_in_line
from qianyan.inspection.records import Alarm, Inspection
from qianyan.inspection.reporting.annotate import mark
from qianyan.inspection.results import RunFacts
from qianyan.inspection.service import (
    LookAt,
    failed,
    inspect_photo,
    read_source,
    without_verdict,
)
from qianyan.inspection.sources import Source, SourceList, is_url

ENOUGH_FAILURES = 3
COPIES = 2
"""Of a decoded picture: as it is, and marked."""


_Looked = Inspection | Literal["repeated", "left"]
"""A verdict whose pictures are kept; or why there is none: other names of a picture, stopping."""


class Run:
    """One sitting of a run over a list of sources, in a results folder."""

    def __init__(
        self,
        sources: SourceList,
        look: LookAt,
        folder: ResultsFolder,
        *,
        limits: FetchLimits,
        workers: int = 1,
        is_ordered: bool = False,
    ) -> None:
        """Begin a sitting.

        Args:
            sources: what to look at.
            look: how; from `workers` threads at once.
            folder: where verdicts go.
            limits: what fetching may cost.
            workers: pictures in hand at the same time.
            is_ordered: whether verdicts come in the order of the sources, as one by one, or each
                as soon as there is one.
        """
        self.sources, self.look, self.folder = sources, look, folder
        self.limits, self.workers, self.is_ordered = limits, workers, is_ordered
        self.is_stopping = False
        self.num_repeated = sources.num_repeated
        folder.forget(_to_try_again(folder.done, limits))
        self._done = {one.source: one for one in folder.done}
        self._names = file_names(sources.entries, folder.done)
        self._pending = {one.name: one for one in sources.entries if one.name not in self._done}
        self._repeats: dict[str, list[str]] = {}
        self._room = Room()
        self._lock = Lock()  # guards _first_with: workers claim pictures by their bytes
        self._first_with = {one.sha256: one.source for one in folder.done if one.sha256}

    @property
    def num_pending(self) -> int:
        """How many sources have not been dealt with."""
        return len(self._pending)

    @property
    def inspections(self) -> list[Inspection]:
        """All verdicts so far, in the order of the sources, then those of sources not given now.

        Further names of the same picture are noted at its verdict.
        """
        place = {source.name: index for index, source in enumerate(self.sources.entries)}
        ordered = sorted(self._done.values(), key=lambda one: place.get(one.source, len(place)))
        return [
            replace(one, notes=one.notes + _same_as(self._repeats.get(one.source, ())))
            for one in ordered
        ]

    def stop(self) -> None:
        """Ask the run to end after the pictures in hand."""
        self.is_stopping = True

    def inspect(self) -> Iterator[Inspection]:
        """Look at what is pending, giving each verdict as soon as the folder has it.

        Raises EndpointError when the endpoint fails again and again; the run can be resumed.
        """
        num_failures = 0
        for source, looked in self._look_at_all():
            if looked == "left":
                continue
            del self._pending[source.name]
            if looked == "repeated":
                self.num_repeated += 1
                continue
            self.folder.append(looked)
            self._done[source.name] = looked
            yield looked
            error = looked.error
            num_failures = num_failures + 1 if error and error.code == EndpointError.code else 0
            if error and num_failures >= ENOUGH_FAILURES and self._pending:
                self.stop()
                raise EndpointError(
                    f"{num_failures} pictures in a row failed: {error.message} Go on with --resume "
                    "when the endpoint works."
                )

    def finish(self, facts: RunFacts, alarms: Mapping[str, Alarm] | None = None) -> None:
        """Write results.json and report.pdf of a run that has been through every picture."""
        self.folder.finish(facts, self.inspections, alarms)

    def _look_at_all(self) -> Iterator[tuple[Source, _Looked]]:
        """Look at pending sources, `workers` at a time."""
        waiting = list(self._pending.values())
        if self.is_ordered or self.workers == 1:
            return work_in_line(waiting, self._look_at, at_once=self.workers)
        return self._as_they_come(waiting)

    def _as_they_come(self, sources: Sequence[Source]) -> Iterator[tuple[Source, _Looked]]:
        waiting = deque(sources)
        with ThreadPoolExecutor(self.workers) as pool:
            running: dict[Future[_Looked], Source] = {}
            while running or (waiting and not self.is_stopping):
                while waiting and not self.is_stopping and len(running) < self.workers:
                    source = waiting.popleft()
                    running[pool.submit(self._look_at, source, Turn(None))] = source
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield running.pop(future), future.result()

    def _look_at(self, source: Source, turn: Turn) -> _Looked:
        """Fetch and inspect one source, and keep its pictures."""
        if self.is_stopping:
            return "left"
        if source.failure is not None:
            return without_verdict(source.name, source.failure)
        try:
            data = read_source(source.name, self.limits)
        except MediaError as error:
            return failed(source.name, error)
        with turn:  # the first name of a picture is the same one in every run
            if not self._is_first(source, data):
                return "left" if self.is_stopping else "repeated"
        return self._inspect(source, data)

    def _is_first(self, source: Source, data: bytes) -> bool:
        """Claim a picture by its bytes; another source may have had them before."""
        with self._lock:
            first = self._first_with.setdefault(sha256(data).hexdigest(), source.name)
            if first != source.name:
                self._repeats.setdefault(first, []).append(source.name)
            return first == source.name

    def _inspect(self, source: Source, data: bytes) -> _Looked:
        """Look at a picture, and write down its copies; its line comes last."""
        size_bytes = COPIES * decoded_bytes(data)
        self._room.take(size_bytes)
        try:
            return "left" if self.is_stopping else self._inspect_decoded(source, data)
        finally:
            self._room.give_back(size_bytes)

    def _inspect_decoded(self, source: Source, data: bytes) -> Inspection:
        seen = inspect_photo(source.name, data, self.look)
        verdict = seen.inspection
        if seen.photo is not None:
            name = with_suffix(self._names[source.name], data)
            verdict = replace(verdict, file=self.folder.keep_picture(name, data))
            if verdict.detections is not None:
                marked = mark(seen.photo.rgb, verdict.detections, lang=self.folder.lang)
                verdict = replace(verdict, marked_file=self.folder.keep_marked(name, marked))
        return verdict


def _to_try_again(done: Sequence[Inspection], limits: FetchLimits) -> list[str]:
    """Name the sources whose verdict may have changed since.

    Those that were never fetched or that the endpoint failed, and files with other bytes now.
    """
    return [one.source for one in done if one.sha256 is None or not _still_holds(one, limits)]


def _still_holds(one: Inspection, limits: FetchLimits) -> bool:
    if one.error is not None and one.error.code == EndpointError.code:
        return False
    if is_url(one.source) or not Path(one.source).is_file():
        return True
    try:
        return sha256(read_source(one.source, limits)).hexdigest() == one.sha256
    except MediaError:
        return False


def _same_as(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"same picture as {quote(name)}" for name in names)
