"""The results folder of a run: what is written when, and what an interrupted run left behind.

`results.jsonl` is the record of truth. A picture's copies are written first and its line last,
flushed to the disk; a run that dies between the two does that picture again, and only that one.
`.run.json` remembers the run's id and settings for --resume; results.json and report.pdf exist
only when the run has been through every picture.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from PIL import Image

from qianyan.errors import ConfigError, quote
from qianyan.inspection.records import Alarm, Inspection
from qianyan.inspection.reporting.fonts import lay_out_fonts, user_fonts
from qianyan.inspection.reporting.report import render_report
from qianyan.inspection.reporting.report_content import ReportData, ReportPicture
from qianyan.inspection.results import RunFacts, from_record, run_record, to_json, to_record
from qianyan.inspection.sources import PICTURE_SUFFIXES, RUN_FILE, Source
from qianyan.inspection.words import Lang

Start = Literal["new", "resume", "overwrite"]

STATE_SCHEMA = "qianyan.run-state/1"
OUR_FOLDERS = ("images", "marked_images")
OUR_FILES = ("results.jsonl", "results.json", "report.pdf", "alarms.jsonl", RUN_FILE)
SPOKEN = "alarms"
"""The folder of alarms that were read aloud; made with the first."""
LONGEST_STEM = 60
# What a picture begins with, for downloads whose name does not say what they are.
MAGIC = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
)
MARKED_QUALITY = 92


class ResultsFolder:
    """One run's folder; `done` holds the verdicts of earlier sittings, in their order."""

    def __init__(self, path: Path, *, state: Mapping[str, Any], lang: Lang) -> None:
        self.path, self.lang = path, lang
        self.run_id: str = state["id"]
        self.started_at: str = state["started_at"]
        self.done: list[Inspection] = []

    @property
    def lines_file(self) -> Path:
        """Where one line per picture goes."""
        return self.path / "results.jsonl"

    @property
    def fonts(self) -> Path:
        """The folder of fonts, where users may drop their own."""
        return self.path / "fonts"

    def keep_picture(self, name: str, data: bytes) -> str:
        """Write a picture's own bytes under images/; give its name as results say it."""
        (self.path / "images" / name).write_bytes(data)
        return f"images/{name}"

    def keep_marked(self, name: str, marked: Image.Image) -> str:
        """Write a marked picture under marked_images/, in the kind of file its name says."""
        kinds = Image.registered_extensions()
        suffix = Path(name).suffix.lower()
        if kinds.get(suffix) not in {"JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"}:
            name, suffix = f"{name}.jpg", ".jpg"  # e.g. HEIC, which we read but do not write
        marked.save(self.path / "marked_images" / name, kinds[suffix], quality=MARKED_QUALITY)
        return f"marked_images/{name}"

    def append(self, inspection: Inspection) -> None:
        """Add one picture's line and wait until the disk has it."""
        line = to_json(to_record(inspection, self.lang)) + "\n"
        with self.lines_file.open("a", encoding="utf-8") as lines:
            lines.write(line)
            lines.flush()
            os.fsync(lines.fileno())

    def forget(self, sources: Iterable[str]) -> None:
        """Take pictures that will be tried again out of the file of lines."""
        again = set(sources)
        if again:
            self.done = [one for one in self.done if one.source not in again]
            self.rewrite()

    def rewrite(self) -> None:
        """Write the lines anew from `done`, all at once."""
        lines = (to_json(to_record(one, self.lang)) for one in self.done)
        replace_file(self.lines_file, "".join(f"{line}\n" for line in lines).encode())

    def facts(self, *, model: str, version: str) -> RunFacts:
        """Say what the results file says about this run, finished now."""
        return RunFacts(
            id=self.run_id,
            started_at=self.started_at,
            finished_at=now(),
            model=model,
            lang=self.lang,
            version=version,
        )

    @property
    def alarms_file(self) -> Path:
        """Where one line per alarm goes."""
        return self.path / "alarms.jsonl"

    def keep_alarm(self, name: str, sound: bytes) -> str:
        """Write a WAV file under alarms/, replacing none; give its name as results say it."""
        folder = self.path / SPOKEN
        folder.mkdir(exist_ok=True)
        file, number = folder / f"{name}.wav", 1
        while file.exists():
            number += 1
            file = folder / f"{name}-{number}.wav"
        replace_file(file, sound)
        return f"{SPOKEN}/{file.name}"

    def finish(
        self,
        facts: RunFacts,
        inspections: Sequence[Inspection],
        alarms: Mapping[str, Alarm] | None = None,
    ) -> None:
        """Write results.json and report.pdf."""
        self.write_results(facts, inspections, alarms)
        write_report(self.path, facts, inspections)

    def write_results(
        self,
        facts: RunFacts,
        inspections: Sequence[Inspection],
        alarms: Mapping[str, Alarm] | None = None,
    ) -> None:
        """Write results.json alone, for a run that is scored and not reported on."""
        text = to_json(run_record(facts, inspections, alarms), indent=1)
        replace_file(self.path / "results.json", text.encode())


def write_report(path: Path, facts: RunFacts, inspections: Sequence[Inspection]) -> None:
    """Set report.pdf in a results folder, with the settings the run was started with."""
    state = _read_state(path) or {"settings": {}}
    pictures = tuple(
        ReportPicture(
            one,
            path / one.file if one.file else None,
            path / one.marked_file if one.marked_file else None,
        )
        for one in inspections
    )
    data = ReportData(
        run_id=facts.id,
        started_at=datetime.fromisoformat(facts.started_at).astimezone(),
        finished_at=datetime.fromisoformat(facts.finished_at).astimezone(),
        model=facts.model,
        lang=facts.lang,
        version=facts.version,
        pictures=pictures,
        settings={k: str(v) for k, v in state["settings"].items() if v is not None},
        fonts=user_fonts(path / "fonts"),
    )
    render_report(data, path / "report.pdf")


