"""Endless repetition is found with its shortest period; what merely looks alike never is."""

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from qianyan.engine.loops import DEFAULT_LOOP_TOKENS, MAX_PERIOD, MIN_REPEATS, Loop, LoopDetector


def watch(token_ids: list[int], loop_tokens: int = DEFAULT_LOOP_TOKENS) -> tuple[int, Loop] | None:
    """Push tokens until a loop is found; tell behind how many."""
    detector = LoopDetector(loop_tokens)
    for count, token_id in enumerate(token_ids, 1):
        loop = detector.push(token_id)
        if loop is not None:
            return count, loop
    return None


def shortest_period(stretch: list[int]) -> int:
    """Find it by trying: the oracle."""
    return next(
        p
        for p in range(1, len(stretch) + 1)
        if len(stretch) % p == 0 and stretch == stretch[:p] * (len(stretch) // p)
    )


@given(
    st.lists(st.integers(0, 5), max_size=80),
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
    st.integers(64, 400),
)
@settings(deadline=None)
def test_a_repeated_stretch_is_found_in_time_and_named_by_its_shortest_period(
    before: list[int], stretch: list[int], loop_tokens: int
) -> None:
    period = shortest_period(stretch)
    if period > loop_tokens // 2:
        return
    need = max(loop_tokens, MIN_REPEATS * period)
    found = watch(before + stretch * (need // len(stretch) + 2), loop_tokens)
    assert found is not None
    count, loop = found
    assert count <= len(before) + need
    said = (before + stretch * (need // len(stretch) + 2))[:count]
    assert said[-loop.num_tokens :] == said[-loop.period :] * loop.repeats
    assert loop.repeats >= MIN_REPEATS
    assert shortest_period(said[-loop.period :]) == loop.period


@given(st.lists(st.integers(0, 3), max_size=400), st.integers(64, 100))
@settings(deadline=None)
def test_what_is_called_a_loop_is_one(token_ids: list[int], loop_tokens: int) -> None:
    found = watch(token_ids, loop_tokens)
    if found is not None:
        count, loop = found
        said = token_ids[:count]
        assert said[-loop.num_tokens :] == said[-loop.period :] * loop.repeats
        assert loop.num_tokens + loop.period > loop_tokens


@pytest.mark.parametrize("period", [1, 2, 7, 100, 430, MAX_PERIOD])
def test_long_and_short_periods_are_found_unasked(period: int) -> None:
    """Loops of more than 400 tokens were seen at temperature 0."""
    stretch = list(range(period))
    found = watch(stretch * (4 * DEFAULT_LOOP_TOKENS // period + MIN_REPEATS))
    assert found is not None
    count, loop = found
    assert loop.period == period
    assert count == max(DEFAULT_LOOP_TOKENS, MIN_REPEATS * period)


def table(rows: int) -> str:
    """A list of findings in which nearly all is the same in every row."""
    head = "| 序号 | 部位 | 隐患 | 结果 |\n|---|---|---|---|\n"
    return head + "".join(f"| {i} | 3号车间 | 无 | 合格 |\n" for i in range(1, rows + 1))


def boxes(count: int) -> str:
    """Boxes in a regular grid, as shelves and windows have."""
    listed = [
        {"bbox_2d": [40 * i % 1000, 60 * (i // 25), 40 * i % 1000 + 38, 58], "label": "人员"}
        for i in range(count)
    ]
    return json.dumps(listed, ensure_ascii=False)


def readings(count: int) -> str:
    """Numbers of a sensor that hardly changes."""
    generator = np.random.default_rng(3)
    return json.dumps(
        [round(float(20 + generator.choice([0, 0, 0, 0, 0.1])), 1) for _ in range(count)]
    )


def form(rows: int) -> str:
    """An empty form with ruled lines, as OCR writes it."""
    return "|      |      |      |      |\n" * rows + "." * 300 + "\n" + "-" * 300 + "\n"


def sheet(rows: int) -> str:
    """A sheet with equal values and a date that counts on."""
    out = io.StringIO()
    writer = csv.writer(out)
    for i in range(rows):
        writer.writerow([f"2026-{i // 28 + 1:02}-{i % 28 + 1:02}", "0.00", "0.00", "正常", "正常"])
    return out.getvalue()


def mask(side: int) -> str:
    """A matrix of nothing but zeros."""
    return json.dumps([[0] * side for _ in range(side)])


@pytest.mark.parametrize(
    "text",
    [
        table(300),
        boxes(200),
        readings(2000),
        form(50),
        sheet(300),
        mask(24),
        json.dumps([0] * 600),
        "是的。" * 100,
        json.dumps([{"id": i, "ok": True, "note": None} for i in range(400)]),
    ],
    ids=["table", "boxes", "readings", "form", "sheet", "mask", "zeros", "yes", "rows"],
)
def test_tables_lists_and_forms_are_no_loops(text: str, tiny_tokenizer: Tokenizer) -> None:
    """In tokens that are nearly bytes: several times more of them than a real model's."""
    assert watch(tiny_tokenizer.encode(text).ids) is None


def test_an_answer_that_lists_one_box_for_ever_is_a_loop(tiny_tokenizer: Tokenizer) -> None:
    item = json.dumps({"bbox_2d": [10, 20, 30, 40], "label": "火灾"}, ensure_ascii=False)
    ids = tiny_tokenizer.encode("[" + f"{item}, " * 400).ids
    found = watch(ids)
    assert found is not None
    assert found[1].period == len(tiny_tokenizer.encode(f"{item}, ").ids)
    assert found[0] < DEFAULT_LOOP_TOKENS + 100
