"""Qwen2.5-Omni's Thinker is trained with sounds: from what, what moves, what is written."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.omni_checkpoint import IDS
from tests.sound_files import write_video, write_wav

from qianyan.engine.engine import Engine
from qianyan.errors import ConfigError
from qianyan.inputs.processor import Processor
from qianyan.models.omni.thinker import Thinker
from qianyan.models.registry import load_model
from qianyan.train.examples import Example, ExampleMaker
from qianyan.train.lora import add_lora, lora_layers, merged, without_lora
from qianyan.train.packing import TokenLosses, pack
from qianyan.train.parts import part_of
from qianyan.train.predicting import answer, expected
from qianyan.train.recipe import Dataset, Lora, Rates, Recipe, Stage, read_recipe
from qianyan.train.samples import JsonLines
from qianyan.train.training import Evaluation, Places, Prediction, Report, Training

STAGE = Stage(
    name="ears", train=("audio", "projector"), steps=3, batch=1, max_tokens=512, save_every=0,
    rates=Rates(language=3e-3, warmup_share=0.1),
)  # fmt: skip
UNUSED = "audio_tower.audio_bos_eos_token.weight"
SPEAKS = ("talker.", "token2wav.")


@pytest.fixture(scope="module")
def model(omni_checkpoint: Path) -> Thinker:
    model = load_model(omni_checkpoint, dtype="float32")
    assert isinstance(model, Thinker)
    return model


def make_examples(
    model: Thinker, folder: Path, data: Path, *, loss: str = "answers"
) -> list[Example]:
    maker = ExampleMaker(
        model,
        Processor.from_folder(folder),
        loss=loss,
        max_tokens=512,  # type: ignore[arg-type]
    )
    source = JsonLines(data)
    samples = [source.read(index) for index in range(len(source))]
    return [maker(sample.messages, source=sample.source) for sample in samples]


@pytest.fixture(scope="module")
def examples(model: Thinker, omni_checkpoint: Path, sounds: Path) -> list[Example]:
    return make_examples(model, omni_checkpoint, sounds)


def recipe(data: Path, *stages: Stage, evaluation: Sequence[Path] = ()) -> Recipe:
    held_out = tuple(Dataset(path=path) for path in evaluation)
    return Recipe(
        stages=stages, data=(Dataset(path=data),), evaluation=held_out, precision="float32", seed=3
    )


def places(source: Path, tmp_path: Path, name: str = "run") -> Places:
    return Places(source=source, run_dir=tmp_path / name, out=tmp_path / f"{name}-model")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder, dtype="float32").named_parameters())


def test_sounds_in_both_forms_and_of_videos_are_heard_in_order(examples: list[Example]) -> None:
    frames = [example.inputs.num_audio_frames for example in examples]
    assert frames == [(70,), (230, 70), (), (200,), (230,), ()]
    assert [len(example.inputs.grid_thw) for example in examples] == [0, 0, 1, 1, 0, 0]


def test_packed_losses_and_gradients_are_those_of_each_alone(
    model: Thinker, examples: list[Example]
) -> None:
    """Several sounds of several samples in one pass keep to themselves."""
    losses = TokenLosses(model, runs_all=True)
    names = [name for name, _ in model.named_parameters() if name != UNUSED]
    parameters = [each for name, each in model.named_parameters() if name != UNUSED]
    together = losses(pack(examples))
    alone = [losses(pack([example])) for example in examples]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=2e-5)
    found = torch.autograd.grad(together.sum(), parameters)
    wanted = torch.autograd.grad(torch.cat(alone).sum(), parameters)
    for name, one, other in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3, msg=name)


def test_a_packed_sample_stands_where_it_stands_alone(examples: list[Example]) -> None:
    """A video and its sound start together; what is packed behind them starts from 0 again."""
    video, after = examples[3], examples[4]
    packed = pack([video, after])
    first, second = packed.position_ids.split(list(packed.lengths), dim=1)
    assert torch.equal(first, video.position_ids)
    assert torch.equal(second, after.position_ids)
    ids = torch.tensor(video.inputs.prompt_token_ids)
    starts = [int(first[0, ids == IDS[pad]][0]) for pad in ("<|AUDIO|>", "<|VIDEO|>")]
    assert starts[0] == starts[1]
    assert packed.num_audio_frames == (200, 230)


def test_text_takes_all_but_what_pictures_and_sounds_fill(
    model: Thinker, omni_checkpoint: Path, sounds: Path
) -> None:
    filled = {IDS[pad] for pad in ("<|AUDIO|>", "<|VIDEO|>", "<|IMAGE|>")}
    for example in make_examples(model, omni_checkpoint, sounds, loss="text"):
        ids = example.inputs.prompt_token_ids
        left_out = [ids[at] for at in set(range(1, len(ids))) - set(example.learned)]
        assert left_out == [token_id for token_id in ids if token_id in filled]


def test_a_pack_without_sounds_runs_the_ears_and_teaches_them_nothing(
    model: Thinker, examples: list[Example]
) -> None:
    text = pack([examples[-1]])
    given = TokenLosses(model, runs_all=True)(text)
    assert torch.equal(given, TokenLosses(model, runs_all=False)(text))
    ears = [each for name, each in model.audio_tower.named_parameters() if name not in UNUSED]
    assert all(not grad.any() for grad in torch.autograd.grad(given.sum(), ears))


@pytest.mark.parametrize("parts", [("audio",), ("projector",), ("merger", "language")])
def test_a_stage_moves_what_it_names_and_nothing_else(
    omni_checkpoint: Path, sounds: Path, tmp_path: Path, parts: tuple[str, ...]
) -> None:
    where = places(omni_checkpoint, tmp_path)
    Training(recipe(sounds, replace(STAGE, train=parts)), where).run()
    after = weights(where.out)
    for name, value in weights(omni_checkpoint).items():
        is_named = part_of(name) in parts and name != UNUSED
        assert torch.equal(value, after[name]) != is_named, name


def test_the_published_stages_train_a_small_model_and_leave_what_speaks(
    omni_checkpoint: Path, sounds: Path, tmp_path: Path
) -> None:
    """Each stage moves its parts and no other; what speaks is carried along to the last bit."""
    published = read_recipe("qwen2.5-omni")
    stages = tuple(replace(stage, steps=2, batch=1, max_tokens=512) for stage in published.stages)
    where = places(omni_checkpoint, tmp_path)
    kept = [weights(omni_checkpoint)]

    def note(stage: Stage, report: Report) -> None:
        if getattr(report, "step", 0) == stage.steps:
            named = training.model.named_parameters()
            kept.append({name: each.detach().clone() for name, each in named})

    training = Training(recipe(sounds, *stages), where, on_report=note)
    training.run()
    assert [set(stage.train) for stage in stages[:2]] == [
        {"merger", "projector"},
        {"vision", "audio", "merger", "projector"},
    ]
    for stage, before, after in zip(stages, kept[:-1], kept[1:], strict=True):
        moved = {
            part_of(name) for name, each in after.items() if not torch.equal(each, before[name])
        }
        assert moved == set(stage.train)

    source, found = (load_file(folder / name) for folder, name in (
        (omni_checkpoint, "model.safetensors"), (where.out, "model-00001-of-00001.safetensors"),
    ))  # fmt: skip
    assert found.keys() == source.keys()
    spoken = [name for name in source if name.startswith(SPEAKS)]
    assert spoken
    assert all(torch.equal(found[name], source[name]) for name in spoken)
    for name in ("config.json", "spk_dict.pt", "preprocessor_config.json", "chat_template.jinja"):
        assert (where.out / name).read_bytes() == (omni_checkpoint / name).read_bytes()


def test_the_thinker_alone_is_written_where_that_is_wanted(
    omni_checkpoint: Path, sounds: Path, tmp_path: Path
) -> None:
    where = places(omni_checkpoint, tmp_path)
    training = Training(replace(recipe(sounds, replace(STAGE, steps=1)), export="thinker"), where)
    training.run()
    exported = load_model(where.out, dtype="float32")
    assert isinstance(exported, Thinker)
    trained = dict(training.model.named_parameters())
    assert all(torch.equal(each, trained[name]) for name, each in exported.named_parameters())
    config = json.loads((where.out / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["Qwen2_5OmniThinkerForConditionalGeneration"]
    assert not (where.out / "spk_dict.pt").exists()
    names = load_file(where.out / "model-00001-of-00001.safetensors").keys()
    assert {name.partition(".")[0] for name in names} == {
        "audio_tower",
        "visual",
        "model",
        "lm_head",
    }


def test_only_an_omni_has_a_thinker_to_be_written_alone(
    checkpoint: Path, conversations: Path, tmp_path: Path
) -> None:
    alone = replace(recipe(conversations, replace(STAGE, train=("vision",))), export="thinker")
    with pytest.raises(ConfigError, match="none to be written alone"):
        Training(alone, places(checkpoint, tmp_path))


class CutError(Exception):
    """Stands for a kill at that moment."""


def test_a_run_with_sounds_that_was_cut_ends_as_one_that_was_not(
    omni_checkpoint: Path, sounds: Path, tmp_path: Path
) -> None:
    whole = recipe(sounds, replace(STAGE, steps=5, save_every=2, train=("audio", "language")))
    straight, cut = (places(omni_checkpoint, tmp_path, name) for name in ("straight", "cut"))
    Training(whole, straight).run()

    def stop(stage: Stage, report: Report) -> None:
        if getattr(report, "step", 0) == 3:
            raise CutError

    with pytest.raises(CutError):
        Training(whole, cut, on_report=stop).run()
    Training(whole, cut).run(resume=True)
    after = weights(cut.out)
    for name, value in weights(straight.out).items():
        assert torch.equal(value, after[name]), name


def test_checkpointed_activations_of_the_ears_change_no_gradient(
    omni_checkpoint: Path, sounds: Path, tmp_path: Path
) -> None:
    made = []
    for name, is_on in (("kept", False), ("again", True)):
        where = places(omni_checkpoint, tmp_path, name)
        Training(recipe(sounds, replace(STAGE, checkpointing=is_on)), where).run()
        made.append(weights(where.out))
    for name, value in made[0].items():
        torch.testing.assert_close(value, made[1][name], rtol=0, atol=1e-6)


def test_answers_to_sounds_made_while_training_are_the_engine_s(
    model: Thinker, examples: list[Example], omni_checkpoint: Path, sounds: Path
) -> None:
    engine = Engine(omni_checkpoint, dtype="float32")
    source = JsonLines(sounds)
    for index in (1, 3):
        messages = source.read(index).messages
        assert (
            engine.processor.tokenizer.decode(expected(examples[index])) == messages[-1]["content"]
        )
        given = engine.chat(messages[:-1], max_tokens=8, temperature=0, repetition_penalty=1.0)
        answered = answer(model, examples[index], end=-1, vocab_size=270, most=8)
        assert answered[: len(given.token_ids)] == given.token_ids


def test_sounds_held_out_are_measured_and_answered(
    omni_checkpoint: Path, sounds: Path, tmp_path: Path
) -> None:
    reports: list[Report] = []
    Training(
        recipe(sounds, replace(STAGE, steps=1), evaluation=[sounds]),
        places(omni_checkpoint, tmp_path),
        on_report=lambda _, report: reports.append(report),
    ).run()
    measured = [report for report in reports if isinstance(report, Evaluation)]
    assert [report.num_samples for report in measured] == [6]
    assert sum(isinstance(report, Prediction) for report in reports) == 3


def test_low_rank_additions_to_the_ears_are_merged_and_nothing_else_moves(
    omni_checkpoint: Path, sounds: Path, tmp_path: Path, examples: list[Example]
) -> None:
    lora = Lora(rank=2, alpha=8, targets=("q_proj", "out_proj", "fc1"), parts=("audio",))
    where = places(omni_checkpoint, tmp_path)
    stage = replace(STAGE, train=(), lora=lora, packing=False, steps=6)  # some are text alone
    training = Training(recipe(sounds, stage), where)
    training.run()
    losses = TokenLosses(training.model, runs_all=False)
    what = pack(examples)
    with torch.no_grad():
        added = losses(what)
        with merged(training.model):
            torch.testing.assert_close(losses(what), added, rtol=0, atol=1e-4)
        with without_lora(training.model):
            assert (losses(what) - added).abs().max() > 1e-3
    after = weights(where.out)
    for name, value in weights(omni_checkpoint).items():
        is_chosen = name.startswith("audio_tower.layers") and any(
            name.endswith(f"{target}.weight") for target in lora.targets
        )
        assert torch.equal(value, after[name]) != is_chosen, name


def test_every_linear_layer_of_the_ears_can_be_added_to(omni_checkpoint: Path) -> None:
    model = load_model(omni_checkpoint, dtype="float32")
    add_lora(model, Lora(targets=("all",), parts=("audio", "projector")), seed=0)
    assert {path.rpartition(".")[2] for path, _, _ in lora_layers(model)} == {
        "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "proj",
    }  # fmt: skip


def test_sounds_that_cannot_be_used_are_named_and_counted(
    omni_checkpoint: Path, sounds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_video(tmp_path / "mute.mkv", 1.0, None)
    write_wav(tmp_path / "long.wav", 30.0, 300)
    write_wav(tmp_path / "short.wav", 0.01, 300)
    (tmp_path / "torn.wav").write_bytes(b"RIFF and nothing more")
    turns = [{"from": "human", "value": "<audio>What?"}, {"from": "gpt", "value": "That."}]
    seen = [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "That."}]
    lines = [json.dumps({"conversations": turns, "audio": f"{name}.wav"})
             for name in ("gone", "torn", "short", "long")]  # fmt: skip
    mute = {"conversations": seen, "video": "mute.mkv", "use_audio_in_video": True}
    lines += [json.dumps(mute), sounds.read_text("utf-8").splitlines()[-1]]
    data = tmp_path / "bad.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    training = recipe(data, replace(STAGE, train=("language",), steps=1, batch=1, max_tokens=256))
    Training(training, places(omni_checkpoint, tmp_path)).run()
    for sentence in (
        "bad.jsonl [0]: ",
        "bad.jsonl [1]: ",
        "bad.jsonl [2]: The sound is 0.0100 seconds long; expected at least 0.03",
        "bad.jsonl [3] is 821 tokens long; expected at most 256",
        "bad.jsonl [4]: messages[0].content[0] has no sound to be heard",
        "5 of 6 samples were left out: ",
    ):
        assert sentence in caplog.text, sentence
    assert "1 no_sound" in caplog.text


def test_a_model_without_ears_says_which_sample_it_cannot_hear(
    checkpoint: Path, sounds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = replace(STAGE, train=("language",), steps=1)
    Training(recipe(sounds, stage), places(checkpoint, tmp_path)).run()
    assert "sounds.jsonl [0]: messages[0].content[0] is a sound; this model does not hear" in (
        caplog.text
    )