def open_folder(
    path: Path, *, settings: Mapping[str, Any], lang: Lang, start: Start = "new"
) -> ResultsFolder:
    """Make a results folder, or take up an interrupted run in it.

    A folder with anything but fonts in it is refused unless `start` says to resume or overwrite.
    To resume, the settings must be those the run was started with. Resuming what never started
    starts it.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out is {quote(path)}, which is a file; expected a folder.")
    state = _read_state(path)
    if start == "resume" and state is not None:
        folder = _resumed(path, state, settings, lang)
    else:
        _make_room(path, start)
        state = {
            "schema": STATE_SCHEMA,
            "id": f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
            "started_at": now(),
            "settings": dict(settings),
        }
        folder = ResultsFolder(path, state=state, lang=lang)
    for name in OUR_FOLDERS:
        (path / name).mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "report.pdf"):  # of an earlier end; this run has not ended yet
        (path / name).unlink(missing_ok=True)
    lay_out_fonts(folder.fonts)
    replace_file(path / RUN_FILE, to_json(state, indent=1).encode())
    folder.rewrite()
    return folder


def _read_state(path: Path) -> dict[str, Any] | None:
    file = path / RUN_FILE
    if not file.is_file():
        return None
    try:
        state = json.loads(file.read_text("utf-8"))
    except ValueError:
        state = None
    if (
        not isinstance(state, dict)
        or state.get("schema") != STATE_SCHEMA
        or not {"id", "started_at", "settings"} <= set(state)
    ):
        raise ConfigError(
            f"{quote(file)} is not the record of a run; use another --out or --overwrite."
        )
    return state


def _resumed(
    path: Path, state: dict[str, Any], settings: Mapping[str, Any], lang: Lang
) -> ResultsFolder:
    for name, value in settings.items():
        before = state["settings"].get(name)
        if before != value:
            raise ConfigError(
                f"{name} is {quote(value)}; the run in {quote(path)} was started with "
                f"{quote(before)}. Resume with the same settings, or use another --out or "
                "--overwrite."
            )
    folder = ResultsFolder(path, state=state, lang=lang)
    folder.done = read_lines(folder.lines_file)
    return folder


def read_lines(file: Path) -> list[Inspection]:
    """Read the pictures of an interrupted run; a torn last line counts as not written."""
    if not file.is_file():
        return []
    lines = file.read_bytes().split(b"\n")
    whole: dict[str, Inspection] = {}
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last \n is torn
        try:
            inspection = from_record(json.loads(line))
        except (ValueError, ConfigError) as error:
            if number == len(lines) - 1:
                break
            raise ConfigError(
                f"Line {number} of {quote(file)} cannot be read; restore the file, or start again "
                "with --overwrite."
            ) from error
        whole[inspection.source] = inspection
    return list(whole.values())


def _make_room(path: Path, start: Start) -> None:
    present = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if start == "overwrite":
        for name in present & {*OUR_FOLDERS, SPOKEN}:
            shutil.rmtree(path / name)
        for name in present & set(OUR_FILES):
            (path / name).unlink()
    elif present - {"fonts"}:
        raise ConfigError(
            f"{quote(path)} is not empty; use --resume to go on with the run in it, --overwrite to "
            "replace it, or another --out."
        )


def now() -> str:
    """Say the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def replace_file(file: Path, data: bytes) -> None:
    """Write a file so that readers see the old one or the new one, never half."""
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as written:
            written.write(data)
            written.flush()
            os.fsync(written.fileno())
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)  # a full disk is not to stay so
        raise


def file_names(sources: Sequence[Source], done: Iterable[Inspection]) -> dict[str, str]:
    """Give each source a safe name that no other picture of the run has, whatever the case.

    Pictures done earlier keep theirs. A URL without a picture's suffix gets none here; see
    `with_suffix`.
    """
    names = {one.source: PurePosixPath(one.file).name for one in done if one.file}
    taken = {alias for name in names.values() for alias in _aliases(name)}
    for source in sources:
        if source.failure is not None or source.name in names:
            continue
        name = first = _safe_name(source)
        number = 1
        while taken & _aliases(name):
            number += 1
            name = f"{Path(first).stem}-{number}{Path(first).suffix}"
        taken |= _aliases(name)
        names[source.name] = name
    return names


def _aliases(name: str) -> set[str]:
    """List the names that a file may end up with; one without a suffix gets it later."""
    lower = name.casefold()
    if Path(lower).suffix in PICTURE_SUFFIXES:
        return {lower}
    return {lower + suffix for suffix in PICTURE_SUFFIXES}


def _safe_name(source: Source) -> str:
    path = unquote(urlsplit(source.name).path) if source.is_url else source.name
    named = Path(path.replace("\\", "/"))
    suffix = named.suffix.lower()
    stem = named.stem if suffix in PICTURE_SUFFIXES else named.name
    safe = re.sub(r"[^\w.-]+", "_", stem).strip("._")[:LONGEST_STEM]
    return (safe or "picture") + (suffix if suffix in PICTURE_SUFFIXES else "")


def with_suffix(name: str, data: bytes) -> str:
    """Complete a name that does not say what kind of picture it is, from the picture's bytes."""
    if Path(name).suffix in PICTURE_SUFFIXES:
        return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return f"{name}.webp"
    return name + next((suffix for start, suffix in MAGIC if data.startswith(start)), ".heic")
