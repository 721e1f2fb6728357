"""What is seen while a recipe is trained: a line now and then, with the time that is left."""

import json
import time
from pathlib import Path

from qianyan.train.recipe import Stage
from qianyan.train.stage import StepReport
from qianyan.train.training import Evaluation, Report

LINE_EVERY_S = 5.0
LOG_FILE = "log.jsonl"


class TrainDisplay:
    """Prints how a training goes, and keeps every number as a JSON line in the run's folder."""

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._log = (run_dir / LOG_FILE).open("a", encoding="utf-8")
        self._shown_at = 0.0
        self._seconds = self._tokens = 0.0

    def show(self, stage: Stage, report: Report) -> None:
        """Take a step or an evaluation."""
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


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    return f"{minutes} min" if minutes < 120 else f"{hours:.1f} h"
