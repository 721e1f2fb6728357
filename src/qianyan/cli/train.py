"""The verbs that repeat how the bundled models were made."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from qianyan.cli.options import Debug, option

verbs = typer.Typer(
    help="Repeat how the bundled models were made; every run can be resumed.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Photos = Annotated[Path, option("--photos", "folder of images/ and annotations_train/val.json")]
RunDir = Annotated[Path, option("--run", "folder that keeps what is needed to go on")]
Minutes = Annotated[float, option("--minutes", "how long to train, earlier sittings included")]
Seed = Annotated[int, option("--seed", "seed of everything drawn at random")]
Resume = Annotated[bool, option("--resume", "go on where the run stopped")]
Export = Annotated[Path, option("--out", "folder of the finished model")]


@verbs.command(name="detector")
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
    from qianyan.train.bundled.detector import train_detector

    logging.basicConfig(level=logging.INFO)
    train_detector(photos, run, minutes=minutes, resume=resume, seed=seed, export_dir=out)
    print(out)


@verbs.command(name="judge")
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
    from qianyan.train.bundled.judge import train_judge

    logging.basicConfig(level=logging.INFO)
    train_judge(photos, run, minutes=minutes, resume=resume, seed=seed, export_dir=out)
    print(out)


@verbs.command(name="decoys")
def mine_the_decoys(
    photos: Photos,
    detector: Annotated[Path, option("--detector", "folder of the detector to learn from")],
    run: RunDir = Path("runs/judge"),
    debug: Debug = False,
) -> None:
    """Find what a detector gets wrong, for the judge's training to go on with.

    Example: qianyan train decoys --photos data/dev --detector trained/detector
    """
    from qianyan.train.bundled.decoys import mine_decoys

    print(mine_decoys(photos, detector, run))
