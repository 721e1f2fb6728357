"""What people and programs see while pictures are inspected.

On a terminal: a progress bar with findings, rate and time left, then the verdict. Where standard
output goes to a program: one JSON line per picture there, and the words on standard error.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qianyan.cli.terminal import printable
from qianyan.inspection.records import Detection, Inspection, SubLabel
from qianyan.inspection.results import to_json, to_record
from qianyan.inspection.verdict import give_verdict, is_hazard
from qianyan.inspection.words import Lang, sub_label_word

if TYPE_CHECKING:  # it brings the engine
    from qianyan.engine.batch_size import BatchSize

WORDS: dict[Lang, dict[str, str]] = {
    "zh": {
        "findings": "{n} 处隐患",
        "severe": "（{n} 处{severe}）",
        "rate": "{rate:.1f} 张/秒",
        "failed": "{n} 张未能检查：",
        "repeated": "有 {n} 张重复，只检查一次。",
        "report": "报告：{path}",
        "marked": "标注图：{path}",
        "data": "数据：{path}",
        "batch": "{n} 张图片一起回答{why}。",
        "given": "（--batch 指定）",
        "memory": "，受可用内存限制",
        "requests": "，受引擎同时处理的问题数限制",
        "cores": "，以这些处理器核心，再多也不会更快",
        "pictures": "，即全部待检查图片",
        "stopped": "已停止：还有 {n} 张未检查。加上 --resume 再次运行同一命令即可继续。",
        "stopping": "正在完成手头的图片后停止；再按一次立即停止。",
        "alarm": "语音：{text} → {file}",
        "alarm_failed": "警报（未能朗读）：{text}。原因：{why}",
        "silent": "{n} 条警报未能朗读，文字在 results.json 中；加上 --resume 再次运行即可重试。",
    },
    "en": {
        "findings": "{n} hazard{s}",
        "severe": " ({n} {severe})",
        "rate": "{rate:.1f} img/s",
        "failed": "{n} not inspected:",
        "repeated": "{n} given more than once; each was inspected once.",
        "report": "Report: {path}",
        "marked": "Marked pictures: {path}",
        "data": "Data: {path}",
        "batch": "{n} picture{s} answered together{why}.",
        "given": " (as --batch says)",
        "memory": ", as many as memory has room for",
        "requests": ", as many as the engine runs questions at once",
        "cores": ", as many as these cores take: more would be no faster",
        "pictures": ": all that are to be inspected",
        "stopped": "Stopped with {n} pictures to go. Run the same command with --resume to go on.",
        "stopping": "Stopping after the pictures in hand; press again to stop at once.",
        "alarm": "Spoken: {text} → {file}",
        "alarm_failed": "Alarm, not spoken: {text}. {why}",
        "silent": "Alarms not read aloud: {n}. Their words are in results.json; run the same "
        "command with --resume to try again.",
    },
}
MOST_FAILURES_SHOWN = 20


class RunDisplay:
    """Shows a run as it goes: a bar on a terminal, JSON lines for a program, or nothing."""

    def __init__(self, *, total: int, done: int, lang: Lang, is_quiet: bool, is_json: bool) -> None:
        self.lang = lang
        self.is_json = is_json
        self._console = Console(stderr=True, quiet=is_quiet, highlight=False)
        self._paper = Console(stderr=is_json, quiet=is_quiet, highlight=False)
        self._started = time.monotonic()
        self._seen, self._hazards, self._severe = 0, 0, 0
        self._bar = Progress(
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("· {task.fields[words]} ·"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=done, words="")
        self._batch: BatchSize | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def tell_batch(self, batch: "BatchSize") -> None:
        """Remember for the summary how many pictures are answered together."""
        self._batch = batch

    def show(self, inspection: Inspection, *, num_done: int) -> None:
        """Take one more picture into account."""
        found = [one for one in inspection.detections or () if is_hazard(one)]
        self._seen += 1
        self._hazards += len(found)
        self._severe += sum(map(_is_severe, found))
        if self.is_json:
            sys.stdout.write(to_json(to_record(inspection, self.lang)) + "\n")
            sys.stdout.flush()
        self._bar.update(self._task, completed=num_done, words=self._words())

    def say(self, key: str, **gaps: object) -> None:
        """Tell the user something in their language, beside the bar."""
        self._console.print(WORDS[self.lang][key].format(**gaps), markup=False, soft_wrap=True)

    def _write(self, key: str, **gaps: object) -> None:
        self._paper.print(WORDS[self.lang][key].format(**gaps), markup=False, soft_wrap=True)

    def _words(self) -> str:
        words = WORDS[self.lang]
        severe = sub_label_word(SubLabel.SEVERE, self.lang)
        parts = words["findings"].format(n=self._hazards, s="" if self._hazards == 1 else "s")
        if self._severe:
            parts += words["severe"].format(n=self._severe, severe=severe)
        rate = self._seen / max(time.monotonic() - self._started, 1e-3)
        return f"{parts} · {words['rate'].format(rate=rate)}"

    def close(self, inspections: Sequence[Inspection], out: Path, *, num_repeated: int) -> None:
        """Say what was found, what failed and where the report is."""
        self._paper.print(str(give_verdict(inspections, self.lang)), markup=False, soft_wrap=True)
        failed = [one for one in inspections if one.error is not None]
        if failed:
            self._write("failed", n=len(failed))
        for one in failed[:MOST_FAILURES_SHOWN]:
            reason = one.error.message if one.error else ""
            line = printable(f"  {one.source}: {reason}")
            self._paper.print(line, markup=False, soft_wrap=True)
        if len(failed) > MOST_FAILURES_SHOWN:
            self._paper.print(f"  … +{len(failed) - MOST_FAILURES_SHOWN}", markup=False)
        if num_repeated:
            self._write("repeated", n=num_repeated)
        if self._batch is not None and self._seen > 1:
            size, why = self._batch.size, WORDS[self.lang][self._batch.limit]
            self._write("batch", n=size, s=" was" if size == 1 else "s were", why=why)
        self._write("report", path=out / "report.pdf")
        self._write("marked", path=out / "marked_images")
        self._write("data", path=out / "results.json")


def _is_severe(found: Detection) -> bool:
    return found.sub_label is SubLabel.SEVERE
