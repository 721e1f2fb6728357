"""The verb `export`: hard cases out of results and reviews, in the formats of other tools."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qianyan.cli.exit_codes import DONE, IN_PART
from qianyan.cli.options import Config, Debug, Lang, MaxPixels, option
from qianyan.errors import ConfigError, quote

if TYPE_CHECKING:
    from qianyan.inspection.exporting.conversations import Lessons
    from qianyan.inspection.exporting.export import Exported
    from qianyan.inspection.records import Hazard

ExportFormat = Literal["coco", "yolo", "voc", "labelstudio", "cvat", "jsonl"]
ExportChoice = Literal["hard", "reviewed", "all"]
MOST_NAMED = 20

WORDS: dict[Lang, dict[str, str]] = {
    "zh": {
        "went": "导出 {out} / {all} 张图片。",
        "reasons": "疑难原因：{reasons}。",
        "labels": "{n} 张有人工标注。",
        "predictions": "{n} 张尚未（全部）复核，其结果只是模型的预测。",
        "missing": "{n} 项未能导出：",
        "repeated": "{n} 张图片在结果中重复出现，以最后一次为准。",
        "strange": "{n} 张有复核记录的图片不在这些结果中。",
        "low_score": "得分低 {n}",
        "vetoed": "被否决 {n}",
        "uncertain": "不确定 {n}",
        "unreadable_answer": "回答无法解析 {n}",
        "reviewed_as_wrong": "复核有误 {n}",
        "comma": "，",
    },
    "en": {
        "went": "{out} of {all} pictures went out.",
        "reasons": "Hard because of: {reasons}.",
        "labels": "{n} with labels of persons.",
        "predictions": "{n} not (wholly) reviewed: what they have are a model's predictions.",
        "missing": "{n} could not go out:",
        "repeated": "{n} pictures occur again in the results; the last counts.",
        "strange": "{n} reviewed pictures are not in these results.",
        "low_score": "low score {n}",
        "vetoed": "veto {n}",
        "uncertain": "uncertain {n}",
        "unreadable_answer": "unreadable answer {n}",
        "reviewed_as_wrong": "reviewed as wrong {n}",
        "comma": ", ",
    },
}


def export(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS...", help="results folders, results.json or .jsonl files"),
    ],
    to: Annotated[ExportFormat, option("--to", "the format")],
    out: Annotated[Path, option("--out", "folder to make")] = Path("export"),
    only: Annotated[
        ExportChoice,
        option(
            "--only",
            "hard: low scores, vetoes, uncertain sub-labels, unreadable answers, "
            "reviewed as wrong; reviewed: all with a review",
        ),
    ] = "hard",
    low_score: Annotated[
        float, option("--low-score", "scores below are low, 0..1", min=0.0, max=1.0)
    ] = 0.5,
    reviews: Annotated[
        list[Path] | None,
        option("--reviews", "review file, besides reviews.jsonl in RESULTS; can be repeated"),
    ] = None,
    labeled_categories: Annotated[
        str,
        option(
            "--labeled-categories",
            "the categories that count: fire,smoke,person; yolo and "
            "voc take for labels only pictures in which all of them were reviewed",
        ),
    ] = "fire,smoke,person",
    copy_pictures: Annotated[
        bool,
        option("--copy-pictures", "copy pictures, instead of linking them where the disk can"),
    ] = False,
    model: Annotated[
        str | None,
        option("--model", "jsonl: the model to be taught, a checkpoint folder or a hub id"),
    ] = None,
    max_pixels: MaxPixels = None,
    lang: Annotated[
        Lang, option("--lang", "language of conversations, and of what is said here")
    ] = "zh",
    force: Annotated[bool, option("--force", "replace an earlier export in --out")] = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Take pictures and boxes out for other tools and the next fine-tune, hard cases first.

    Example: qianyan export monday --to coco --out hard
    """  # fmt: skip
    from qianyan.inspection.exporting.export import ExportSettings
    from qianyan.inspection.exporting.export import export as write

    settings = ExportSettings(
        to=to,
        only=only,
        low_score=low_score,
        categories=_hazards(labeled_categories),
        copy_pictures=copy_pictures,
        lessons=_lessons(model, lang, max_pixels) if to == "jsonl" else None,
    )
    done = write(results, out, settings, reviews=reviews or (), is_forced=force)
    _tell(done, lang)
    print(out)
    raise typer.Exit(IN_PART if done.missing else DONE)


def _lessons(model: str | None, lang: Lang, max_pixels: int | None) -> "Lessons":
    from qianyan.inspection.exporting.conversations import open_lessons

    if model is None:
        raise ConfigError(
            "--to jsonl writes boxes as one model counts them; expected that model with --model."
        )
    return open_lessons(model, lang=lang, max_pixels=max_pixels)


def _hazards(names: str) -> "tuple[Hazard, ...]":
    from qianyan.inspection.records import Hazard

    try:
        return tuple({Hazard(name.strip()): None for name in names.split(",")})
    except ValueError as error:
        raise ConfigError(
            f"--labeled-categories is {quote(names)}; expected some of {', '.join(Hazard)}, with "
            "commas between them."
        ) from error


def _tell(done: "Exported", lang: Lang) -> None:
    """Say on standard error what went out."""
    words = WORDS[lang]
    num_out = done.num_chosen - len({source for source, _ in done.missing})
    print(words["went"].format(out=num_out, all=done.num_inspected), file=sys.stderr)
    if done.reasons:
        counts = (words[reason].format(n=number) for reason, number in done.reasons.most_common())
        reasons = words["comma"].join(counts)
        print(words["reasons"].format(reasons=reasons), file=sys.stderr)
    for key, number in (
        ("labels", done.num_labelled),
        ("predictions", done.num_predicted),
        ("repeated", done.num_repeated),
        ("strange", done.num_strange_reviews),
        ("missing", len(done.missing)),
    ):
        if number:
            print(words[key].format(n=number), file=sys.stderr)
    for source, reason in done.missing[:MOST_NAMED]:
        print(f"  {quote(source)}: {reason}", file=sys.stderr)
