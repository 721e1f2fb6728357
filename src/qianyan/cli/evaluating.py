"""The verb `eval`: how often a model is right on labelled pictures, or incidents on spans."""

import sys
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qianyan.cli.exit_codes import DONE
from qianyan.cli.inspecting import Sitting, Start, exit_code, go_round
from qianyan.cli.option_groups import spelling_out
from qianyan.cli.options import (
    Config,
    Debug,
    Lang,
    LookOptions,
    Out,
    Quiet,
    look_settings,
    option,
)
from qianyan.errors import ConfigError, quote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qianyan.inspection.evaluation.record import Evaluation
    from qianyan.inspection.inspector import LookSettings
    from qianyan.inspection.records import Inspection
    from qianyan.inspection.results import RunFacts
    from qianyan.labels.photos import LabelledPhoto

Labels = Annotated[
    Path | None,
    option("--gt", "the labels: a COCO file, or a folder in Pascal VOC's or YOLO's form"),
]
Images = Annotated[
    Path | None,
    option("--images", "where the pictures lie; else in the usual places by the labels"),
]
LeaveOut = Annotated[
    list[str] | None,
    option("--leave-out", "a class of the labels that is none of ours; can be repeated"),
]
Against = Annotated[
    Path | None,
    option("--against", "eval.json of another evaluation of the same pictures, to compare with"),
]
Events = Annotated[
    Path | None,
    option("--events", "labelled time spans; RESULTS is then a list of incidents"),
]
EvalJson = Annotated[bool, option("--json", "print what eval.json holds instead of a table")]


