"""The command line: parse, call, print.

Rooms are imported by the verb that needs them, so that `qianyan --help` answers at once.
Exit codes: 0 done, 1 findings at or above --fail-on, 2 wrong usage or settings, 3 model or
endpoint not usable, 4 done in part, 128 + n stopped by signal n.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from io import TextIOWrapper
from json import dumps
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from typer.exceptions import TyperException

from qianyan import __version__
from qianyan.errors import CheckpointError, ConfigError, EndpointError, QianyanError, quote
from qianyan.options import (
    AllowHost,
    ApiKey,
    BaseUrl,
    Config,
    Debug,
    Device,
    DtypeOption,
    FetchTimeout,
    Json,
    Lang,
    LangOption,
    Look,
    MaxObjects,
    MaxPixels,
    Model,
    Out,
    QuantizeOption,
    Quiet,
    Rules,
    Version,
    Workers,
    name_options,
    option,
)
from qianyan.settings import check_environment

if TYPE_CHECKING:
    from qianyan.inspection.inspector import LookSettings
    from qianyan.inspection.records import Inspection
    from qianyan.inspection.run import Run
    from qianyan.inspection.sources import SourceList
    from qianyan.terminal import RunDisplay

DONE, FINDINGS, WRONG_USAGE, UNUSABLE, IN_PART = 0, 1, 2, 3, 4

Start = Literal["new", "resume", "overwrite"]

app = typer.Typer(
    name="qianyan",
    help="Look for fire, smoke and missing hard hats in photos; mark them and write a report.\n\n"
    "Every option can also be set as QIANYAN_OPTION_NAME or in a --config file.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def check(
    version: Version = False,
) -> None:
    """Look for fire, smoke and missing hard hats in photos; mark them and write a report.

    Every option can also be set as QIANYAN_OPTION_NAME or in a --config file.
    """
    check_environment(name_options(typer.main.get_command(app)))


OTHER_NAMES = {"allow_host": "allow_hosts", "fetch_timeout": "fetch_timeout_s"}


def _look_settings(context: typer.Context) -> "LookSettings":
    """Take those options of a verb that say which model looks, and how."""
    from qianyan.inspection.inspector import LookSettings

    known = {one.name for one in fields(LookSettings)}
    params = {OTHER_NAMES.get(name, name): value for name, value in context.params.items()}
    return LookSettings.from_options(
        {name: value for name, value in params.items() if name in known and value is not None}
    )


@app.command()
def inspect(
    context: typer.Context,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...")],
    out: Out = Path("qianyan-out"),
    model: Model = "bundled",
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    look: Look = "auto",
    lang: LangOption = "zh",
    max_objects: MaxObjects = 10,
    max_pixels: MaxPixels = None,
    device: Device = "cpu",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "none",
    workers: Workers = 4,
    fail_on: Annotated[
        str | None,
        option(
            "--fail-on", "exit with 1 at such findings: minor, moderate, severe, no_helmet, any"
        ),
    ] = None,
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
    settings = _look_settings(context)
    gate = parse_fail_on(fail_on) if fail_on else frozenset()
    listed = list_sources(sources, standard_input=_names_on_standard_input())
    wants_lines = json or not (quiet or sys.stdout.isatty())
    start: Start = "resume" if resume else "overwrite" if overwrite else "new"
    raise typer.Exit(
        _go_round(listed, settings, Sitting(out, start, gate, is_quiet=quiet, is_json=wants_lines))
    )


def _names_on_standard_input() -> Iterator[str]:
    """Read names as the system has them, whatever bytes they are."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    yield from sys.stdin


@dataclass(frozen=True)
class Sitting:
    """Where a run writes, how it starts, what fails it and how it shows itself."""

    out: Path
    start: Start
    gate: frozenset[str] = frozenset()
    is_quiet: bool = False
    is_json: bool = False


def _go_round(listed: "SourceList", settings: "LookSettings", sitting: Sitting) -> int:
    """Inspect a list of sources, show how it goes, and give the exit code."""
    from qianyan.inspection.folder import open_folder
    from qianyan.inspection.gate import fails
    from qianyan.inspection.inspector import open_look
    from qianyan.inspection.run import Run
    from qianyan.terminal import RunDisplay

    opened = open_look(settings)
    folder = open_folder(
        sitting.out, settings=settings.for_resume(), lang=settings.lang, start=sitting.start
    )
    run = Run(
        listed,
        opened.look,
        folder,
        limits=settings.fetch_limits,
        workers=settings.workers if settings.is_remote else 1,
    )
    total = len(listed.entries)
    display = RunDisplay(
        total=total,
        done=total - run.num_pending,
        lang=settings.lang,
        is_quiet=sitting.is_quiet,
        is_json=sitting.is_json,
    )
    with _stopping(run, display) as signals, display:
        for inspection in run.inspect():
            display.show(inspection, num_done=total - run.num_pending)
    if run.num_pending:
        display.say("stopped", n=run.num_pending)
        return 128 + signals[0]
    run.finish(folder.facts(model=opened.model, version=__version__))
    inspections = run.inspections
    display.close(inspections, sitting.out, num_repeated=run.num_repeated)
    return _exit_code(inspections, has_findings=fails(inspections, sitting.gate))


