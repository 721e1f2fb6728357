"""What people and programs see of a run."""

from pathlib import Path
from typing import get_args

import pytest

from qianyan.cli.run_display import MOST_FAILURES_SHOWN, WORDS, RunDisplay
from qianyan.engine.batch_size import BatchSize, Limit
from qianyan.inspection.records import Box, Detection, Failure, Hazard, Inspection, SubLabel

FIRE = Detection(Hazard.FIRE, SubLabel.SEVERE, Box(0, 0, 5, 5), 0.9, "logprob")


def failed(index: int) -> Inspection:
    return Inspection(
        source=f"p{index}.jpg",
        detections=None,
        checked=tuple(Hazard),
        error=Failure("truncated", "It is cut short."),
    )


def display(*, is_json: bool = False, is_quiet: bool = False) -> RunDisplay:
    return RunDisplay(total=2, done=0, lang="en", is_quiet=is_quiet, is_json=is_json)


def test_the_verdict_comes_first_and_then_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    looked = Inspection(source="a.jpg", detections=(FIRE,), checked=tuple(Hazard))
    display().close([looked, failed(1)], Path("out"), num_repeated=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 hazard found: fire 1 (severe).")
    assert lines[1:4] == [
        "1 not inspected:",
        "  p1.jpg: It is cut short.",
        "2 given more than once; each was inspected once.",
    ]
    assert "Report: out/report.pdf" in lines


def test_words_leave_standard_output_to_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    display(is_json=True).close([failed(1)], Path("out"), num_repeated=0)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "p1.jpg" in shown.err


def test_a_long_list_of_failures_is_cut_with_the_rest_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    many = [failed(index) for index in range(MOST_FAILURES_SHOWN + 5)]
    display().close(many, Path("out"), num_repeated=0)
    shown = capsys.readouterr().out
    assert "  … +5" in shown
    assert shown.count("cut short") == MOST_FAILURES_SHOWN


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (BatchSize(size=8, limit="memory"), "8 pictures were answered together, as many as memory"),
        (BatchSize(size=1, limit="given"), "1 picture was answered together (as --batch says)."),
        (BatchSize(size=2, limit="pictures"), "2 pictures were answered together: all that"),
    ],
)
def test_the_summary_says_how_many_were_answered_together_and_why_not_more(
    capsys: pytest.CaptureFixture[str], batch: BatchSize, said: str
) -> None:
    shown = display()
    shown.tell_batch(batch)
    looked = Inspection(source="a.jpg", detections=(FIRE,), checked=tuple(Hazard))
    for _ in range(2):
        shown.show(looked, num_done=1)
    shown.close([looked], Path("out"), num_repeated=0)
    assert said in capsys.readouterr().out


def test_every_limit_of_a_batch_has_words_in_both_languages() -> None:
    for lang in ("zh", "en"):
        assert set(get_args(Limit)) <= set(WORDS[lang])