@spelling_out
def evaluate(
    context: typer.Context,
    results: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RESULTS]",
            help="results.json of a finished run, to be scored without looking again",
        ),
    ] = None,
    *,
    gt: Labels = None,
    images: Images = None,
    leave_out: LeaveOut = None,
    against: Against = None,
    events: Events = None,
    out: Out = Path("qianyan-eval"),
    looking: LookOptions,
    resume: Annotated[bool, option("--resume", "go on with an interrupted evaluation")] = False,
    overwrite: Annotated[bool, option("--overwrite", "replace the evaluation in --out")] = False,
    quiet: Quiet = False,
    json: EvalJson = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Measure how often a model is right on labelled pictures: a table, eval.json and eval.html.

    Example: qianyan eval --gt site/labels.json --out monday --against sunday/eval.json
    """
    if events is not None:
        _score_events(events, results, looking.lang, is_json=json)
        raise typer.Exit(DONE)
    if gt is None:
        raise ConfigError("There are no labels to score against; name them with --gt.")
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite are both given; expected one of them.")
    from qianyan.inspection.evaluation.comparison import compare, read_evaluation
    from qianyan.inspection.evaluation.figures import score
    from qianyan.inspection.evaluation.outcomes import check_labels
    from qianyan.inspection.evaluation.pairing import pair_verdicts
    from qianyan.inspection.evaluation.precision import find_pycocotools
    from qianyan.inspection.evaluation.record import Evaluation
    from qianyan.labels.reading import read_labels

    find_pycocotools()
    earlier = None if against is None else read_evaluation(against)
    photos = read_labels(gt, images=images, leave_out=leave_out or ())
    check_labels(photos)
    start: Start = "resume" if resume else "overwrite" if overwrite else "new"
    sitting = Sitting(out, start, is_quiet=quiet)
    _make_way(out, against, start)
    settings = look_settings(context)
    facts, inspections = _verdicts(results, photos, settings, sitting)
    paired = pair_verdicts(photos, inspections)
    scored = score(paired.pairs)
    evaluation = Evaluation(
        facts=facts,
        labels=str(gt),
        settings=settings.for_resume() if results is None else None,
        paired=paired,
        scored=scored,
        comparison=None if earlier is None else compare(scored.outcomes, earlier),
    )
    evaluation = _write(evaluation, out, looking.lang)
    if json:
        print(dumps(evaluation.as_record(), indent=1))
        _warn(evaluation, looking.lang)
    elif not quiet:
        _print(evaluation, out, looking.lang)
    seen = [verdict for _, verdict in paired.pairs]
    raise typer.Exit(exit_code(seen, has_findings=False))


FILES = ("eval.json", "eval.html", "worst.jpg")


def _make_way(out: Path, against: Path | None, start: Start) -> None:
    """Refuse to lose an evaluation; take an old one away where a new one was asked for."""
    if against is not None and against.resolve() == (out / FILES[0]).resolve():
        raise ConfigError(
            f"--against is {quote(against)}, which this evaluation would replace; use another "
            "--out."
        )
    for name in FILES:
        if (out / name).exists() and start == "new":
            raise ConfigError(
                f"{quote(out / name)} is there already; use --overwrite to replace it, or another "
                "--out."
            )
        (out / name).unlink(missing_ok=True)


def _verdicts(
    results: Path | None,
    photos: "Sequence[LabelledPhoto]",
    settings: "LookSettings",
    sitting: Sitting,
) -> "tuple[RunFacts, Sequence[Inspection]]":
    """Take the verdicts of a finished run, or look at every picture now."""
    from qianyan.inspection.results import read_run
    from qianyan.inspection.sources import Source, SourceList

    if results is not None:
        return read_run(results)
    names = dict.fromkeys(str(photo.path) for photo in photos)
    listed = SourceList(tuple(Source(name) for name in names), 0)
    done = go_round(listed, settings, sitting)
    done.run.folder.write_results(done.facts, done.run.inspections)
    return read_run(sitting.out / "results.json")  # rounded as whoever scores it later reads it


def _write(evaluation: "Evaluation", out: Path, lang: Lang) -> "Evaluation":
    """Write the three files; eval.json last, which says that the others are whole.

    Gives the evaluation with the names of pictures that could not be drawn.
    """
    from qianyan.inspection.evaluation.page import render_page
    from qianyan.inspection.evaluation.worst import contact_sheet, draw_worst
    from qianyan.inspection.folder import replace_file
    from qianyan.inspection.results import to_json

    out.mkdir(parents=True, exist_ok=True)
    worst = list(draw_worst(evaluation.paired.pairs, evaluation.scored.outcomes, lang))
    not_drawn = tuple(case.file for case in worst if case.image is None)
    evaluation = replace(evaluation, not_drawn=not_drawn)
    contact_sheet(worst, lang).save(out / "worst.jpg", quality=88)
    page = render_page(evaluation, worst, lang)
    replace_file(out / "eval.html", page.encode("utf-8", "replace"))
    replace_file(out / "eval.json", to_json(evaluation.as_record(), indent=1).encode())
    return evaluation


def _warn(evaluation: "Evaluation", lang: Lang) -> None:
    """Say on standard error what was left out, where a table would have said it."""
    from qianyan.cli.terminal import printable

    for line in evaluation.note_lines(lang):
        print(printable(line), file=sys.stderr)


def _print(evaluation: "Evaluation", out: Path, lang: Lang) -> None:
    from qianyan.cli.terminal import printable
    from qianyan.inspection.evaluation.words import WORDS

    for line in evaluation.lines(lang):
        print(printable(line))
    print()
    for word, name in (("written", "eval.html"), ("data", "eval.json"), ("sheet", "worst.jpg")):
        print(printable(WORDS[lang][word].format(path=out / name)))


def _score_events(events: Path, incidents: Path | None, lang: Lang, *, is_json: bool) -> None:
    from qianyan.cli.terminal import printable
    from qianyan.inspection.evaluation.content import event_section
    from qianyan.inspection.evaluation.events import (
        read_event_labels,
        read_incidents,
        score_events,
    )
    from qianyan.inspection.evaluation.record import table_lines

    if incidents is None:
        raise ConfigError("There are no incidents to score; name their file before --events.")
    score = score_events(read_incidents(incidents), read_event_labels(events))
    if is_json:
        print(dumps(score.as_record(), indent=1))
        return
    for line in table_lines(event_section(score, lang)):
        print(printable(line))
