"""Run by torchrun: take a recipe's steps until a number of them, and print the losses.

torchrun --nproc-per-node 2 train_in_processes.py RECIPE SOURCE RUN OUT STEPS|all [resume]
"""

import sys
from pathlib import Path

from qianyan.train.recipe import Stage, read_recipe
from qianyan.train.stage import StepReport
from qianyan.train.training import Places, Report, Training

recipe, source, run, out, last, *resume = sys.argv[1:]
taken = 0


def show(stage: Stage, report: Report) -> None:
    global taken  # noqa: PLW0603  (a script of its own)
    assert isinstance(report, StepReport)
    taken += 1
    if training._world.is_first:
        print("loss", stage.name, report.step, repr(report.loss), flush=True)  # noqa: T201
    if last != "all" and taken == int(last):
        sys.exit(7)


places = Places(source=Path(source), run_dir=Path(run), out=Path(out))
training = Training(read_recipe(recipe), places, on_report=show)
training.run(resume=bool(resume))
