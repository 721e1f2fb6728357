"""The verbs around a run: inspect pictures, see the demo, set a report anew."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qianyan import __version__
from qianyan.cli.alarms import (
    AlarmOptions,
    SpeakOptions,
    announcing,
    is_to_speak,
    open_alarm_voice,
    read_alarm_options,
)
from qianyan.cli.exit_codes import DONE, FINDINGS, IN_PART, UNUSABLE
from qianyan.cli.option_groups import spelling_out
from qianyan.cli.options import (
    AllowHost,
    Config,
    Debug,
    Device,
    FetchTimeout,
    Json,
    Lang,
    LangOption,
    LookOptions,
    Model,
    Out,
    Quiet,
    Rules,
    look_settings,
    option,
)
from qianyan.errors import ConfigError, EndpointError, quote

if TYPE_CHECKING:
    from qianyan.cli.run_display import RunDisplay
    from qianyan.inspection.alarms.announcer import Announcer
    from qianyan.inspection.inspector import LookSettings
    from qianyan.inspection.records import Alarm, Inspection
    from qianyan.inspection.results import RunFacts
    from qianyan.inspection.run import Run
    from qianyan.inspection.sources import SourceList

Start = Literal["new", "resume", "overwrite"]


@spelling_out
def inspect(
    context: typer.Context,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...")],
    *,
    out: Out = Path("qianyan-out"),
    looking: LookOptions,
    fail_on: Annotated[
        str | None,
        option(
            "--fail-on", "exit with 1 at such findings: minor, moderate, severe, no_helmet, any"
        ),
    ] = None,
    speaking: SpeakOptions,
    resume: Annotated[bool, option("--resume", "go on with an interrupted run")] = False,
    overwrite: Annotated[bool, option("--overwrite", "replace the run in --out")] = False,
    quiet: Quiet = False,
    json: Json = False,
    rules: Rules = None,
    allow_host: AllowHost = None,
    fetch_timeout: FetchTimeout = 20.0,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Look for hazards in files, folders, globs and URLs; - reads a list from standard input.

    Example: qianyan inspect site/ "more/*.jpg" --out monday --lang en
    """
    from qianyan.inspection.gate import parse_fail_on
    from qianyan.inspection.sources import list_sources

    if rules is not None:
        raise ConfigError(
            f"--rules is {quote(rules)}; rules come with a later version. Leave it out."
        )
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite are both given; expected one of them.")
    settings = look_settings(context)
    alarms = read_alarm_options(context, speaking)
    gate = parse_fail_on(fail_on) if fail_on else frozenset()
    listed = list_sources(sources, standard_input=_names_on_standard_input())
    wants_lines = json or not (quiet or sys.stdout.isatty())
    start: Start = "resume" if resume else "overwrite" if overwrite else "new"
    sitting = Sitting(out, start, gate, is_quiet=quiet, is_json=wants_lines, alarms=alarms)
    raise typer.Exit(_inspect_all(listed, settings, sitting))


