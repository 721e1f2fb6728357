"""The verb `train`: a recipe, or the verbs that repeat how the bundled models were made."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qianyan.cli.options import Debug, option
from qianyan.errors import ConfigError, quote

RECIPE = "recipe"


class _RecipeFirst(TyperGroup):
    """Takes what is no verb for a recipe: `train site.toml` is `train recipe site.toml`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = [RECIPE, *args]
        return super().resolve_command(ctx, args)


verbs = typer.Typer(
    cls=_RecipeFirst,
    help="Train a model by a recipe (qianyan train site.toml), or repeat how the bundled models "
    "were made; every run can be resumed.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Photos = Annotated[Path, option("--photos", "folder of images/ and annotations_train/val.json")]
RunDir = Annotated[Path, option("--run", "folder that keeps what is needed to go on")]
Minutes = Annotated[float, option("--minutes", "how long to train, earlier sittings included")]
Seed = Annotated[int, option("--seed", "seed of everything drawn at random")]
Resume = Annotated[bool, option("--resume", "go on where the run stopped")]
Export = Annotated[Path, option("--out", "folder of the finished model")]


@verbs.command(name=RECIPE)
def train_a_recipe(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="a TOML file, or a name of qianyan train recipes"),
    ],
    model: Annotated[
        str | None, option("--model", "checkpoint folder or hub name to begin from")
    ] = None,
    data: Annotated[
        list[Path] | None, option("--data", "samples, instead of the recipe's; can be repeated")
    ] = None,
    held_out: Annotated[
        list[Path] | None, option("--held-out", "samples to measure on while training")
    ] = None,
    out: Export = Path("trained/model"),
    run: RunDir = Path("runs/recipe"),
    device: Annotated[str, option("--device", "where the model is trained: cpu, cuda …")] = "cpu",
    resume: Resume = False,
    tensorboard: Annotated[
        bool, option("--tensorboard", "also write what TensorBoard shows, into the run's folder")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train a model stage by stage, and write it in the official format.

    Example: qianyan train finetune --model Qwen/Qwen2.5-VL-3B-Instruct --data site.jsonl
    """
    from qianyan.cli.train_display import TrainDisplay
    from qianyan.engine.checkpoint import find_checkpoint
    from qianyan.inspection.lessons import find_teacher
    from qianyan.models.registry import find_architecture, read_config_json
    from qianyan.train.recipe import Dataset, read_recipe
    from qianyan.train.training import Places, Training

    read = read_recipe(recipe)
    read = replace(
        read,
        model=model or read.model,
        data=tuple(Dataset(path=path) for path in data) if data else read.data,
        evaluation=tuple(Dataset(path=path) for path in held_out) if held_out else read.evaluation,
    )
    if read.model is None:
        raise ConfigError(f"The recipe {quote(recipe)} names no model; expected one, or --model.")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    display = TrainDisplay(run, with_board=tensorboard)
    try:
        places = Places(source=find_checkpoint(read.model), run_dir=run, out=out)
        architecture = find_architecture(read_config_json(places.source)).name
        Training(
            read,
            places,
            device=device,
            on_report=display.show,
            teacher=lambda lang: find_teacher(architecture, lang=lang),
        ).run(resume=resume)
    finally:
        display.close()
    print(out)


@verbs.command(name="recipes")
def list_the_recipes(debug: Debug = False) -> None:
    """Name the recipes that come with the package.

    Example: qianyan train recipes
    """
    from qianyan.train.recipe import list_recipes

    print("\n".join(list_recipes()))


@verbs.command(name="detector")
def train_the_detector(
    photos: Photos,
    out: Export = Path("trained/detector"),
    run: RunDir = Path("runs/detector"),
    minutes: Minutes = 90,
    seed: Seed = 0,
    size: Annotated[
        int, option("--size", "side of the square that pictures are looked at in, in pixels")
    ] = 320,
    learn_at: Annotated[
        list[int] | None,
        option("--learn-at", "a size to learn at instead; several are taken in turns by chance"),
    ] = None,
    start: Annotated[
        str | None, option("--start", "a detector to begin with: bundled, or its folder")
    ] = None,
    learning_rate: Annotated[
        float, option("--learning-rate", "at its height; about half with --start", min=1e-6)
    ] = 2e-3,
    drawn_scenes: Annotated[
        int, option("--drawn-scenes", "scenes to draw beside the photos", min=100)
    ] = 5000,
    far: Annotated[
        float, option("--far", "chance that a photo with people is shown small, heads smaller yet")
    ] = 0.0,
    hard: Annotated[
        float,
        option(
            "--hard",
            "how many times oftener photos and drawn scenes are shown in which it is "
            "sure and wrong",
        ),
    ] = 0.0,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Train the small detector on labelled photos and drawn scenes.

    Example: qianyan train detector --photos data/dev --minutes 90
    """
    from qianyan.inspection.inspector import require_detector
    from qianyan.models.detector import DetectorConfig
    from qianyan.train.bundled.detector import DetectorRecipe, train_detector
    from qianyan.train.bundled.samples import Mix

    logging.basicConfig(level=logging.INFO)
    recipe = DetectorRecipe(
        minutes=minutes,
        seed=seed,
        learning_rate=learning_rate,
        drawn_scenes=drawn_scenes,
        mix=Mix(far=far, hard=hard),
        sizes=tuple(learn_at or ()),
        config=DetectorConfig(image_size=size),
    )
    first = require_detector(start) if start is not None else None
    train_detector(photos, run, recipe, resume=resume, start=first, export_dir=out)
    print(out)


@verbs.command(name="judge")
def train_the_judge(
    photos: Photos,
    out: Export = Path("trained/judge"),
    run: RunDir = Path("runs/judge"),
    minutes: Minutes = 90,
    seed: Seed = 0,
    start: Annotated[
        str | None, option("--start", "a judge to begin with: bundled, or its folder")
    ] = None,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Train the small Qwen2.5-VL that judges crops.

    Example: qianyan train judge --photos data/dev --minutes 90
    """
    from qianyan.inspection.inspector import require_judge
    from qianyan.train.bundled.judge import train_judge

    logging.basicConfig(level=logging.INFO)
    first = require_judge(start) if start is not None else None
    train_judge(
        photos, run, minutes=minutes, seed=seed, export_dir=out, start=run if resume else first
    )
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
