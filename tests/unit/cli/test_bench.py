"""`qianyan bench`: a verdict in words, a table, a chart and JSON, in Chinese and English."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.cells import cell_len

from qianyan.cli import run
from qianyan.cli.bench import answer_schema, to_record
from qianyan.cli.bench_chart import COLOURS, draw_chart
from qianyan.cli.bench_words import WORDS, Measured, slowest_part, table, verdict
from qianyan.engine.benchmark import PARTS, Figures, Part, Shares, Timing
from qianyan.engine.limits import MachineLimits
from qianyan.engine.throughput import BatchTiming, GrowthLimit

LIMITS = MachineLimits(
    processor="Abacus 3",
    cores=2,
    threads=2,
    memory_bytes=2**34,
    device="cpu",
    torch="2.13.0",
    read_bytes_per_s=50e9,
    matrix_rates={"float32": 170e9, "bfloat16": 400e9, "int8": None},
)


def timing(**seconds: float) -> Timing:
    parts: dict[Part, float] = {part: seconds.get(part, 0.1) for part in PARTS}
    return Timing(
        parts=parts,
        total_s=sum(parts.values()),
        first_token_s=parts["preparation"] + parts["vision"] + parts["prefill"],
        pass_s=parts["decode"] / 70,
        prompt_tokens=1450,
        context_tokens=1457,
        computed_tokens=1457,
        completion_tokens=140,
        decode_passes=70,
        grids=((1, 54, 72),),
    )


def measured(
    *,
    dtype: str = "bfloat16",
    gain: float | None = 1.0,
    share: float | None = 0.6,
    **seconds: float,
) -> Measured:
    steady = timing(**seconds)
    batch = None if gain is None else BatchTiming(pictures=4, seconds=4 * steady.total_s / gain)
    figures = Figures(
        name="Qwen2-VL-2B",
        architecture="Qwen2VLForConditionalGeneration",
        dtype=dtype,
        load_s=3.0,
        weights_bytes=4_400_000_000,
        read_bytes_per_pass=3_090_000_000,
        vision_flops=7_440_000_000_000,
        prefill_flops=4_110_000_000_000,
        limits=LIMITS,
        first=timing(**{part: 2 * steady.parts[part] for part in PARTS}),
        steady=steady,
        growth=(BatchTiming(pictures=1, seconds=steady.total_s), *filter(None, [batch])),
        growth_limit=None if batch is None else "matrix",
        batch=batch,
        shares=Shares(vision=share, prefill=share, decode=share),
        peak_rss_bytes=5_000_000_000,
    )
    return Measured(figures=figures)


def test_vision_is_bound_by_matrices_and_helped_by_fewer_patches() -> None:
    said = verdict(measured(vision=30.0), "en")
    assert "vision (99%)" in said
    assert "matrix operations binds (60% of the limit is reached)" in said
    assert "--max-pixels" in said
    assert "the machine is full" in said


def test_the_faster_format_is_named_where_there_is_one() -> None:
    said = verdict(measured(dtype="float32", prefill=30.0), "en")
    assert "bfloat16 is 2.4x as fast" in said
    assert "--dtype float32" not in verdict(measured(prefill=30.0), "en")


def test_decode_is_bound_by_reading_and_helped_by_smaller_weights_and_batches() -> None:
    said = verdict(measured(decode=9.0, gain=3.0), "en")
    assert "reading weights binds (60% of the limit is reached)" in said
    assert "3.1 GB" in said
    assert "4 at once are 3.0x as fast" in said


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"engine": 9.0}, "engine"),
        ({"preparation": 9.0}, "preparation"),
        ({"decode": 9.0, "share": 0.1}, "decode"),
    ],
)
def test_far_from_a_limit_the_program_is_to_blame(given: dict[str, Any], part: str) -> None:
    what = measured(**given)
    assert slowest_part(what.figures.steady) == part
    assert "which the program binds, not the machine" in verdict(what, "en")
    assert "受程序而非机器限制" in verdict(what, "zh")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("gain", [None, 1.0, 3.0])
def test_a_verdict_is_two_or_three_sentences_in_both_languages(
    part: str, gain: float | None
) -> None:
    what = measured(gain=gain, share=None, **{part: 9.0})
    assert 2 <= verdict(what, "zh").count("。") <= 3
    sentences = verdict(what, "en").replace("1.0", "1").replace("3.1", "3")
    assert 2 <= sentences.count(". ") + sentences.endswith(".") <= 3


def test_both_languages_have_the_same_words() -> None:
    assert WORDS["zh"].keys() == WORDS["en"].keys()


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_the_table_has_a_row_for_each_part_in_columns(lang: Any) -> None:
    lines = table(measured(vision=30.0, decode=3.0), lang)
    rows = [line for word in PARTS for line in lines if line.startswith(WORDS[lang][word])]
    assert len(rows) == len(PARTS)
    bars = {row.split()[0]: row.count("█") for row in rows}
    assert bars[WORDS[lang]["vision"]] == 30
    assert bars[WORDS[lang]["decode"]] == 3
    assert len({cell_len(row.partition("█")[0]) for row in rows if "█" in row}) == 1
    assert all("\x1b" not in line for line in lines)


def test_a_strange_name_steers_no_terminal() -> None:
    what = measured()
    strange = Measured(figures=replace(what.figures, name="a\x1b[2Jb"))
    assert "\x1b" not in "".join(table(strange, "en"))


def test_the_chart_gives_each_part_its_share_of_width() -> None:
    chart = draw_chart(measured(vision=30.0, decode=15.0, prefill=15.0).figures, "zh")
    counts = dict.fromkeys(PARTS, 0)
    for count, colour in chart.getcolors(maxcolors=2**20):
        for part in PARTS:
            if "#{:02x}{:02x}{:02x}".format(*colour) == COLOURS[part]:
                counts[part] += count
    assert counts["vision"] == pytest.approx(2 * counts["decode"], rel=0.1)
    assert counts["prefill"] == pytest.approx(counts["decode"], rel=0.1)


def test_every_answer_has_four_objects_and_three_digits() -> None:
    schema = answer_schema()
    assert schema["minItems"] == schema["maxItems"] == 4
    for kind in schema["items"]["anyOf"]:
        box = kind["properties"]["bbox_2d"]
        assert box["items"] == {"type": "integer", "minimum": 100, "maximum": 999}


def test_the_record_is_json_with_every_figure_once() -> None:
    record = json.loads(json.dumps(to_record(measured(decode=9.0, gain=3.0))))
    assert record["schema"] == "qianyan.bench/1"
    assert record["machine"]["matrix_rates"]["int8"] is None
    assert "limits" not in record["model"]
    assert record["model"]["batch"]["gain"] == pytest.approx(3.0)
    assert record["model"]["steady"]["decode_tokens_per_s"] == pytest.approx(140 / 9.1)
    assert record["pictures_per_minute"] == pytest.approx(60 / 9.4)
    assert record["pair_pictures_per_minute"] is None
    assert record["slowest_part"] == "decode"
    assert set(record["verdict"]) == {"zh", "en"}


def test_without_a_batch_there_are_no_figures_of_one() -> None:
    assert to_record(measured(gain=None))["model"]["batch"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--pictures", "0"], 2, "pictures is 0; expected 1 to 256."),
        (["--pictures", "many"], 2, "'--pictures'"),
        (["--model", "no such folder"], 3, "'no such folder'"),
        (["--device", "abacus"], 2, "device is 'abacus'"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(
    arguments: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "--lang", "en", *arguments]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err.splitlines()[-1]
    assert "Traceback" not in shown.err


def test_a_file_in_the_way_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "bench"
    in_the_way.write_text("")
    assert run(["bench", "--lang", "en", "--out", str(in_the_way)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.endswith("is a file; expected a folder for the figures.\n")
    assert len(shown.err.splitlines()) == 1


def test_growth_is_told_with_its_limit_in_both_languages() -> None:
    grown = measured(gain=1.5)
    said = "\n".join(table(grown, "en"))
    rates = [f"{one.pictures}: {one.pictures_per_minute:.1f}" for one in grown.figures.growth]
    assert " → ".join(rates) in said
    assert "more are no faster, the rate of matrix operations binds" in said
    assert "受矩阵运算速度限制" in "\n".join(table(grown, "zh"))
    for lang in ("zh", "en"):
        assert set(get_args(GrowthLimit)) <= set(WORDS[lang])


def test_growth_stands_in_the_record_and_in_the_chart() -> None:
    grown, alone = measured(gain=1.5), measured(gain=None)
    record = to_record(grown)["model"]
    assert [one["pictures"] for one in record["growth"]] == [1, 4]
    assert record["growth"][1]["pictures_per_minute"] == pytest.approx(
        1.5 * record["growth"][0]["pictures_per_minute"]
    )
    assert record["growth_limit"] == "matrix"
    assert to_record(alone)["model"]["growth_limit"] is None
    taller, lower = (draw_chart(one.figures, "en") for one in (grown, alone))
    assert taller.height > lower.height
