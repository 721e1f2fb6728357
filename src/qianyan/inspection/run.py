"""A round over many pictures: each looked at once, written down at once, and resumable.

A run ends in one of three ways. It has been through every picture: results.json and report.pdf
are written. It was asked to stop: the picture in hand is finished and kept, nothing else is
written, and --resume goes on. Or the endpoint failed ENOUGH_FAILURES pictures in a row: the run
stops like that and raises, instead of failing a thousand more.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from threading import Lock

from qianyan.errors import EndpointError, MediaError, quote
from qianyan.inputs.fetch import FetchLimits
from qianyan.inspection.annotate import mark
from qianyan.inspection.folder import ResultsFolder, file_names, with_suffix
from qianyan.inspection.records import Inspection
from qianyan.inspection.results import RunFacts
from qianyan.inspection.service import (
    LookAt,
    Seen,
    failed,
    inspect_photo,
    read_source,
    without_verdict,
)
from qianyan.inspection.sources import Source, SourceList, is_url

ENOUGH_FAILURES = 3


@dataclass(frozen=True)
class _Looked:
    """What came of one source; `data` is None where there were no bytes to keep."""

    seen: Seen
    data: bytes | None


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
    ) -> None:
        self.sources, self.look, self.folder = sources, look, folder
        self.limits, self.workers = limits, workers
        self.is_stopping = False
        self.num_repeated = sources.num_repeated
        folder.forget(_to_try_again(folder.done, limits))
        self._done = {one.source: one for one in folder.done}
        self._names = file_names(sources.entries, folder.done)
        self._pending = {one.name: one for one in sources.entries if one.name not in self._done}
        self._repeats: dict[str, list[str]] = {}
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
            del self._pending[source.name]
            if looked is None:
                self.num_repeated += 1
                continue
            verdict = self._keep(source, looked)
            yield verdict
            error = verdict.error
            num_failures = num_failures + 1 if error and error.code == EndpointError.code else 0
            if error and num_failures >= ENOUGH_FAILURES and self._pending:
                self.stop()
                raise EndpointError(
                    f"{num_failures} pictures in a row failed: {error.message} Go on with --resume "
                    "when the endpoint works."
                )

    def finish(self, facts: RunFacts) -> None:
        """Write results.json and report.pdf of a run that has been through every picture."""
        self.folder.finish(facts, self.inspections)

    def _look_at_all(self) -> Iterator[tuple[Source, _Looked | None]]:
        """Look at pending sources, `workers` at a time; None stands for a picture seen before."""
        waiting = deque(self._pending.values())
        if self.workers == 1:
            while waiting and not self.is_stopping:
                source = waiting.popleft()
                yield source, self._look_at(source)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            running: dict[Future[_Looked | None], Source] = {}
            while running or (waiting and not self.is_stopping):
                while waiting and not self.is_stopping and len(running) < self.workers:
                    source = waiting.popleft()
                    running[pool.submit(self._look_at, source)] = source
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield running.pop(future), future.result()

    def _look_at(self, source: Source) -> _Looked | None:
        """Fetch and inspect one source; None when another source has the same bytes."""
        if source.failure is not None:
            return _Looked(Seen(without_verdict(source.name, source.failure), None), None)
        try:
            data = read_source(source.name, self.limits)
        except MediaError as error:
            return _Looked(Seen(failed(source.name, error), None), None)
        with self._lock:
            first = self._first_with.setdefault(sha256(data).hexdigest(), source.name)
            if first != source.name:
                self._repeats.setdefault(first, []).append(source.name)
                return None
        return _Looked(inspect_photo(source.name, data, self.look), data)

    def _keep(self, source: Source, looked: _Looked) -> Inspection:
        """Write a verdict down: pictures first, its line last."""
        verdict, photo = looked.seen.inspection, looked.seen.photo
        if photo is not None and looked.data is not None:
            name = with_suffix(self._names[source.name], looked.data)
            verdict = replace(verdict, file=self.folder.keep_picture(name, looked.data))
            if verdict.detections is not None:
                marked = mark(photo.rgb, verdict.detections, lang=self.folder.lang)
                verdict = replace(verdict, marked_file=self.folder.keep_marked(name, marked))
        self.folder.append(verdict)
        self._done[source.name] = verdict
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
