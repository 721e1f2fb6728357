"""Alarms of a run: what is to be said of each picture is read aloud beside the looking.

A sentence is spoken once, however many pictures it is about, and a run that is resumed does not
speak again what is there. `alarms.jsonl` has one line for each alarm as soon as its file is there,
or the reason why there is none: an alarm is never lost because speech failed.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Self

from qianyan.errors import ConfigError, EndpointError, QianyanError, ReplyError, quote
from qianyan.inspection.alarms.places import Places
from qianyan.inspection.alarms.sentences import AlarmForm, alarm_sentence
from qianyan.inspection.alarms.voices import Voice
from qianyan.inspection.folder import ResultsFolder, replace_file
from qianyan.inspection.records import Alarm, Failure, Inspection
from qianyan.inspection.results import alarm_record, to_json

logger = logging.getLogger(__name__)

ENOUGH_FAILURES = 3
STORAGE_FAILED = "storage_failed"
NOT_WRITTEN = "The alarm cannot be written: {reason}. Make room, and run it again with --resume."
UNFORESEEN = Failure("failed", "The voice failed in a way that was not foreseen; the log says how.")
STOPPED = Failure("stopped", "The run was stopped before; go on with --resume.")
LOOK_UP_S = 0.2  # between two looks at whether to stop


class Announcer:
    """Reads alarms aloud into a results folder, one at a time, on a thread of its own.

    `tell` is called on that thread with each new alarm. After ENOUGH_FAILURES in a row nothing more
    is tried.
    """

    def __init__(
        self,
        folder: ResultsFolder,
        voice: Voice,
        form: AlarmForm,
        places: Places,
        *,
        tell: Callable[[Inspection, Alarm], None],
    ) -> None:
        """Take up what earlier sittings have spoken; raises ConfigError for a damaged record."""
        self._folder, self._voice = folder, voice
        self._form, self._places, self._tell = form, places, tell
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alarms")
        self._waiting: list[tuple[Inspection, str, Future[None]]] = []
        self._alarms: dict[str, Alarm] = {}
        self._num_failures = 0
        self._files: dict[str, str] = {}
        self._spoken: dict[str, tuple[str, str]] = {}
        for record in read_alarms(folder):
            is_ours = (record["model"], record["voice"]) == (voice.name, voice.voice)
            if is_ours and self._is_there(record["file"]):
                self._files[record["text"]] = record["file"]
                self._spoken[record["source"]] = record["text"], record["file"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say no more than the sentence in hand."""
        self._thread.shutdown(cancel_futures=True)

    def announce(self, inspection: Inspection) -> None:
        """Have a picture's alarm read aloud, if there is something to say and it is not yet."""
        text = alarm_sentence(inspection, self._form, self._places.find(inspection.source))
        if text is None:
            return
        known, file = self._spoken.get(inspection.source, ("", ""))
        if known == text:
            self._alarms[inspection.source] = Alarm(text, file)
            return
        future = self._thread.submit(self._speak, inspection, text)
        self._waiting.append((inspection, text, future))

    def finish(self, is_stopping: Callable[[], bool]) -> Mapping[str, Alarm]:
        """Wait for all that is to be said; give the alarms by their pictures' sources.

        Once `is_stopping`, only the sentence in hand is waited for. Of what nobody foresaw the log
        says all there is; the results of the run are written all the same.
        """
        for inspection, text, future in self._waiting:
            while not future.done():
                if is_stopping():
                    self._thread.shutdown(wait=False, cancel_futures=True)
                wait([future], timeout=LOOK_UP_S)
            if future.cancelled():
                self._alarms[inspection.source] = Alarm(text, error=STOPPED)
            elif (error := future.exception()) is not None:
                logger.error("an alarm was not read aloud", exc_info=error)
                self._alarms[inspection.source] = Alarm(text, error=UNFORESEEN)
        return self._alarms

    def _speak(self, inspection: Inspection, text: str) -> None:
        """Speak a sentence and write it down, or why that failed."""
        try:
            alarm = Alarm(text, self._keep(inspection, text))
        except QianyanError as error:
            alarm = Alarm(text, error=Failure(error.code, str(error)))
        except OSError as error:
            reason = quote(error.strerror or type(error).__name__)
            alarm = Alarm(text, error=Failure(STORAGE_FAILED, NOT_WRITTEN.format(reason=reason)))
        self._alarms[inspection.source] = alarm
        self._note(inspection, alarm)
        self._tell(inspection, alarm)

    def _keep(self, inspection: Inspection, text: str) -> str:
        """Write the sound of a sentence; one that was spoken before is copied."""
        before = self._files.get(text)
        is_known = self._is_there(before)
        sound = (self._folder.path / str(before)).read_bytes() if is_known else self._say(text)
        self._files[text] = self._folder.keep_alarm(_file_name(inspection), sound)
        return self._files[text]

    def _is_there(self, file: str | None) -> bool:
        return file is not None and (self._folder.path / file).is_file()

    def _say(self, text: str) -> bytes:
        if self._num_failures >= ENOUGH_FAILURES:
            raise EndpointError(
                f"The voice failed {ENOUGH_FAILURES} times in a row and was not asked again. Run "
                "the same command with --resume when it works."
            )
        try:
            sound = self._voice.say(text)
        except ReplyError:  # of this sentence; another one may be spoken well
            raise
        except QianyanError:
            self._num_failures += 1
            raise
        self._num_failures = 0
        return sound

    def _note(self, inspection: Inspection, alarm: Alarm) -> None:
        """Add an alarm's line; a disk that takes none was said with the file."""
        record = {
            "source": inspection.source,
            "model": self._voice.name,
            "voice": self._voice.voice,
            **alarm_record(alarm),
        }
        try:
            with self._folder.alarms_file.open("a", encoding="utf-8") as lines:
                lines.write(to_json(record) + "\n")
        except OSError as error:
            logger.warning("alarms.jsonl cannot be written: %s", error)


def read_alarms(folder: ResultsFolder) -> list[dict[str, Any]]:
    """Read the alarms of earlier sittings; a torn last line counts as not written."""
    if not folder.alarms_file.is_file():
        return []
    *lines, torn = folder.alarms_file.read_bytes().split(b"\n")
    if torn:
        replace_file(folder.alarms_file, b"".join(line + b"\n" for line in lines))
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            texts = [record[name] for name in ("source", "text", "model")]
            others = [record[name] for name in ("voice", "file")]
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(folder, number) from error
        if not all(isinstance(one, str) for one in texts):
            raise _damaged(folder, number)
        if not all(one is None or isinstance(one, str) for one in others):
            raise _damaged(folder, number)
        records.append(record)
    return records


def _damaged(folder: ResultsFolder, number: int) -> ConfigError:
    return ConfigError(
        f"Line {number} of {quote(folder.alarms_file)} cannot be read; restore the file or remove "
        "it, and all alarms are spoken anew."
    )


def _file_name(inspection: Inspection) -> str:
    """Name a recording after its picture, or after the source of one that was never had."""
    if inspection.file is not None:
        return PurePosixPath(inspection.file).name
    digest = hashlib.sha256(inspection.source.encode("utf-8", "replace")).hexdigest()
    return f"without-picture-{digest[:12]}"
