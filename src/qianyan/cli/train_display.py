"""What is seen while a recipe is trained: a line now and then, with the time that is left."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qianyan.errors import ConfigError
from qianyan.train.recipe import Stage
from qianyan.train.stage import StepReport
from qianyan.train.training import Evaluation, Prediction, Report

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

MOST_SHOWN = 160
LINE_EVERY_S = 5.0
LOG_FILE = "log.jsonl"


class TrainDisplay:
    """Prints how a training goes, and keeps every number as a JSON line in the run's folder."""

    def __init__(self, run_dir: Path, *, with_board: bool) -> None:
        """Open the log; `with_board` also writes what TensorBoard shows.

        Raises ConfigError where TensorBoard's package is missing.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self._board = _open_board(run_dir) if with_board else None
        self._log = (run_dir / LOG_FILE).open("a", encoding="utf-8")
        self._shown_at = 0.0
        self._seconds = self._tokens = 0.0

    def show(self, stage: Stage, report: Report) -> None:
        """Take a step or an evaluation."""
        if isinstance(report, Prediction):
            print(f"{stage.name}: {report.source}\n  expected {_short(report.expected)}\n"
                  f"  answered {_short(report.answered)}", flush=True)  # fmt: skip
            if self._board is not None:
                text = f"{report.expected}\n\n{report.answered}"
                self._board.add_text(f"{stage.name}/{report.source}", text, report.step)
            return
        if isinstance(report, Evaluation):
            self._keep(stage, {"step": report.step, "evaluation_loss": report.loss})
            print(
                f"{stage.name}: loss {report.loss:.4f} on {report.num_samples} held-out samples",
                flush=True,
            )
            return
        self._keep(
            stage,
            {
                "step": report.step,
                "loss": report.loss,
                "gradient_norm": report.gradient_norm,
                "rate": report.rate,
                "tokens": report.num_tokens,
                "seconds": round(report.seconds, 4),
            },
        )
        self._seconds += report.seconds
        self._tokens += report.num_tokens
        is_last = report.step == report.num_steps
        if is_last or time.monotonic() - self._shown_at >= LINE_EVERY_S:
            self._shown_at = time.monotonic()
            self._say(stage, report)

    def close(self) -> None:
        """End the log."""
        self._log.close()
        if self._board is not None:
            self._board.close()

    def _say(self, stage: Stage, report: StepReport) -> None:
        left = report.seconds * (report.num_steps - report.step)
        print(
            f"{stage.name}: step {report.step}/{report.num_steps} · loss {report.loss:.4f} · "
            f"{self._tokens / self._seconds:.0f} tokens/s · {_duration(left)} left",
            flush=True,
        )

    def _keep(self, stage: Stage, numbers: dict[str, float]) -> None:
        self._log.write(json.dumps({"stage": stage.name, **numbers}) + "\n")
        self._log.flush()
        if self._board is None:
            return
        for name, value in numbers.items():
            if name != "step":
                self._board.add_scalar(f"{stage.name}/{name}", value, int(numbers["step"]))


def _open_board(run_dir: Path) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter  # (extra: train)
    except ImportError as error:
        raise ConfigError(
            "--tensorboard needs its package; run pip install 'qianyan[train]'."
        ) from error
    return SummaryWriter(run_dir / "board")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MOST_SHOWN else f"{line[: MOST_SHOWN - 1]}…"


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    return f"{minutes} min" if minutes < 120 else f"{hours:.1f} h"