def _names_on_standard_input() -> Iterator[str]:
    """Read names as the system has them, whatever bytes they are."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    yield from sys.stdin


@dataclass(frozen=True)
class Sitting:
    """Where a run writes, how it starts, what fails it, how it shows itself and what it says."""

    out: Path
    start: Start
    gate: frozenset[str] = frozenset()
    is_quiet: bool = False
    is_json: bool = False
    alarms: AlarmOptions | None = None


@dataclass(frozen=True)
class Round:
    """A run that has been through every picture, what it was shown with and what it said."""

    run: "Run"
    facts: "RunFacts"
    display: "RunDisplay"
    alarms: "Mapping[str, Alarm] | None" = None


def go_round(listed: "SourceList", settings: "LookSettings", sitting: Sitting) -> Round:
    """Inspect a list of sources and show how it goes; typer.Exit where it is stopped before."""
    from qianyan.cli.run_display import RunDisplay
    from qianyan.inspection.folder import open_folder
    from qianyan.inspection.inspector import open_look
    from qianyan.inspection.line import PICTURES_AHEAD
    from qianyan.inspection.run import Run

    opened = open_look(settings, use_speech=is_to_speak(sitting.alarms, settings))
    voice = open_alarm_voice(sitting.alarms, settings, opened)
    folder = open_folder(
        sitting.out, settings=settings.for_resume(), lang=settings.lang, start=sitting.start
    )
    batch = opened.batch
    run = Run(
        listed,
        opened.look,
        folder,
        limits=settings.fetch_limits,
        workers=settings.workers if batch is None else batch.size + PICTURES_AHEAD,
        is_ordered=batch is not None,
    )
    total = len(listed.entries)
    display = RunDisplay(
        total=total,
        done=total - run.num_pending,
        lang=settings.lang,
        is_quiet=sitting.is_quiet,
        is_json=sitting.is_json,
    )
    if batch is not None:
        display.tell_batch(batch.within(run.num_pending))
    with (
        _stopping(run, display) as signals,
        display,
        announcing(sitting.alarms, settings, voice, folder, display) as announcer,
    ):
        alarms = _go_through(run, display, announcer, total=total)
    if run.num_pending:
        display.say("stopped", n=run.num_pending)
        raise typer.Exit(128 + signals[0])
    return Round(run, folder.facts(model=opened.model, version=__version__), display, alarms)


def _go_through(
    run: "Run", display: "RunDisplay", announcer: "Announcer | None", *, total: int
) -> "Mapping[str, Alarm] | None":
    """Look at every picture, and say aloud what is to be said of those of earlier sittings too."""
    if announcer is not None:
        for inspection in run.inspections:
            announcer.announce(inspection)
    for inspection in run.inspect():
        display.show(inspection, num_done=total - run.num_pending)
        if announcer is not None:
            announcer.announce(inspection)
    if announcer is None or run.num_pending:
        return None
    return announcer.finish(lambda: run.is_stopping)


def _inspect_all(listed: "SourceList", settings: "LookSettings", sitting: Sitting) -> int:
    """Inspect a list of sources, report on it, and give the exit code."""
    from qianyan.inspection.gate import fails

    done = go_round(listed, settings, sitting)
    done.run.finish(done.facts, done.alarms)
    inspections = done.run.inspections
    done.display.close(inspections, sitting.out, num_repeated=done.run.num_repeated)
    num_silent = sum(alarm.error is not None for alarm in (done.alarms or {}).values())
    if num_silent:
        done.display.say("silent", n=num_silent)
    return exit_code(inspections, has_findings=fails(inspections, sitting.gate))


def exit_code(inspections: "Sequence[Inspection]", *, has_findings: bool) -> int:
    """Findings that were asked for weigh more than failed pictures; the summary names both."""
    errors = [one.error for one in inspections if one.error is not None]
    if has_findings:
        return FINDINGS
    if errors and all(error.code == EndpointError.code for error in errors):
        return UNUSABLE if len(errors) == len(inspections) else IN_PART
    return IN_PART if errors else DONE


@contextmanager
def _stopping(run: "Run", display: "RunDisplay") -> Iterator[list[int]]:
    """Let the first Ctrl-C or SIGTERM end the run in order and the second one at once."""
    caught: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if caught:  # requests may still be waiting in threads; every line written is whole
            display.__exit__(None, None, None)
            os._exit(128 + number)
        caught.append(number)
        run.stop()
        display.say("stopping")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def demo(
    context: typer.Context,
    out: Out = Path("demo"),
    model: Model = "bundled",
    lang: LangOption = "zh",
    device: Device = "cpu",
    quiet: Quiet = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Inspect drawn example pictures with the bundled models, offline.

    Example: qianyan demo --lang en
    """
    from qianyan.inspection.sources import list_sources
    from qianyan.train.bundled.scenes import draw_examples

    settings = look_settings(context)
    drawn = draw_examples(out / "drawn")
    listed = list_sources([str(path) for path in drawn])
    raise typer.Exit(_inspect_all(listed, settings, Sitting(out, "overwrite", is_quiet=quiet)))


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="results folder of a finished run")
    ],
    lang: Annotated[Lang | None, option("--lang", "language of the report; else the run's")] = None,
    debug: Debug = False,
) -> None:
    """Set report.pdf anew from results.json, in either language.

    Example: qianyan report monday --lang en
    """
    from qianyan.inspection.folder import write_report
    from qianyan.inspection.results import read_run

    facts, inspections = read_run(folder / "results.json")
    write_report(folder, replace(facts, lang=lang or facts.lang), inspections)
    print(folder / "report.pdf")
