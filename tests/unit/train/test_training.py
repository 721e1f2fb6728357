"""Stages move what they name and nothing else; a run that was cut ends as one that was not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qianyan.engine.engine import Engine
from qianyan.errors import CheckpointError, ConfigError, InputError
from qianyan.models.registry import load_model
from qianyan.train.parts import Part, part_of
from qianyan.train.recipe import Dataset, Rates, Recipe, Stage
from qianyan.train.stage import DivergedError, StepReport
from qianyan.train.training import Places, Report, Training

RATES = Rates(language=3e-3, vision=1e-3, warmup_share=0.1)


def stage(**changed: object) -> Stage:
    plain = Stage(
        name="sft",
        train=("language", "embeddings"),
        steps=4,
        batch=2,
        max_tokens=256,
        rates=RATES,
        save_every=0,
    )
    return replace(plain, **changed)  # type: ignore[arg-type]


def recipe(data: Path, *stages: Stage) -> Recipe:
    return Recipe(stages=stages, data=(Dataset(path=data),), precision="float32", seed=3)


def places(source: Path, tmp_path: Path, name: str = "run") -> Places:
    return Places(source=source, run_dir=tmp_path / name, out=tmp_path / f"{name}-model")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder, dtype="float32").named_parameters())


@pytest.mark.parametrize(
    "parts", [("vision",), ("merger",), ("language", "merger"), ("embeddings",)]
)
def test_a_stage_moves_what_it_names_and_nothing_else(
    checkpoint: Path, conversations: Path, tmp_path: Path, parts: tuple[Part, ...]
) -> None:
    where = places(checkpoint, tmp_path)
    Training(recipe(conversations, stage(train=parts)), where).run()
    before, after = weights(checkpoint), weights(where.out)
    for name, value in before.items():
        is_same = torch.equal(value, after[name])
        assert is_same == (part_of(name) not in parts), name


class CutError(Exception):
    """Stands for a kill at that moment."""


def test_a_run_that_was_cut_ends_as_one_that_was_not(
    checkpoint: Path, conversations: Path, tmp_path: Path
) -> None:
    whole = recipe(
        conversations,
        stage(steps=6, save_every=2, average=0.9),
        stage(name="vision", train=("vision", "merger"), steps=4, save_every=1, packing=False),
    )
    straight = places(checkpoint, tmp_path, "straight")
    expected = losses_until(None, whole, straight)
    cut = places(checkpoint, tmp_path, "cut")
    # What came after the last save is done again.
    losses = losses_until(3, whole, cut)[:2]
    losses += losses_until(6, whole, cut, resume=True)[:5]
    losses += losses_until(None, whole, cut, resume=True)
    assert losses == expected
    after = weights(cut.out)
    for name, value in weights(straight.out).items():
        assert torch.equal(value, after[name]), name


def losses_until(
    last: int | None, whole: Recipe, where: Places, *, resume: bool = False
) -> list[float]:
    """Train until the n-th step of this sitting, or to the end; give the losses."""
    losses: list[float] = []

    def note(stage: Stage, report: Report) -> None:
        assert isinstance(report, StepReport)
        losses.append(report.loss)
        if len(losses) == last:
            raise CutError

    try:
        Training(whole, where, on_report=note).run(resume=resume)
    except CutError:
        assert last is not None
    return losses


def test_a_small_model_learns_what_it_is_shown(
    checkpoint: Path, conversations: Path, tmp_path: Path
) -> None:
    where = places(checkpoint, tmp_path)
    learning = stage(train=("language", "embeddings", "merger", "vision"), steps=40, batch=3)
    Training(recipe(conversations, learning), where).run()
    engine = Engine(where.out, dtype="float32")
    answer = engine.chat([{"role": "user", "content": "Say green "}], max_tokens=8, temperature=0)
    assert answer.text == "green"


def test_checkpointed_activations_change_no_gradient(
    checkpoint: Path, conversations: Path, tmp_path: Path
) -> None:
    made = []
    for name, is_on in (("kept", False), ("again", True)):
        where = places(checkpoint, tmp_path, name)
        Training(recipe(conversations, stage(checkpointing=is_on)), where).run()
        made.append(weights(where.out))
    for name, value in made[0].items():
        torch.testing.assert_close(value, made[1][name], rtol=0, atol=1e-6)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_state(
    checkpoint: Path, conversations: Path, tmp_path: Path
) -> None:
    where = places(checkpoint, tmp_path)
    broken = stage(steps=20, save_every=3)
    training = Training(recipe(conversations, broken), where)

    def spoil(stage: Stage, report: Report) -> None:
        assert isinstance(report, StepReport)
        if report.step == 4:
            with torch.no_grad():
                training.model.lm_head.weight.fill_(float("nan"))

    training._report = spoil
    with pytest.raises(DivergedError, match=r"step 5.*colours.jsonl"):
        training.run()
    state = torch.load(where.run_dir / "last.pt", weights_only=True)
    assert state["run"]["step"] == 3
    assert all(value.isfinite().all() for value in state["parameters"].values())


def test_another_recipe_does_not_go_on_where_this_one_was(
    checkpoint: Path, conversations: Path, tmp_path: Path
) -> None:
    where = places(checkpoint, tmp_path)
    Training(recipe(conversations, stage(steps=1)), where).run()
    elsewhere = replace(where, out=tmp_path / "other")
    with pytest.raises(CheckpointError, match="another recipe"):
        Training(recipe(conversations, stage(steps=2)), elsewhere).run(resume=True)


def test_a_folder_that_holds_something_is_never_replaced(
    checkpoint: Path, conversations: Path, tmp_path: Path
) -> None:
    (tmp_path / "run-model").mkdir()
    (tmp_path / "run-model" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already; expected the name of a new folder"):
        Training(recipe(conversations, stage()), places(checkpoint, tmp_path))
    assert (tmp_path / "run-model" / "mine.txt").read_text() == "mine"


def test_bad_samples_are_named_and_left_out(
    checkpoint: Path, conversations: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = conversations.read_text("utf-8").splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), "image": "gone.png"})
    lines[3] = "{"
    data = conversations.with_name("spoilt.jsonl")
    data.write_text("\n".join(lines), encoding="utf-8")
    Training(recipe(data, stage()), places(checkpoint, tmp_path)).run()
    assert "gone.png" in caplog.text
    assert "spoilt.jsonl [3] is not JSON" in caplog.text


def test_data_without_one_good_sample_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text("{}\n{}\n", encoding="utf-8")
    with pytest.raises(InputError, match="No sample of the data can be used"):
        Training(recipe(data, stage()), places(checkpoint, tmp_path)).run()


def test_a_part_that_the_model_has_not_is_refused(
    checkpoint: Path, conversations: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no audio to train"):
        Training(recipe(conversations, stage(train=("audio",))), places(checkpoint, tmp_path))
