"""Conversations are what training reads, with boxes as the model counts them."""

import json
from pathlib import Path

import pytest

from qianyan.engine.checkpoint import find_checkpoint
from qianyan.errors import InputError
from qianyan.inputs.grounding import Notation, to_photo_box
from qianyan.inputs.processor import Processor
from qianyan.inspection.answer_items import read_listing
from qianyan.inspection.exporting.conversations import Lessons, open_lessons
from qianyan.inspection.exporting.export import ExportSettings, export
from qianyan.inspection.lessons import find_teacher
from qianyan.train.samples import JsonLines

from .examples import FIRE, WORKER, say


def test_training_reads_the_ideal_answers(run_folder: Path, tmp_path: Path) -> None:
    say(run_folder, "sure.png", "right", FIRE)
    say(run_folder, "sure.png", "right", WORKER, sub_label="no_helmet")
    say(run_folder, "sure.png", "complete")
    lessons = open_lessons("bundled", lang="en", max_pixels=3136)
    settings = ExportSettings(to="jsonl", only="all", lessons=lessons)
    done = export([run_folder], tmp_path / "out", settings)
    source = JsonLines(tmp_path / "out" / "reviewed" / "conversations.jsonl")
    assert len(source) == 1
    question, answer = source.read(0).messages
    picture, text = question["content"]
    assert (
        Path(picture["image_url"]["url"]) == tmp_path / "out" / "reviewed" / "images" / "sure.png"
    )
    assert Path(picture["image_url"]["url"]).is_file()
    assert picture["max_pixels"] == 3136
    assert "hard hat" in text["text"] or "helmet" in text["text"]
    items = read_listing(answer["content"]).items
    assert [(item.label, item.sub_label) for item in items] == [
        *(("person", "no helmet"), ("fire", "severe"))
    ]
    seen_wh = Processor.from_folder(find_checkpoint("bundled"), max_pixels=3136).seen_wh((100, 50))
    assert items[0].boxes[0] is not None
    box = to_photo_box(
        items[0].boxes[0], notation=Notation.RESIZED_PIXELS, seen_wh=seen_wh, photo_wh=(100, 50)
    )
    assert box == pytest.approx(WORKER.box.as_list(), abs=2)
    predicted = tmp_path / "out" / "predictions" / "conversations.jsonl"
    assert len(predicted.read_text("utf-8").splitlines()) == 1
    assert [source for source, _ in done.missing] == ["site/x.png"]  # its answer was unreadable


def test_a_false_alarm_becomes_an_empty_answer_to_the_smaller_question(
    run_folder: Path, tmp_path: Path
) -> None:
    say(run_folder, "sure.png", "wrong", FIRE)
    lessons = open_lessons("bundled", lang="en")
    export(
        [run_folder], tmp_path / "out", ExportSettings(to="jsonl", only="reviewed", lessons=lessons)
    )
    (line,) = (
        (tmp_path / "out" / "reviewed" / "conversations.jsonl").read_text("utf-8").splitlines()
    )
    question, answer = json.loads(line)["messages"]
    assert question["content"][1]["text"].endswith("This time look for fire only.")
    assert answer["content"] == "[]"


def test_the_first_generation_is_asked_in_turns(run_folder: Path, tmp_path: Path) -> None:
    say(run_folder, "sure.png", "complete")
    lessons = Lessons(
        teach=find_teacher("QWenLMHeadModel", lang="zh"), seen_wh=lambda _: (448, 448)
    )
    export(
        [run_folder], tmp_path / "out", ExportSettings(to="jsonl", only="reviewed", lessons=lessons)
    )
    messages = JsonLines(tmp_path / "out" / "reviewed" / "conversations.jsonl").read(0).messages
    pictures = [
        part
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    assert len(messages) > 2
    assert len(pictures) == 1


def test_a_model_without_eyes_is_refused(tmp_path: Path) -> None:
    config = '{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}'
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((find_checkpoint("bundled") / name).read_bytes())
    with pytest.raises(InputError, match="boxes is not known"):
        open_lessons(str(tmp_path), lang="en")
