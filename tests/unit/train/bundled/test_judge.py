"""Training the judge: it learns, it resumes exactly, and its folder loads."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from qianyan.errors import CheckpointError
from qianyan.inputs.processor import Processor
from qianyan.models.registry import load_model
from qianyan.train.bundled.crops import CROP_SIDE, CropBook
from qianyan.train.bundled.judge import ANSWER_FROM, JOIN_FROM, JudgeTrainer
from qianyan.train.bundled.judge_folder import write_judge
from qianyan.train.bundled.judge_measure import measure_judge, measuring_crops
from qianyan.train.bundled.labelled import LabelledPicture, scene_pictures
from qianyan.train.bundled.lessons import Lesson, letter_probabilities
from qianyan.train.bundled.scene_store import StoredScenes, scene_boxes
from qianyan.train.bundled.scenes import draw_scene
from qianyan.train.bundled.sentences import DECLINED, load_questions


@pytest.fixture(scope="module")
def pictures() -> list[LabelledPicture]:
    kinds = ("fire", "smoke", "fire_and_smoke", "helmets", "bare_heads", "lookalikes", "clean")
    scenes = [
        draw_scene(seed, width=160, height=120, kind=kind)  # type: ignore[arg-type]
        for seed in range(2)
        for kind in kinds
    ]
    stored = StoredScenes(
        np.stack([scene.rgb for scene in scenes]), tuple(scene_boxes(scene) for scene in scenes)
    )
    return scene_pictures(stored)


def trainer(pictures: list[LabelledPicture], *, seed: int = 0) -> JudgeTrainer:
    """Make a trainer small enough for a test; both of its books hold the same drawn pictures."""
    rng = np.random.default_rng(seed)
    books = CropBook(pictures, rng), CropBook(pictures, rng)
    return JudgeTrainer(*books, seed=seed, width=64, depth=2)


def test_the_decoder_starts_late_and_reaches_the_tower_later(
    pictures: list[LabelledPicture],
) -> None:
    judge = trainer(pictures)
    before = judge.model.model.embed_tokens.weight.detach().clone()
    assert set(judge.step(0.0)) == {"see"}
    assert torch.equal(judge.model.model.embed_tokens.weight, before)
    assert set(judge.step((ANSWER_FROM + JOIN_FROM) / 2)) == {"see", "say"}
    assert set(judge.step(0.9)) == {"see", "say"}
    assert not torch.equal(judge.model.model.embed_tokens.weight, before)


def test_the_readouts_learn_from_drawn_crops(pictures: list[LabelledPicture]) -> None:
    judge = trainer(pictures)
    losses = [judge.step(0.0)["see"] for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_a_judge_that_starts_from_another_answers_at_once(
    tmp_path: Path, pictures: list[LabelledPicture]
) -> None:
    taught = trainer(pictures)
    taught.step(0.9)
    write_judge(taught.model, taught.tokenizer, taught.config, tmp_path / "taught")
    judge = trainer(pictures, seed=1)
    judge.start_from(tmp_path / "taught")
    for name, parameter in judge.model.named_parameters():
        expected = taught.model.get_parameter(name).to(torch.bfloat16).float()  # as it is written
        assert torch.equal(parameter, expected), name
        assert torch.equal(judge.average[f"judge.{name}"], expected), name
    assert judge.progress.share(60.0) == JOIN_FROM
    judge.progress.elapsed_s = 60.0
    assert judge.progress.share(60.0) == 1.0
    assert set(judge.step(judge.progress.share(120.0))) == {"see", "say"}
    judge.save(tmp_path / "run")
    again = trainer(pictures, seed=1)
    again.load(tmp_path / "run")
    assert again.progress == judge.progress


def test_a_judge_of_another_vocabulary_or_width_is_no_start(
    tmp_path: Path, pictures: list[LabelledPicture]
) -> None:
    judge = trainer(pictures)
    rng = np.random.default_rng(0)
    books = CropBook(pictures, rng), CropBook(pictures, rng)
    wider = JudgeTrainer(*books, seed=0, width=128, depth=2)
    write_judge(wider.model, wider.tokenizer, wider.config, tmp_path)
    with pytest.raises(CheckpointError, match="other widths"):
        judge.start_from(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("?", "!"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="another vocabulary"):
        judge.start_from(tmp_path)


def test_a_resumed_run_goes_on_exactly(tmp_path: Path, pictures: list[LabelledPicture]) -> None:
    whole = trainer(pictures)
    for _ in range(4):
        whole.step(0.6)
    first = trainer(pictures)
    for _ in range(2):
        first.step(0.6)
    first.save(tmp_path)
    second = trainer(pictures, seed=0)
    second.load(tmp_path)
    for _ in range(2):
        second.step(0.6)
    assert second.progress.step == whole.progress.step == 4
    for name, parameter in whole.learner.named_parameters():
        assert torch.equal(parameter, second.learner.get_parameter(name)), name
        assert torch.equal(whole.average[name], second.average[name]), name


def test_a_run_of_another_vocabulary_is_refused(
    tmp_path: Path, pictures: list[LabelledPicture]
) -> None:
    judge = trainer(pictures)
    judge.save(tmp_path)
    judge.tokenizer.add_tokens(["new words"])
    with pytest.raises(CheckpointError, match="another vocabulary"):
        judge.load(tmp_path)


def test_the_averaged_weights_are_in_place_only_inside_the_block(
    pictures: list[LabelledPicture],
) -> None:
    judge = trainer(pictures)
    for _ in range(3):
        judge.step(0.0)
    trained = judge.model.visual.merger.mlp[0].weight.detach().clone()
    with judge.averaged():
        assert not torch.equal(judge.model.visual.merger.mlp[0].weight, trained)
    assert torch.equal(judge.model.visual.merger.mlp[0].weight, trained)


def test_the_folder_loads_and_answers_as_the_trainer_does(
    tmp_path: Path, pictures: list[LabelledPicture]
) -> None:
    judge = trainer(pictures)
    judge.step(0.6)
    write_judge(judge.model, judge.tokenizer, judge.config, tmp_path)
    loaded = load_model(tmp_path, dtype="float32")
    for name, parameter in judge.model.named_parameters():
        expected = parameter.detach().to(torch.bfloat16).float()
        assert torch.equal(loaded.get_parameter(name), expected), name
    question = load_questions()["hazard"]
    crops = [crop.pixels for crop in (judge.photos.hazard("fire"), judge.photos.head("helmet"))]
    letters = list(question.options)
    kept = letter_probabilities(judge.packer, crops, question.zh, letters)
    judge.packer.model = loaded
    again = letter_probabilities(judge.packer, crops, question.zh, letters)
    np.testing.assert_allclose(again, kept, atol=0.02)
    np.testing.assert_allclose(again.sum(axis=1), 1, rtol=1e-5)


def test_training_prompts_are_those_of_the_processor(
    tmp_path: Path, pictures: list[LabelledPicture]
) -> None:
    judge = trainer(pictures)
    write_judge(judge.model, judge.tokenizer, judge.config, tmp_path)
    processor = Processor.from_folder(tmp_path)
    question = load_questions()["head"].zh
    picture = pictures[0].image.resize((300, 300))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    inputs = processor([{"role": "user", "content": content}])
    seen = np.asarray(picture.resize((CROP_SIDE, CROP_SIDE), 3))
    pack = judge.packer.pack([Lesson(seen, question, "A")])
    length = int(pack.logits_at[0]) + 1
    assert inputs.prompt_token_ids == pack.input_ids[:length].tolist()
    assert inputs.grid_thw == ((1, 8, 8),)
    assert inputs.pixel_values is not None
    np.testing.assert_array_equal(inputs.pixel_values, judge.packer.patches([seen]).numpy())


def test_a_pack_scores_answers_and_nothing_else(pictures: list[LabelledPicture]) -> None:
    judge = trainer(pictures)
    seen = np.zeros((112, 84, 3), np.uint8)
    lessons = [Lesson(seen, "图里有什么？", "B"), Lesson(None, "Who are you?", DECLINED["en"])]
    pack = judge.packer.pack(lessons)
    answers = [judge.tokenizer.encode(lesson.answer).ids for lesson in lessons]
    assert pack.targets.tolist() == [i for ids in answers for i in [*ids, judge.packer.end]]
    assert pack.targets[pack.firsts].tolist() == [ids[0] for ids in answers]
    assert sum(pack.lengths) == len(pack.input_ids) == pack.position_ids.shape[1]
    inside = pack.logits_at[1:2]
    assert pack.input_ids[inside].tolist() == answers[0]  # the letter predicts the end


def test_measuring_counts_right_answers_and_vetoes(pictures: list[LabelledPicture]) -> None:
    crops = measuring_crops(CropBook(pictures, np.random.default_rng(5), spoil=False))
    known = {(crop.asked, crop.pixels.tobytes()): crop.meaning for crop in crops}

    def knows(shown: Sequence[np.ndarray], asked: str) -> np.ndarray:
        meanings = list(load_questions()[asked].options.values())
        rows = np.full((len(shown), len(meanings)), 0.01)
        for row, pixels in enumerate(shown):
            rows[row, meanings.index(known[asked, pixels.tobytes()])] = 0.95
        return rows

    figures = measure_judge(crops, knows)
    assert figures["hazard.fire"] == figures["head.no_helmet"] == figures["hazard.auc"] == 1
    assert (figures["hazard.true_vetoed"], figures["hazard.false_vetoed"]) == (0, 1)
    assert (figures["head.true_vetoed"], figures["head.false_vetoed"]) == (0, 1)


def test_the_written_settings_are_the_official_ones(
    tmp_path: Path, pictures: list[LabelledPicture]
) -> None:
    judge = trainer(pictures)
    write_judge(judge.model, judge.tokenizer, judge.config, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert config["vocab_size"] == judge.tokenizer.get_vocab_size()
    assert 2 * sum(config["rope_scaling"]["mrope_section"]) == 64
    assert {path.name for path in tmp_path.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