def _exit_code(inspections: "Sequence[Inspection]", *, has_findings: bool) -> int:
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


@app.command()
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
    from qianyan.train.scenes import draw_examples

    settings = _look_settings(context)
    drawn = draw_examples(out / "drawn")
    listed = list_sources([str(path) for path in drawn])
    raise typer.Exit(_go_round(listed, settings, Sitting(out, "overwrite", is_quiet=quiet)))


@app.command()
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


@app.command(name="eval")
def evaluate(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="folder of labelled photos")],
    annotations: Annotated[
        Path, option("--annotations", "COCO-like labels: fire, smoke, person, helmet, head")
    ],
    model: Model = "bundled",
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    look: Look = "auto",
    lang: LangOption = "zh",
    max_objects: MaxObjects = 10,
    max_pixels: MaxPixels = None,
    device: Device = "cpu",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "none",
    json: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Measure recall, false alarms and F1 of a model against labelled photos.

    Example: qianyan eval photos/images --annotations photos/annotations_val.json
    """
    from qianyan.inspection.evaluate import evaluate as score
    from qianyan.inspection.evaluate import evaluation_table, read_coco
    from qianyan.inspection.inspector import open_look
    from qianyan.inspection.service import inspect_source

    settings = _look_settings(context)
    photos = read_coco(annotations)
    opened = open_look(settings)
    result = score(
        (photo, inspect_source(str(folder / photo.file), opened.look, settings.fetch_limits))
        for photo in photos
    )
    print(dumps(result.as_record(), indent=1) if json else evaluation_table(result))
    raise typer.Exit(IN_PART if result.failed else DONE)


@app.command()
def doctor(
    context: typer.Context,
    model: Model = "bundled",
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    device: Device = "cpu",
    dtype: DtypeOption = "auto",
    lang: LangOption = "zh",
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Find out how an endpoint's model counts coordinates and save it; or try a local model.

    Example: qianyan doctor --base-url http://127.0.0.1:8000/v1
    """
    from qianyan.inspection.endpoint import probe
    from qianyan.inspection.inspector import try_look
    from qianyan.inspection.profile import save_profile
    from qianyan.inspection.profile_words import profile_lines

    if base_url is None:
        print(try_look(_look_settings(context)))
        return
    profile = probe(base_url, None if model == "bundled" else model, api_key)
    print("\n".join(profile_lines(profile, lang)))
    print(f"saved to {save_profile(profile)}")
    if not profile.can_place_boxes:
        raise typer.Exit(UNUSABLE)


train = typer.Typer(
    help="Repeat how the bundled models were made; every run can be resumed.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(train, name="train")
Photos = Annotated[Path, option("--photos", "folder of images/ and annotations_train/val.json")]
RunDir = Annotated[Path, option("--run", "folder that keeps what is needed to go on")]
Minutes = Annotated[float, option("--minutes", "how long to train, earlier sittings included")]
Seed = Annotated[int, option("--seed", "seed of everything drawn at random")]
Resume = Annotated[bool, option("--resume", "go on where the run stopped")]
Export = Annotated[Path, option("--out", "folder of the finished model")]


@train.command(name="detector")
def train_the_detector(
    photos: Photos,
    out: Export = Path("trained/detector"),
    run: RunDir = Path("runs/detector"),
    minutes: Minutes = 90,
    seed: Seed = 0,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Train the small detector on labelled photos and drawn scenes.

    Example: qianyan train detector --photos data/dev --minutes 90
    """
    from qianyan.train.detector import train_detector

    logging.basicConfig(level=logging.INFO)
    train_detector(photos, run, minutes=minutes, resume=resume, seed=seed, export_dir=out)
    print(out)


@train.command(name="judge")
def train_the_judge(
    photos: Photos,
    out: Export = Path("trained/judge"),
    run: RunDir = Path("runs/judge"),
    minutes: Minutes = 90,
    seed: Seed = 0,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Train the small Qwen2.5-VL that judges crops.

    Example: qianyan train judge --photos data/dev --minutes 90
    """
    from qianyan.train.judge import train_judge

    logging.basicConfig(level=logging.INFO)
    train_judge(photos, run, minutes=minutes, resume=resume, seed=seed, export_dir=out)
    print(out)


@train.command(name="decoys")
def mine_the_decoys(
    photos: Photos,
    detector: Annotated[Path, option("--detector", "folder of the detector to learn from")],
    run: RunDir = Path("runs/judge"),
    debug: Debug = False,
) -> None:
    """Find what a detector gets wrong, for the judge's training to go on with.

    Example: qianyan train decoys --photos data/dev --detector trained/detector
    """
    from qianyan.train.decoys import mine_decoys

    print(mine_decoys(photos, detector, run))


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; say in one sentence what went wrong, and give the exit code."""
    try:
        code = app(arguments, prog_name="qianyan", standalone_mode=False)
    except TyperException as error:
        print(f"qianyan: {error.format_message()} See qianyan --help.", file=sys.stderr)
        return WRONG_USAGE
    except (QianyanError, OSError) as error:
        if logging.getLogger("qianyan").isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        print(f"qianyan: {error}", file=sys.stderr)
        return UNUSABLE if isinstance(error, CheckpointError | EndpointError) else WRONG_USAGE
    return code if isinstance(code, int) else DONE
