"""Results files: there and back, in both languages."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qianyan.errors import ConfigError
from qianyan.inspection.records import (
    Box,
    Detection,
    Failure,
    Hazard,
    Inspection,
    SubLabel,
    Usage,
    Veto,
)
from qianyan.inspection.results import (
    RunFacts,
    from_record,
    read_run,
    run_record,
    summarise,
    to_json,
    to_record,
)
from qianyan.inspection.words import Lang

FIRE = Detection(Hazard.FIRE, SubLabel.SEVERE, Box(100, 200, 180, 300), 0.91, "logprob")
LOOKED = Inspection(
    source="site/a.jpg",
    detections=(FIRE, Detection(Hazard.PERSON, SubLabel.NO_HELMET, Box(1, 2, 3, 4))),
    checked=tuple(Hazard),
    vetoed=(
        Veto(Detection(Hazard.SMOKE, SubLabel.MINOR, Box(0, 0, 9, 9), 0.4, "detector"), "fog"),
    ),
    file="images/a.jpg",
    marked_file="marked_images/a.jpg",
    sha256="00ff",
    width=1920,
    height=1080,
    total_s=1.9,
    usage=Usage(812, 61, 24, 540),
    raw="…",
    notes=("animated: first frame only",),
)
FAILED = Inspection(
    source="b.jpg",
    detections=None,
    checked=tuple(Hazard),
    error=Failure("truncated", "The picture is cut short."),
    usage=Usage(forwarded_tokens=None),
)
FACTS = RunFacts(
    id="r1",
    started_at="2026-11-22T08:00:00+00:00",
    finished_at="2026-11-22T08:01:00+00:00",
    model="bundled",
    lang="zh",
    version="0.1.0",
)


def test_a_picture_is_written_as_the_contract_says() -> None:
    record = to_record(LOOKED, "zh")
    assert record["detections"][0] == {
        "bbox_2d": [100, 200, 180, 300],
        "label": "火灾",
        "label_id": "fire",
        "sub_label": "严重",
        "score": 0.91,
        "score_kind": "logprob",
    }
    assert list(record) == [
        *("source", "file", "marked_file", "sha256", "width", "height", "at_s", "detections"),
        *("vetoed", "checked", "error", "timing", "usage", "raw", "notes"),
    ]
    assert record["checked"] == ["fire", "smoke", "person"]
    assert record["timing"] == {"total_s": 1.9}
    assert record["usage"] == {
        "prompt_tokens": 812,
        "completion_tokens": 61,
        "forwarded_tokens": 24,
        "visual_tokens": 540,
    }
    assert record["vetoed"][0]["reason"] == "fog"
    assert record["vetoed"][0]["label_id"] == "smoke"


def test_a_failed_picture_has_null_detections_and_a_sentence() -> None:
    record = to_record(FAILED, "en")
    assert record["detections"] is None
    assert record["error"] == {"code": "truncated", "message": "The picture is cut short."}


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("inspection", [LOOKED, FAILED], ids=["looked", "failed"])
def test_what_is_written_reads_back_the_same(inspection: Inspection, lang: Lang) -> None:
    line = json.dumps(to_record(inspection, lang), ensure_ascii=False)
    assert from_record(json.loads(line)) == inspection


def test_a_name_that_is_no_text_survives_the_file() -> None:
    source = b"\xb9\xa4\xb5\xd8.jpg".decode("utf-8", "surrogateescape")
    inspection = replace(LOOKED, source=source)
    written = to_json(to_record(inspection, "zh")).encode("utf-8")
    assert from_record(json.loads(written)) == inspection
    assert "火灾".encode() in to_json(to_record(LOOKED, "zh")).encode("utf-8")


FIRE_RECORD = to_record(LOOKED, "zh")["detections"][0]


@pytest.mark.parametrize(
    "damage",
    [
        {"detections": 3},
        {"checked": ["gas"]},
        {"timing": None},
        {"source": 7},
        {"file": ["images/a.jpg"]},
        {"width": "100"},
        {"detections": [FIRE_RECORD | {"score": "high"}]},
        {"detections": [FIRE_RECORD | {"bbox_2d": [1, 2, 3.5, 4]}]},
        {"detections": [FIRE_RECORD | {"bbox_2d": [1, 2, 3]}]},
    ],
)
def test_a_record_of_another_form_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"qianyan\.results/1"):
        from_record({**to_record(LOOKED, "zh"), **damage})


def test_the_summary_counts_pictures_failures_and_labels() -> None:
    assert summarise([LOOKED, FAILED], "zh") == {
        "pictures": 2,
        "failed": 1,
        "by_label": {"fire": 1, "person": 1},
        "by_sub_label": {"fire/严重": 1, "person/未佩戴安全帽": 1},
    }


def test_a_run_reads_back_the_same(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    record = run_record(FACTS, [LOOKED, FAILED])
    assert list(record) == ["schema", "run", "pictures", "summary"]
    file.write_text(json.dumps(record), "utf-8")
    assert read_run(file) == (FACTS, (LOOKED, FAILED))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": "other/1", "run": {}, "pictures": []}']
)
def test_a_file_that_is_no_results_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"results\.json"):
        read_run(file)


def test_a_missing_results_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        read_run(tmp_path / "results.json")
