"""What Qwen2.5-Omni's Thinker learns is what it learns in transformers, and loads there again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.sound_files import write_conversations

from qianyan.inputs.processor import Processor
from qianyan.models.omni.thinker import Thinker
from qianyan.models.registry import RENAMES, load_model
from qianyan.models.weights import renamed
from qianyan.train.examples import Example, ExampleMaker
from qianyan.train.packing import TokenLosses, pack
from qianyan.train.recipe import Dataset, Rates, Recipe, Stage
from qianyan.train.samples import JsonLines
from qianyan.train.training import Places, Training

from .omni_oracle import build_omni, for_oracle, save_omni

SAMPLES = {"a sound": 0, "two sounds": 1, "a picture": 2, "a video with sound": 3, "text": 5}
COMPARED = (
    "audio_tower.conv1.weight",
    "audio_tower.layers.0.self_attn.k_proj.weight",
    "audio_tower.layers.1.fc2.bias",
    "audio_tower.layers.1.final_layer_norm.weight",
    "audio_tower.ln_post.weight",
    "audio_tower.proj.weight",
)


@pytest.fixture(scope="module")
def whole(one_thread: None) -> Any:
    """The whole model in transformers."""
    return build_omni()


@pytest.fixture(scope="module")
def folder(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_omni(whole, tmp_path_factory.mktemp("omni"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("data"))


def make_example(model: Thinker, folder: Path, data: Path, index: int) -> Example:
    processor = Processor.from_folder(folder)
    sample = JsonLines(data).read(index)
    maker = ExampleMaker(model, processor, loss="answers", max_tokens=512)
    return maker(sample.messages, source=sample.source)


def their_loss(theirs: Any, example: Example) -> torch.Tensor:
    """Give the loss of transformers, whose labels are -100 where nothing is learned."""
    given = for_oracle(example.inputs)
    labels = torch.full_like(given["input_ids"], -100)
    learned = list(example.learned)
    labels[0, learned] = given["input_ids"][0, learned]
    theirs.model.rope_deltas = None
    loss: torch.Tensor = theirs(**given, labels=labels).loss
    return loss


def our_loss(model: Thinker, example: Example) -> torch.Tensor:
    loss: torch.Tensor = TokenLosses(model, runs_all=False)(pack([example])).mean()
    return loss


def load(folder: Path) -> Thinker:
    model = load_model(folder, dtype="float32")
    assert isinstance(model, Thinker)
    return model


@pytest.mark.parametrize("name", SAMPLES)
def test_losses_and_gradients_of_the_ears_equal(
    name: str, whole: Any, folder: Path, data: Path
) -> None:
    ours, theirs = load(folder), whole.thinker
    example = make_example(ours, folder, data, SAMPLES[name])
    found, expected = our_loss(ours, example), their_loss(theirs, example)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    if example.inputs.input_features is not None:
        left, right = (
            {renamed(key, RENAMES): each for key, each in model.named_parameters()}
            for model in (ours, theirs)
        )
        names = [one for one in left if one.startswith(COMPARED)]
        gradients = torch.autograd.grad(found, [left[one] for one in names])
        wanted = torch.autograd.grad(expected, [right[one] for one in names])
        assert len(names) == len(COMPARED)
        for one, gradient, other in zip(names, gradients, wanted, strict=True):
            assert other.abs().max() > 1e-5, one
            torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5, msg=one)


def test_what_was_trained_loads_there_whole_and_as_the_thinker_alone(
    whole: Any, folder: Path, data: Path, tmp_path: Path
) -> None:
    import transformers

    stage = Stage(
        name="ears", train=("audio", "projector", "language"), steps=3, batch=2, max_tokens=512,
        rates=Rates(language=1e-2), save_every=0,
    )  # fmt: skip
    for export, name in (("whole", ""), ("thinker", "Thinker")):
        out = tmp_path / export
        recipe = Recipe(
            stages=(stage,), data=(Dataset(path=data),), precision="float32",
            export=export,  # type: ignore[arg-type]
        )  # fmt: skip
        training = Training(recipe, Places(source=folder, run_dir=tmp_path / "run", out=out))
        training.run(resume=export == "thinker")  # it was trained already
        kind = getattr(transformers, f"Qwen2_5Omni{name}ForConditionalGeneration")
        loaded = kind.from_pretrained(out, dtype=torch.float32)
        example = make_example(load(out), out, data, 3)
        theirs = loaded if name else loaded.thinker
        with torch.no_grad():
            found, expected = our_loss(load(out), example), their_loss(theirs.eval(), example)
            before = our_loss(load(folder), example)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert before - found > 0.1
        if not name:
            assert set(loaded.speaker_map) == set(whole.speaker_map)
            kept = dict(whole.talker.named_parameters())
            assert all(torch.equal(one, kept[key]) for key, one in loaded.talker.named_parameters())
